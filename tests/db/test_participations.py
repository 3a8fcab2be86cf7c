"""The database holds a buffered run to its participations, and updates to their rounds, whoever writes."""

from __future__ import annotations

import threading
from uuid import UUID

import pytest
import sqlalchemy as sa
from sqlalchemy.exc import DBAPIError, IntegrityError
from sqlalchemy.orm import Session

from app.core.db import Database
from app.rounds.models import Round
from app.rounds.states import RoundState
from app.runs.models import Run, RunClient
from app.updates.models import Update, UpdateState
from tests.builders import build_round, build_run, build_update, clients_of, tiny_manifest


def buffered_run(session: Session, *, participations: int = 1, rounds: int = 3) -> tuple[UUID, list[Round]]:
    """A client of a run, and the run's rounds."""
    buffered = {"participations": participations, "staleness": 2}
    run = build_run(session, clients=1, manifest=tiny_manifest(rounds=rounds, buffered=buffered))
    rows = [
        build_round(session, RoundState.OPEN, run=run, number=number + 1, min_updates=1)
        for number in range(rounds)
    ]
    return clients_of(session, run)[0], rows


def test_one_update_more_than_the_manifest_allows_is_refused_whoever_inserts_it(session: Session) -> None:
    client_id, rounds = buffered_run(session, participations=2)
    for row in rounds[:2]:
        build_update(session, row, client_id)
    with pytest.raises(IntegrityError, match="ck_run_clients_participations"):
        build_update(session, rounds[2], client_id)


def test_without_buffers_participations_are_counted_and_not_limited(session: Session) -> None:
    run = build_run(session, clients=1, manifest=tiny_manifest(rounds=3))
    (client_id,) = clients_of(session, run)
    for number in (1, 2, 3):
        build_update(session, build_round(session, run=run, number=number, min_updates=1), client_id)
    seat = session.get_one(RunClient, (run.id, client_id), populate_existing=True)
    assert (seat.participations, seat.participation_cap) == (3, None)


@pytest.mark.parametrize(
    ("model", "values"),
    [
        (RunClient, {"participations": 0}),
        (RunClient, {"participation_cap": 0}),
        (Update, {"client_id": None}),
        (Update, {"declared_sha256": "2" * 64}),
        (Update, {"base_round_id": None}),
        (Update, {"round_id": None}),
    ],
)
def test_what_was_counted_and_what_is_part_of_a_round_cannot_be_changed(
    session: Session, model: type[RunClient] | type[Update], values: dict[str, object]
) -> None:
    client_id, rounds = buffered_run(session, participations=3)
    update = build_update(session, rounds[0], client_id)
    others = {"client_id": client_id_of_another(session), "base_round_id": rounds[1].id}
    changed = {
        name: others.get(name, rounds[1].id) if value is None else value for name, value in values.items()
    }
    where = RunClient.client_id == client_id if model is RunClient else Update.id == update.id
    with pytest.raises(DBAPIError, match=r"shrink|fixed|stays|ck_run_clients_participations"):
        session.execute(sa.update(model).where(where).values(**changed))


def client_id_of_another(session: Session) -> UUID:
    return clients_of(session, build_run(session, clients=1))[0]


def test_only_an_update_that_is_not_whole_moves_to_another_round(session: Session) -> None:
    client_id, rounds = buffered_run(session)
    update = build_update(session, rounds[0], client_id, state=UpdateState.RECEIVING)
    move = sa.update(Update).where(Update.id == update.id)
    with pytest.raises(DBAPIError, match="stays there"), session.begin_nested():
        session.execute(move.values(round_id=rounds[1].id))  # it names no base: it is its own round's
    update = build_update_from(session, buffered_run(session))
    session.execute(
        sa.update(Update).where(Update.id == update.id).values(round_id=other_round(session, update))
    )


def build_update_from(session: Session, made: tuple[UUID, list[Round]]) -> Update:
    client_id, rounds = made
    row = Update(
        id=rounds[0].id,
        round_id=rounds[0].id,
        client_id=client_id,
        organisation_id=rounds[0].organisation_id,
        base_round_id=rounds[0].id,
        declared_sha256="1" * 64,
    )
    session.add(row)
    session.flush()
    return row


def other_round(session: Session, update: Update) -> UUID:
    run_id = session.get_one(Round, update.round_id).run_id
    return session.scalars(
        sa.select(Round.id).where(Round.run_id == run_id, Round.id != update.round_id).limit(1)
    ).one()


def test_of_two_updates_at_once_for_the_last_participation_one_is_refused(database: Database) -> None:
    with database.run_tx("test") as session:
        client_id, rounds = buffered_run(session)
        ids, run_id = [row.id for row in rounds], rounds[0].run_id
    outcomes: list[str] = []
    both = threading.Barrier(2)

    def insert(round_id: UUID) -> None:
        try:
            with database.run_tx("test") as session:
                row = session.get_one(Round, round_id)
                both.wait(10)
                build_update(session, row, client_id)
                outcomes.append("taken")
        except IntegrityError:
            outcomes.append("refused")

    threads = [threading.Thread(target=insert, args=(round_id,)) for round_id in ids[:2]]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join(20)
    assert sorted(outcomes) == ["refused", "taken"]
    with database.run_tx("test") as session:
        assert session.get_one(RunClient, (run_id, client_id)).participations == 1
        assert session.get_one(Run, run_id).manifest["buffered"]["participations"] == 1
