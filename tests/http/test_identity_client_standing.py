"""Approval, revocation, rotation of keys and moves of training clients, over HTTP."""

import base64
from datetime import timedelta
from typing import Any
from uuid import UUID

import pytest
import sqlalchemy as sa
from cryptography.hazmat.primitives.asymmetric.ed25519 import Ed25519PrivateKey
from sqlalchemy.orm import Session
from starlette.testclient import TestClient

from app.budget import ledger
from app.budget.models import Account
from app.core import clock
from app.identity.clients import ROTATION_PREFIX
from app.identity.models import Client, ClientState
from app.identity.roles import Role
from app.runs.models import RunClient
from tests.builders import build_run
from tests.http.accounts import (
    Applicant,
    Caller,
    add_caller,
    add_organisation,
    enrol,
    invite,
    token_form,
)
from tests.http.members import bearer, refusal


def b64(raw: bytes) -> str:
    return base64.urlsafe_b64encode(raw).rstrip(b"=").decode()


def ask_token(api: TestClient, applicant: Applicant, client_id: str) -> Any:
    return api.post("/v1/tokens", data=token_form(applicant.assertion(client_id)))


def token_of(api: TestClient, applicant: Applicant, client_id: str) -> dict[str, str]:
    answer = ask_token(api, applicant, client_id)
    assert answer.status_code == 200, answer.text
    return bearer(answer.json()["access_token"])


def works(api: TestClient, headers: dict[str, str]) -> bool:
    api.app.state.authenticator.suspensions.announce()  # type: ignore[attr-defined]  # as the hub does
    return api.get("/v1/clients", headers=headers).status_code == 200


@pytest.fixture
def admin(session: Session) -> Caller:
    return add_caller(session)


@pytest.fixture
def waiting(api: TestClient, admin: Caller) -> tuple[Applicant, str]:
    """A client of an invitation that asks for approval."""
    applicant = Applicant()
    answer = api.post("/v1/clients", json=applicant.body(invite(api, admin, approval="manual")))
    assert (answer.status_code, answer.json()["state"]) == (201, "pending")
    return applicant, str(answer.json()["client_id"])


def test_a_client_that_waits_gets_no_token_and_a_clear_code(
    api: TestClient, waiting: tuple[Applicant, str]
) -> None:
    assert refusal(ask_token(api, *waiting)) == (403, "client_pending")


def test_a_client_that_waits_is_in_no_run_and_keeps_its_data_set(
    api: TestClient, admin: Caller, waiting: tuple[Applicant, str]
) -> None:
    second = Applicant(population=waiting[0].population)
    answer = api.post("/v1/clients", json=second.body(invite(api, admin)))
    assert refusal(answer) == (409, "population_taken")


def test_a_coordinator_lets_a_client_in(
    api: TestClient, session: Session, admin: Caller, waiting: tuple[Applicant, str]
) -> None:
    coordinator = add_caller(session, Role.COORDINATOR, admin.organisation_id)
    path = f"/v1/clients/{waiting[1]}"
    assert api.post(f"{path}/approve", headers=coordinator.headers).json()["state"] == "active"
    assert works(api, token_of(api, *waiting))
    again = api.post(f"{path}/approve", headers=coordinator.headers)
    assert refusal(again) == (409, "illegal_transition")


@pytest.mark.parametrize("verb", ["approve", "reject", "reinstate", "suspend", "revoke"])
@pytest.mark.parametrize("end", ["rejected", "revoked"])
def test_rejected_and_revoked_are_for_good(
    api: TestClient, session: Session, admin: Caller, waiting: tuple[Applicant, str], *, end: str, verb: str
) -> None:
    path = f"/v1/clients/{waiting[1]}"
    by = {"rejected": "reject", "revoked": "revoke"}[end]
    assert api.post(f"{path}/{by}", headers=admin.headers).json()["state"] == end
    assert refusal(ask_token(api, *waiting)) == (403, "client_revoked")
    answer = api.post(f"{path}/{verb}", headers=admin.headers)
    if verb != by:
        assert refusal(answer) == (409, "illegal_transition")
    assert session.scalars(sa.select(Client.state)).one() is ClientState(end)


def test_reinstating_lets_nobody_in_who_was_not_approved(
    api: TestClient, admin: Caller, waiting: tuple[Applicant, str]
) -> None:
    answer = api.post(f"/v1/clients/{waiting[1]}/reinstate", headers=admin.headers)
    assert refusal(answer) == (409, "illegal_transition")
    assert refusal(ask_token(api, *waiting)) == (403, "client_pending")


def test_a_revoked_clients_running_token_stops(api: TestClient, admin: Caller) -> None:
    applicant, client_id = enrol(api, admin)
    headers = token_of(api, applicant, client_id)
    assert works(api, headers)
    assert api.post(f"/v1/clients/{client_id}/revoke", headers=admin.headers).status_code == 200
    assert not works(api, headers)


def rotation(client_id: str, present: Ed25519PrivateKey, new: Ed25519PrivateKey, **changes: Any) -> Any:
    raw = new.public_key().public_bytes_raw()
    message = ROTATION_PREFIX + client_id.encode() + b"\0" + raw
    return {
        "public_key": b64(raw),
        "proof": b64(present.sign(message)),
        "own_proof": b64(new.sign(message)),
        "overlap_s": 60,
    } | changes


