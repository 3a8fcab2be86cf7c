"""Updates of buffered runs: which buffer takes them, from which adapter, how often, and at what charge."""

from __future__ import annotations

import base64
from typing import Any
from uuid import UUID

import pytest
import sqlalchemy as sa
from httpx2 import Response
from sqlalchemy.orm import Session
from starlette.testclient import TestClient

from app.budget.queries import account_of_client
from app.core.ids import new_id
from app.core.settings import Settings
from app.identity.keys import ensure_signing_keys
from app.rounds import lifecycle
from app.rounds.queries import rounds_of
from app.rounds.states import RoundState
from app.runs import service as runs
from app.runs.models import RunClient
from app.updates.models import Update, UpdateState
from tests.federation import Federation, sha256_of, update_file
from tests.http.accounts import VAULT, client_headers

FIRST, BOTH = 2_500_000_000, 3_900_000_000
"""Nano-epsilon of one and of two updates, by the federation's price."""


class Buffers:
    """A running federation of two clients with buffers of one update, two updates a client at most."""

    def __init__(self, api: TestClient, federation: Federation, *, staleness: int = 1) -> None:
        self.api, self.federation = api, federation
        ensure_signing_keys(federation.session, VAULT)
        self.run = federation.running(
            buffered={"participations": 2, "staleness": staleness},
            quorum={"min_updates": 1, "max_updates": 1},
            rounds=3,
        )
        self.body = update_file(self.run.manifest)

    def send(
        self,
        number: int,
        *,
        client: int = 0,
        base: int | str | None,
        update_id: UUID | None = None,
        body: bytes | None = None,
    ) -> Response:
        """PUT an update into the run's round of this number; another body than the announced one breaks."""
        digest = base64.b64encode(bytes.fromhex(sha256_of(self.body))).decode()
        headers = {"Content-Type": "application/octet-stream", "Content-Digest": f"sha-256=:{digest}:"}
        round_ = rounds_of(self.federation.session, self.run.id)[number - 1]
        return self.api.put(
            f"/v1/rounds/{round_.id}/updates/{update_id or new_id()}",
            content=self.body if body is None else body,
            headers=self.headers(client) | headers | ({} if base is None else {"DPFL-Base-Round": str(base)}),
        )

    def headers(self, client: int) -> dict[str, str]:
        return client_headers(self.api.app, self.federation.principal(client))

    def publish(self) -> None:
        """Let the buffer that is full become a release, and the next one open."""
        session = self.federation.session
        round_ = next(row for row in rounds_of(session, self.run.id) if row.state is RoundState.SEALED)
        lifecycle.begin_aggregation(session, round_.id, actor="test")
        lifecycle.record_candidate(
            session, round_.id, candidate_sha256=f"{round_.number}" * 64, device="cpu", actor="test"
        )
        lifecycle.publish(session, round_.id, actor="test")
        session.expire_all()
        runs.after_publish(session, self.run.id, actor="test", region=None)

    def assigned(self, client: int) -> list[int]:
        answer = self.api.get("/v1/assignments", headers=self.headers(client)).json()
        return [one["number"] for one in answer["items"]]

    def spent(self, client: int = 0) -> int:
        return account_of_client(self.federation.session, self.federation.clients[client].id).spent

    def begun(self, client: int = 0) -> int:
        """Updates of a client that the database counted."""
        key = (self.run.id, self.federation.clients[client].id)
        return self.federation.session.get_one(RunClient, key, populate_existing=True).participations

    def row(self, update_id: UUID) -> Update:
        return self.federation.session.get_one(Update, update_id, populate_existing=True)


@pytest.fixture
def buffers(api: TestClient, session: Session, settings: Settings) -> Buffers:
    return Buffers(api, Federation(session, settings))


def code(answer: Response) -> tuple[int, str]:
    return answer.status_code, answer.json().get("code")


def test_a_late_update_goes_to_the_next_buffer_and_is_charged_for_the_round_that_it_trained(
    buffers: Buffers,
) -> None:
    buffers.send(1, client=1, base=1)
    update_id = new_id()
    assert code(buffers.send(1, base=1, update_id=update_id)) == (409, "round_closed")
    assert (buffers.spent(), buffers.begun()) == (0, 0)
    buffers.publish()
    answer = buffers.send(2, base=1, update_id=update_id)
    assert answer.status_code == 201, answer.text
    row, rounds = buffers.row(update_id), rounds_of(buffers.federation.session, buffers.run.id)
    assert (row.round_id, row.base_round_id) == (rounds[1].id, rounds[0].id)
    assert rounds[1].state is RoundState.SEALED
    assert (buffers.spent(), buffers.begun()) == (FIRST, 1)


