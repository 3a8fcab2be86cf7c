"""What a judged round notes for somebody to look at: odd lengths, and clients that may be one hand."""

from datetime import timedelta
from pathlib import Path
from typing import Any

import pytest
import sqlalchemy as sa
import torch
from sqlalchemy.orm import Session

from app.core import clock
from app.core.db import Database
from app.core.ids import new_id
from app.identity.models import Client
from app.rounds import suspicions
from app.rounds.models import Evidence
from app.security.models import SecurityEvent
from tests.builders import build_client, build_organisation, tiny_manifest
from tests.worker_bench import build_sealed, context_for, trained, work
from workers.handlers import aggregate

HERE, THERE = b"h" * 32, b"t" * 32


def noted(session: Session, kind: str) -> list[SecurityEvent]:
    return list(session.scalars(sa.select(SecurityEvent).where(SecurityEvent.kind == kind)))


class Hands:
    """Four clients of one organisation that are near copies of each other, and two that are not."""

    def __init__(self, session: Session) -> None:
        self.session, self.begun = session, clock.now()
        self.home = build_organisation(session)
        self.clients = [build_client(session, self.home) for _number in range(6)]
        for number, client in enumerate(self.clients):
            client.enrolled_from = HERE if number < 5 else THERE
            client.created_at = self.begun + timedelta(minutes=number)
        session.flush()

    def judge(self, twins: int = 4) -> list[SecurityEvent]:
        round_id = new_id()
        odd = [["twin"] if number < twins else [] for number in range(6)]
        rows = [
            Evidence(round_id=round_id, client_id=client.id, odd=told)
            for client, told in zip(self.clients, odd, strict=True)
        ]
        suspicions.note_alike(self.session, rows)
        return noted(self.session, "clients_alike")


@pytest.fixture
def hands(session: Session) -> Hands:
    return Hands(session)


def test_two_copies_are_no_cluster(hands: Hands) -> None:
    assert hands.judge(twins=2) == []


@pytest.mark.parametrize("apart", ["network", "time", "organisation", "unknown"])
def test_copies_that_have_nothing_else_in_common_are_no_cluster(hands: Hands, apart: str) -> None:
    changes: dict[str, dict[str, Any]] = {
        "network": {"enrolled_from": THERE},
        "time": {"created_at": hands.begun + timedelta(hours=2)},
        "organisation": {"organisation_id": build_organisation(hands.session).id},
        "unknown": {"enrolled_from": None},
    }
    for client in hands.clients[: 4 if apart == "unknown" else 2]:
        for name, value in changes[apart].items():
            setattr(client, name, value)
    hands.session.flush()
    assert hands.judge() == []


def test_copies_from_one_network_at_one_time_are_an_event_with_what_it_rests_on(hands: Hands) -> None:
    hands.clients[3].capability = hands.clients[3].capability | {"cpu_count": 64}
    hands.session.flush()
    (event,) = hands.judge()
    assert (event.subject, event.organisation_id) == (f"organisation:{hands.home.id}", hands.home.id)
    told = dict(event.evidence)
    assert told.pop("first_client_ids").split() == [str(one.id) for one in hands.clients[:4]]
    assert len(told.pop("round_id")) == 36
    assert told == {
        "near_copies": 4,
        "of_one_network_and_time": 5,
        "enrolled_within_s": 180.0,
        "with_one_machine": 3,
    }
    assert event.score == pytest.approx((4 / 5 + 57 / 60 + 3 / 4) / 3)
    assert event.advice == "hold_clients"
    states = hands.session.scalars(sa.select(Client.state).where(Client.organisation_id == hands.home.id))
    assert set(states) == {"active"}


@pytest.mark.parametrize(("trust", "far"), [("local", True), ("none", False)])
def test_a_round_notes_its_outlier_and_its_copies_and_tells_how_far_only_of_noised_updates(
    database: Database, tmp_path: Path, trust: str, far: bool
) -> None:
    context = context_for(database, tmp_path)
    generator = torch.Generator().manual_seed(1)
    updates = [
        {name: 1.0 + 0.1 * torch.randn(one.shape, generator=generator) for name, one in trained(0.0).items()}
        for _client in range(5)
    ]
    updates += [updates[0], updates[0], trained(-100.0)]
    privacy = {} if trust == "local" else {"trust": "none", "clip_norm": None, "epsilon": None, "delta": None}
    manifest = tiny_manifest(privacy=privacy, quorum={"min_updates": 2, "max_updates": 8})
    round_id = build_sealed(context, updates, manifest=manifest)
    with database.run_tx("test") as session:
        session.execute(sa.update(Client).values(enrolled_from=HERE))
    work(context, aggregate.run, "aggregate", round_id)
    with database.run_tx("test") as session:
        (alike,) = noted(session, "clients_alike")
        assert (alike.evidence["near_copies"], alike.evidence["round_id"]) == (3, str(round_id))
        (odd,) = noted(session, "update_norm_odd")
        assert odd.evidence["round_id"] == str(round_id)
        assert odd.evidence.get("times_the_median") == (pytest.approx(100, rel=0.1) if far else None)


def test_a_round_takes_the_lock_of_standings_before_that_of_events(
    database: Database, tmp_path: Path
) -> None:
    """As a step of the ladder does, which is noted as an event: or two rounds would wait for each other."""
    context, taken = context_for(database, tmp_path), []

    def note(_connection: object, _cursor: object, statement: str, *_rest: object) -> None:
        taken.extend(name for name in ("dpfl.standings", "dpfl.security_events") if name in statement)

    updates = [trained(1.0 + number / 100) for number in range(7)] + [trained(-100.0)]
    manifest = tiny_manifest(
        aggregation={"rule": "trimmed_mean", "faulty": 1}, quorum={"min_updates": 2, "max_updates": 8}
    )
    round_id = build_sealed(context, updates, manifest=manifest)
    sa.event.listen(database.engine, "before_cursor_execute", note)
    try:
        work(context, aggregate.run, "aggregate", round_id)
    finally:
        sa.event.remove(database.engine, "before_cursor_execute", note)
    assert taken[0] == "dpfl.standings"
    assert "dpfl.security_events" in taken
