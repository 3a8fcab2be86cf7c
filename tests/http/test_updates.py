"""Uploading an update: every way in which it can be wrong, what stays spent, and what is charged once."""

import base64
import json
import struct
from collections.abc import Iterator
from contextlib import ExitStack
from pathlib import Path
from typing import Any
from uuid import UUID, uuid4

import pytest
import sqlalchemy as sa
from httpx2 import Response
from sqlalchemy.orm import Session
from starlette.testclient import TestClient

from app.budget.queries import account_of_client
from app.core.ids import new_id
from app.core.settings import Settings
from app.identity.keys import ensure_signing_keys
from app.identity.models import ClientState
from app.identity.roles import Role
from app.jobs.models import Job
from app.rounds import lifecycle
from app.rounds.models import Round
from app.rounds.states import RoundState
from app.runs import service as runs
from app.updates import router, stream
from app.updates.disclaimers import statement_of
from app.updates.models import Update, UpdateState
from tests.builders import build_account, build_client, principal_of
from tests.federation import NOTHING, OPEN_PRIVACY, Federation, sha256_of, update_file
from tests.http.accounts import VAULT, add_caller, client_headers


class Seat:
    """The first client of a running federation, at its keyboard."""

    def __init__(self, api: TestClient, federation: Federation, **run: object) -> None:
        self.api, self.federation = api, federation
        ensure_signing_keys(federation.session, VAULT)
        self.run = federation.running(**run)
        self.round: Round = federation.round_of(self.run)
        self.body = update_file(self.run.manifest)
        self.update_id = new_id()

    def headers(self, number: int = 0) -> dict[str, str]:
        return client_headers(self.api.app, self.federation.principal(number))

    def put(
        self,
        body: bytes | None = None,
        *,
        number: int = 0,
        update_id: UUID | None = None,
        round_id: UUID | None = None,
        declared: bytes | None = None,
        **headers: str,
    ) -> Response:
        content = self.body if body is None else body
        digest = base64.b64encode(bytes.fromhex(sha256_of(content if declared is None else declared)))
        return self.api.put(
            f"/v1/rounds/{round_id or self.round.id}/updates/{update_id or self.update_id}",
            content=content,
            headers=self.headers(number)
            | {"Content-Type": "application/octet-stream", "Content-Digest": f"sha-256=:{digest.decode()}:"}
            | {name.replace("_", "-"): value for name, value in headers.items()},
        )

    @property
    def spent(self) -> int:
        return account_of_client(self.federation.session, self.federation.clients[0].id).spent

    def row(self) -> Update | None:
        session = self.federation.session
        return session.scalar(
            sa.select(Update)
            .where(Update.round_id == self.round.id, Update.client_id == self.federation.clients[0].id)
            .execution_options(populate_existing=True)
        )

    @property
    def blobs(self) -> list[Path]:
        folder = self.api.app.state.blobs.store.folder
        return [path for path in folder.rglob("*") if path.is_file()]


@pytest.fixture
def seat(api: TestClient, session: Session, settings: Settings) -> Iterator[Seat]:
    return Seat(api, Federation(session, settings))


def code(answer: Response) -> tuple[int, str]:
    assert answer.headers["content-type"] == "application/problem+json", answer.text
    return answer.status_code, answer.json()["code"]


def test_an_update_of_another_rounds_client_finds_no_such_round(seat: Seat) -> None:
    stranger = build_client(seat.federation.session)
    answer = seat.api.put(
        f"/v1/rounds/{seat.round.id}/updates/{new_id()}",
        content=seat.body,
        headers=client_headers(seat.api.app, principal_of(stranger))
        | {"Content-Type": "application/octet-stream", "Content-Digest": "sha-256=:" + "A" * 43 + "=:"},
    )
    assert code(answer) == (404, "not_found")


def test_an_update_for_a_round_that_does_not_exist_is_not_found(seat: Seat) -> None:
    assert code(seat.put(round_id=uuid4())) == (404, "not_found")


def test_another_media_type_is_refused(seat: Seat) -> None:
    assert code(seat.put(Content_Type="application/json")) == (415, "unsupported_media_type")


@pytest.mark.parametrize(
    "digest", ["", "sha-256=abc", "sha-512=:AAAA:", "sha-256=:AAAA:", "sha-256=:" + "!" * 43 + "=:"]
)
def test_a_missing_or_malformed_digest_is_refused_and_costs_nothing(seat: Seat, digest: str) -> None:
    assert code(seat.put(Content_Digest=digest)) == (400, "digest_missing")
    assert seat.spent == 0


@pytest.mark.parametrize("length", ["", "-1", "ten", "1e3", "9" * 20])
def test_an_unusable_length_is_refused_and_costs_nothing(seat: Seat, length: str) -> None:
    assert code(seat.put(Content_Length=length)) == (400, "length_required")
    assert seat.spent == 0