def test_an_update_whose_upload_broke_moves_on_with_its_bytes_and_is_charged_once(buffers: Buffers) -> None:
    update_id = new_id()
    assert code(buffers.send(1, base=1, update_id=update_id, body=b"x" * len(buffers.body)))[0] == 422
    assert (buffers.row(update_id).state, buffers.spent()) == (UpdateState.RECEIVING, FIRST)
    buffers.send(1, client=1, base=1)
    buffers.publish()
    assert buffers.send(2, base=1, update_id=update_id).status_code == 201
    assert buffers.row(update_id).state is UpdateState.RECEIVED
    assert (buffers.spent(), buffers.begun()) == (FIRST, 1)


def test_an_update_that_is_there_gets_its_receipt_from_every_later_buffer(buffers: Buffers) -> None:
    update_id = new_id()
    first = buffers.send(1, base=1, update_id=update_id)
    buffers.publish()
    again = buffers.send(2, base=1, update_id=update_id)
    assert (again.status_code, again.json()) == (200, first.json())
    assert buffers.row(update_id).round_id == rounds_of(buffers.federation.session, buffers.run.id)[0].id


def test_an_update_from_too_old_an_adapter_is_refused_and_not_charged(
    api: TestClient, session: Session, settings: Settings
) -> None:
    buffers = Buffers(api, Federation(session, settings), staleness=0)
    buffers.send(1, client=1, base=1)
    buffers.publish()
    assert code(buffers.send(2, base=1)) == (409, "update_too_stale")
    assert (buffers.spent(), buffers.begun()) == (0, 0)
    assert buffers.send(2, base=2).status_code == 201


def test_one_adapter_gives_one_update_whichever_buffer_it_goes_to(buffers: Buffers) -> None:
    buffers.send(1, base=1)
    buffers.publish()
    assert code(buffers.send(2, base=1)) == (409, "update_conflict")
    assert (buffers.spent(), buffers.begun()) == (FIRST, 1)


def test_a_client_that_has_sent_all_it_may_is_asked_no_more_and_charged_no_more(buffers: Buffers) -> None:
    for number in (1, 2):
        assert buffers.assigned(0) == [number]
        assert buffers.send(number, base=number).status_code == 201
        buffers.publish()
    assert (buffers.assigned(0), buffers.assigned(1)) == ([], [3])
    assert code(buffers.send(3, base=3)) == (409, "participations_used")
    assert (buffers.spent(), buffers.begun()) == (BOTH, 2)


@pytest.mark.parametrize("base", [None, 2, 9, "one", "-1", "1" * 9])
def test_an_update_has_to_name_an_adapter_that_it_can_come_from(
    buffers: Buffers, base: int | str | None
) -> None:
    assert code(buffers.send(1, base=base)) == (422, "base_invalid")
    assert (buffers.spent(), buffers.begun()) == (0, 0)


def test_without_buffers_a_round_takes_updates_of_its_own_adapter_alone(
    api: TestClient, session: Session, settings: Settings
) -> None:
    federation = Federation(session, settings)
    ensure_signing_keys(session, VAULT)
    run = federation.running()
    digest = base64.b64encode(bytes.fromhex(sha256_of(update_file(run.manifest)))).decode()
    headers: dict[str, Any] = client_headers(api.app, federation.principal()) | {
        "Content-Type": "application/octet-stream",
        "Content-Digest": f"sha-256=:{digest}:",
    }
    path = f"/v1/rounds/{federation.round_of(run).id}/updates/{new_id()}"
    body = update_file(run.manifest)
    refused = api.put(path, content=body, headers=headers | {"DPFL-Base-Round": "2"})
    assert code(refused) == (422, "base_invalid")
    assert api.put(path, content=body, headers=headers | {"DPFL-Base-Round": "1"}).status_code == 201
    assert session.scalars(sa.select(Update.base_round_id)).all() == [None]