def test_both_keys_sign_until_the_overlap_is_over(api: TestClient, admin: Caller) -> None:
    applicant, client_id = enrol(api, admin)
    follower = Applicant()
    headers = token_of(api, applicant, client_id)
    body = rotation(client_id, applicant.key, follower.key)
    for _lost_answer in range(2):
        answer = api.post(f"/v1/clients/{client_id}/key", json=body, headers=headers)
        assert answer.status_code == 200, answer.text
    assert works(api, token_of(api, applicant, client_id))
    assert works(api, token_of(api, follower, client_id))
    assert works(api, headers)
    with clock.shifted(timedelta(seconds=61)):
        assert refusal(ask_token(api, applicant, client_id)) == (401, "assertion_invalid")
        assert ask_token(api, follower, client_id).status_code == 200


def test_without_overlap_the_former_key_and_its_tokens_end_at_once(api: TestClient, admin: Caller) -> None:
    applicant, client_id = enrol(api, admin)
    follower = Applicant()
    headers = token_of(api, applicant, client_id)
    body = rotation(client_id, applicant.key, follower.key, overlap_s=0)
    assert api.post(f"/v1/clients/{client_id}/key", json=body, headers=headers).status_code == 200
    assert not works(api, headers)
    assert refusal(ask_token(api, applicant, client_id)) == (401, "assertion_invalid")
    assert works(api, token_of(api, follower, client_id))


def test_a_stolen_token_alone_rotates_nothing(api: TestClient, session: Session, admin: Caller) -> None:
    applicant, client_id = enrol(api, admin)
    headers = token_of(api, applicant, client_id)
    thief, other = Ed25519PrivateKey.generate(), Ed25519PrivateKey.generate()
    elsewhere = rotation("01976c5e-8d2b-7c3a-9f4e-2b6d1a0c9e77", applicant.key, thief)
    for body in (
        rotation(client_id, thief, thief),
        rotation(client_id, applicant.key, thief, own_proof=b64(other.sign(b"x"))),
        rotation(client_id, applicant.key, thief, proof=b64(applicant.key.sign(b"x"))),
        elsewhere,
    ):
        answer = api.post(f"/v1/clients/{client_id}/key", json=body, headers=headers)
        assert refusal(answer) == (401, "rotation_proof_invalid")
    assert session.scalars(sa.select(Client.public_key)).one() == applicant.raw


def test_a_key_that_anybody_has_or_had_is_taken_by_nobody_else(api: TestClient, admin: Caller) -> None:
    one, one_id = enrol(api, admin)
    two, two_id = enrol(api, admin)
    headers = token_of(api, one, one_id)
    taken = rotation(one_id, one.key, two.key)
    answer = api.post(f"/v1/clients/{one_id}/key", json=taken, headers=headers)
    assert refusal(answer) == (409, "key_taken")
    follower = Applicant()
    body = rotation(one_id, one.key, follower.key)
    assert api.post(f"/v1/clients/{one_id}/key", json=body, headers=headers).status_code == 200
    former = rotation(two_id, two.key, one.key)
    answer = api.post(f"/v1/clients/{two_id}/key", json=former, headers=token_of(api, two, two_id))
    assert refusal(answer) == (409, "key_taken")
    again = api.post("/v1/clients", json=one.body(invite(api, admin)))
    assert refusal(again) == (409, "key_taken")


def test_an_unused_client_moves_with_its_terms_and_its_tokens_end(
    api: TestClient, session: Session, admin: Caller
) -> None:
    applicant, client_id = enrol(api, admin)
    headers, there = token_of(api, applicant, client_id), add_organisation(session)
    body = {"organisation_id": str(there.id)}
    answer = api.post(f"/v1/clients/{client_id}/move", json=body, headers=admin.headers)
    assert (answer.status_code, answer.json()["organisation_id"]) == (200, str(there.id))
    assert not works(api, headers)
    assert works(api, token_of(api, applicant, client_id))
    owners = session.execute(sa.select(Account.organisation_id, Account.client_id)).all()
    assert sorted(owners, key=str) == sorted(
        [(admin.organisation_id, None), (there.id, UUID(client_id))], key=str
    )


@pytest.mark.parametrize("used", ["reserved", "spent"])
def test_a_client_with_spent_or_reserved_budget_stays(
    api: TestClient, session: Session, admin: Caller, used: str
) -> None:
    _applicant, client_id = enrol(api, admin)
    account = session.scalars(sa.select(Account.id)).one()
    ledger.reserve(session, account, ref="r", amount=5, delta_amount=0, event={}, actor="test")
    if used == "spent":
        ledger.spend(
            session, account, ref="s", reserve_ref="r", amount=5, delta_amount=0, event={}, actor="test"
        )
    body = {"organisation_id": str(add_organisation(session).id)}
    answer = api.post(f"/v1/clients/{client_id}/move", json=body, headers=admin.headers)
    assert refusal(answer) == (409, "budget_stays")
    assert session.scalars(sa.select(Client.organisation_id)).one() == admin.organisation_id


def test_a_client_of_a_run_stays(api: TestClient, session: Session, admin: Caller) -> None:
    _applicant, client_id = enrol(api, admin)
    run = build_run(session, clients=0)
    session.add(RunClient(run_id=run.id, client_id=UUID(client_id)))
    session.flush()
    body = {"organisation_id": str(add_organisation(session).id)}
    answer = api.post(f"/v1/clients/{client_id}/move", json=body, headers=admin.headers)
    assert refusal(answer) == (409, "client_in_runs")