def test_an_oversized_body_is_refused_on_its_headers_and_costs_nothing(seat: Seat) -> None:
    assert code(seat.put(seat.body + bytes(70_000))) == (413, "update_too_big")
    assert (seat.spent, seat.row(), seat.blobs) == (0, None, [])


def test_a_body_too_short_for_the_tensors_is_refused_on_its_headers_and_costs_nothing(seat: Seat) -> None:
    assert code(seat.put(seat.body[:40])) == (422, "size_mismatch")
    assert (seat.spent, seat.row()) == (0, None)


def test_an_upload_to_a_round_that_is_not_open_is_refused_and_costs_nothing(seat: Seat) -> None:
    lifecycle.abort(seat.federation.session, seat.round.id, code="test", reason="r", actor="test")
    assert code(seat.put()) == (409, "round_closed")
    assert (seat.spent, seat.row()) == (0, None)


def test_bytes_that_come_whole_after_the_round_was_closed_are_refused_and_deleted_soon(
    seat: Seat, monkeypatch: pytest.MonkeyPatch
) -> None:
    session = seat.federation.session

    async def receive_while_it_is_aborted(*args: Any, **options: Any) -> None:
        await stream.receive(*args, **options)
        lifecycle.abort(session, seat.round.id, code="test", reason="r", actor="test")

    monkeypatch.setattr(router, "receive", receive_while_it_is_aborted)
    assert code(seat.put()) == (409, "round_closed")
    row = seat.row()
    assert row is not None
    assert (row.state, seat.spent) == (UpdateState.RECEIVING, 2_500_000_000)
    purges = session.scalars(sa.select(Job.key).where(Job.kind == "purge").order_by(Job.id)).all()
    assert purges == [str(seat.round.id), f"{seat.round.id}:{seat.update_id}"]


def test_other_bytes_than_announced_are_refused_and_stay_spent(seat: Seat) -> None:
    other = update_file(seat.run.manifest, fill=1)
    assert code(seat.put(other, declared=seat.body)) == (422, "digest_mismatch")
    row = seat.row()
    assert row is not None
    assert (row.state, seat.spent, seat.blobs) == (UpdateState.RECEIVING, 2_500_000_000, [])


def with_header(body: bytes, old: bytes, new: bytes) -> bytes:
    (length,) = struct.unpack("<Q", body[:8])
    header = body[8 : 8 + length].replace(old, new)
    return struct.pack("<Q", len(header)) + header + body[8 + length :]


@pytest.mark.parametrize(
    ("old", "new"),
    [
        (b"classifier", b"classifies"),
        (b"[2, 4]", b"[4, 2]"),
        (b'{"base', b'{"base_model.model.classifier.weight": 1, "base'),
        (b'{"base', b'["base'),
        (b"[0, 32]", b"[4, 36]"),
    ],
)
def test_a_file_that_is_not_the_manifests_is_refused_and_nothing_of_it_is_kept(
    seat: Seat, old: bytes, new: bytes
) -> None:
    broken = with_header(seat.body, old, new)
    assert broken != seat.body
    assert code(seat.put(broken)) == (422, "update_malformed")
    assert (seat.spent, seat.blobs) == (2_500_000_000, [])


@pytest.mark.parametrize("dtype", [b"F16", b"I32", b"I64"])
def test_another_type_than_the_wire_dtype_is_refused_with_its_own_code(seat: Seat, dtype: bytes) -> None:
    broken = with_header(seat.body, b"F32", dtype)
    assert code(seat.put(broken)) == (422, "update_dtype")
    assert (seat.spent, seat.blobs) == (2_500_000_000, [])


def test_a_good_update_is_receipted_with_its_digest_and_the_account(seat: Seat) -> None:
    answer = seat.put()
    assert answer.status_code == 201, answer.text
    receipt = answer.json()
    assert receipt["sha256"] == sha256_of(seat.body)
    assert (receipt["state"], receipt["size_bytes"]) == ("received", len(seat.body))
    account = receipt["account"]
    assert (account["amounts"]["spent"], account["amounts"]["reserved"]) == (2.5, 1.4)
    assert account["delta_amounts"]["spent"] == 1e-5
    (path,) = seat.blobs
    assert sha256_of(seat.body) not in str(path)
    assert seat.body[-64:] not in path.read_bytes()
    assert (
        seat.api.app.state.blobs.of(seat.federation.organisation.id).read(sha256_of(seat.body)) == seat.body
    )


def test_the_same_bytes_again_are_the_same_receipt_and_are_charged_once(seat: Seat) -> None:
    first = seat.put()
    again = seat.put()
    assert (first.status_code, again.status_code) == (201, 200)
    assert first.json() == again.json()
    assert seat.spent == 2_500_000_000


def test_the_receipt_is_given_again_after_the_round_was_sealed(seat: Seat) -> None:
    first = seat.put()
    assert seat.put(number=1, update_id=new_id()).status_code == 201
    seat.federation.session.refresh(seat.round)
    assert seat.round.state is RoundState.SEALED
    again = seat.put()
    assert (again.status_code, again.json()["sha256"]) == (200, first.json()["sha256"])


def test_other_bytes_after_a_receipt_are_a_conflict(seat: Seat) -> None:
    seat.put()
    assert code(seat.put(update_file(seat.run.manifest, fill=1))) == (409, "update_conflict")


def test_another_id_for_the_same_round_is_a_conflict_even_with_the_same_bytes(seat: Seat) -> None:
    seat.put()
    assert code(seat.put(update_id=new_id())) == (409, "update_conflict")


def test_another_clients_id_is_a_conflict_that_tells_nothing(seat: Seat) -> None:
    seat.put()
    answer = seat.put(number=1)
    assert code(answer) == (409, "update_conflict")
    assert str(seat.federation.clients[0].id) not in answer.text


def test_a_broken_upload_may_be_sent_again_and_is_not_charged_again(seat: Seat) -> None:
    seat.put(update_file(seat.run.manifest, fill=1), declared=seat.body)
    assert code(seat.put(update_file(seat.run.manifest, fill=2))) == (409, "update_conflict")
    assert seat.put().status_code == 201
    assert seat.spent == 2_500_000_000


def test_a_body_that_ends_early_is_refused_stays_spent_and_may_be_sent_again(seat: Seat) -> None:
    answer = seat.put(seat.body[:-4], declared=seat.body, Content_Length=str(len(seat.body)))
    assert code(answer) == (400, "body_broken")
    assert (seat.spent, seat.blobs) == (2_500_000_000, [])
    assert seat.put().status_code == 201
    assert seat.spent == 2_500_000_000


def test_a_body_that_is_longer_than_announced_is_refused(seat: Seat) -> None:
    answer = seat.put(seat.body + b"xx", declared=seat.body, Content_Length=str(len(seat.body)))
    assert code(answer) == (400, "body_broken")
    assert seat.blobs == []


def test_a_blob_folder_that_is_gone_answers_503_and_the_same_bytes_are_taken_later(seat: Seat) -> None:
    folder = seat.api.app.state.blobs.store.aside
    folder.rmdir()
    assert code(seat.put()) == (503, "unavailable")
    folder.mkdir()
    assert seat.put().status_code == 201
    assert seat.spent == 2_500_000_000


def test_more_bodies_of_one_client_at_once_are_refused_for_the_moment_and_others_are_not(seat: Seat) -> None:
    uploads = seat.api.app.state.uploads
    with ExitStack() as running:
        for _body in range(uploads.MOST):
            running.enter_context(uploads.one(seat.federation.clients[0].id))
        refused = seat.put()
        assert code(refused) == (503, "too_many_uploads")
        assert (refused.headers["retry-after"], seat.blobs) == ("5", [])
        assert seat.put(number=1, update_id=new_id()).status_code == 201
    assert seat.put().status_code == 201
    assert seat.spent == 2_500_000_000


def test_the_last_update_of_the_cohort_seals_the_round_and_queues_its_aggregation_once(seat: Seat) -> None:
    seat.put()
    seat.federation.session.refresh(seat.round)
    assert seat.round.state is RoundState.OPEN
    seat.put(number=1, update_id=new_id())
    seat.federation.session.refresh(seat.round)
    assert seat.round.state is RoundState.SEALED
    jobs = seat.federation.session.scalars(sa.select(Job).where(Job.kind == "aggregate")).all()
    assert [job.key for job in jobs] == [str(seat.round.id)]


def test_an_upload_without_privacy_uses_no_budget(
    api: TestClient, session: Session, settings: Settings
) -> None:
    seat = Seat(api, Federation(session, settings), price=NOTHING, privacy=OPEN_PRIVACY)
    answer = seat.put()
    assert (answer.status_code, answer.json()["account"], seat.spent) == (201, None, 0)


def test_a_client_that_missed_a_round_pays_its_first_update_like_a_first_one(seat: Seat) -> None:
    session = seat.federation.session
    lifecycle.abort(session, seat.round.id, code="deadline_passed", reason="r", actor="test")
    runs.after_abort(session, seat.run.id, code="deadline_passed", reason="r", actor="test")
    runs.resume(session, seat.federation.coordinator, seat.run.id, region=None)
    seat.round = seat.federation.round_of(seat.run, 2)
    assert seat.put().status_code == 201
    assert seat.spent == 2_500_000_000  # the cost of one round, not of the second


def test_a_client_sees_its_own_update_and_nobody_elses(seat: Seat) -> None:
    seat.put()
    path = f"/v1/rounds/{seat.round.id}/updates/{seat.update_id}"
    own = seat.api.get(path, headers=seat.headers())
    assert (own.status_code, own.json()["state"]) == (200, "received")
    assert code(seat.api.get(path, headers=seat.headers(1))) == (404, "not_found")


def test_a_coordinator_sees_where_an_update_is_and_another_organisations_does_not(seat: Seat) -> None:
    seat.put()
    session = seat.federation.session
    path = f"/v1/rounds/{seat.round.id}/updates/{seat.update_id}"
    own = add_caller(session, Role.COORDINATOR, seat.federation.organisation.id)
    assert seat.api.get(path, headers=own.headers).json()["id"] == str(seat.update_id)
    assert code(seat.api.get(path, headers=add_caller(session, Role.COORDINATOR).headers)) == (
        404,
        "not_found",
    )


def test_a_renyi_account_spends_an_equal_share_of_the_divergence_with_each_update(
    api: TestClient, session: Session, settings: Settings
) -> None:
    federation = Federation(session, settings)
    client = build_client(session, federation.organisation)
    build_account(session, client, order=8.0)
    federation.clients[0] = client
    seat = Seat(api, federation)
    assert seat.put().status_code == 201
    account = account_of_client(session, client.id)
    assert (account.spent, account.reserved, account.delta_spent) == (625_000_000, 625_000_000, 0)


def test_a_disclaimer_for_a_run_that_reserved_nothing_is_refused(
    api: TestClient, session: Session, settings: Settings
) -> None:
    seat = Seat(api, Federation(session, settings), price=NOTHING, privacy=OPEN_PRIVACY)
    stop(seat)
    assert code(disclaim(seat)) == (409, "conflict")


def test_a_member_cannot_send_an_update(seat: Seat) -> None:
    answer = seat.api.put(
        f"/v1/rounds/{seat.round.id}/updates/{new_id()}",
        content=b"x",
        headers=client_headers(seat.api.app, seat.federation.coordinator),
    )
    assert answer.status_code in {401, 403}


def disclaim(
    seat: Seat, *, number: int = 0, statement: str | None = None, signer: int | None = None
) -> Response:
    client = seat.federation.clients[number]
    text = statement or statement_of(client.id, seat.run.id)
    key = seat.federation.keys[number if signer is None else signer]
    signature = base64.urlsafe_b64encode(key.sign(text.encode())).rstrip(b"=").decode()
    return seat.api.post(
        f"/v1/runs/{seat.run.id}/disclaimers",
        content=json.dumps({"statement": text, "signature": signature}),
        headers=seat.headers(number) | {"Content-Type": "application/json"},
    )


def stop(seat: Seat) -> None:
    runs.stop(seat.federation.session, seat.federation.coordinator, seat.run.id, reason="enough")


def test_a_client_that_sent_nothing_gets_its_reservation_back_once_the_run_is_over(seat: Seat) -> None:
    assert code(disclaim(seat)) == (409, "run_not_over")
    stop(seat)
    answer = disclaim(seat)
    assert (answer.status_code, answer.json()["amounts"]["reserved"]) == (201, 0.0)
    assert disclaim(seat).status_code == 201
    account = account_of_client(seat.federation.session, seat.federation.clients[0].id)
    assert (account.reserved, account.delta_reserved, account.spent) == (0, 0, 0)


def test_after_any_upload_began_nothing_is_given_back(seat: Seat) -> None:
    seat.put(update_file(seat.run.manifest, fill=1), declared=seat.body)
    stop(seat)
    assert code(disclaim(seat)) == (409, "something_was_sent")


def test_a_disclaimer_needs_the_clients_own_signature_on_the_exact_statement(seat: Seat) -> None:
    stop(seat)
    assert code(disclaim(seat, signer=1)) == (422, "signature_invalid")
    assert code(disclaim(seat, statement="nothing was sent")) == (422, "signature_invalid")
    other = statement_of(seat.federation.clients[1].id, seat.run.id)
    assert code(disclaim(seat, statement=other)) == (422, "signature_invalid")


def test_a_suspended_clients_update_is_refused(seat: Seat) -> None:
    headers = seat.headers()
    seat.federation.clients[0].state = ClientState.SUSPENDED
    seat.federation.session.flush()
    seat.api.app.state.authenticator.suspensions.announce("")
    answer = seat.api.get("/v1/assignments", headers=headers)
    assert answer.status_code in {401, 403}
