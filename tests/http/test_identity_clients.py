"""Enrolment, registration, suspension and access tokens, over HTTP."""

import base64
import json
from concurrent.futures import ThreadPoolExecutor
from datetime import timedelta
from uuid import UUID, uuid4

import pytest
import sqlalchemy as sa
from sqlalchemy.orm import Session
from starlette.testclient import TestClient

from app.budget.enrolment import enrol as enrol_client
from app.core import clock
from app.core.db import Database
from app.core.errors import DomainError
from app.identity import enrolments
from app.identity.capability import Capability
from app.identity.credentials import mint_enrolment_token
from app.identity.enrolments import PROOF_PREFIX, Application
from app.identity.models import Client, Enrolment, Organisation
from app.identity.roles import Principal, Role
from tests.http.accounts import (
    VAULT,
    Applicant,
    add_caller,
    add_organisation,
    client_headers,
    enrol,
    invite,
    token_form,
)


def test_an_enrolment_makes_one_client_with_its_account_and_assessment(
    api: TestClient, session: Session
) -> None:
    admin, applicant = add_caller(session), Applicant()
    token = invite(api, admin, budget={"kind": "basic", "epsilon": 3.0, "delta": 1e-6})
    answer = api.post("/v1/clients", json=applicant.body(token))
    assert answer.status_code == 201
    body = answer.json()
    assert body["organisation_id"] == str(admin.organisation_id)
    assert body["region"] == "eu-west-1"
    assert body["capability"]["assessment"]["max_rank"] == 64
    assert body["capability"]["assessment"]["tier"] == "standard"
    assert body["budget"] == {
        "kind": "basic",
        "unit": "example",
        "population": applicant.population,
        "epsilon": 3.0,
        "delta": 1e-6,
        "order": None,
    }
    seen = api.get(f"/v1/clients/{body['client_id']}", headers=admin.headers).json()
    assert (seen["state"], seen["name"]) == ("active", "mailbox-1")


def test_a_token_is_looked_at_without_being_used(api: TestClient, session: Session) -> None:
    admin = add_caller(session)
    token = invite(api, admin)

    def look(enrolment_token: str) -> tuple[int, str | None]:
        answer = api.post("/v1/enrolments/check", json={"enrolment_token": enrolment_token})
        return answer.status_code, answer.json().get("code") or answer.json()["region"]

    assert [look(token), look(token)] == [(200, "eu-west-1")] * 2
    assert look(token[:-1] + ("a" if token[-1] != "a" else "b")) == (401, "enrolment_unknown")
    assert look(mint_enrolment_token()) == (401, "enrolment_unknown")
    assert api.post("/v1/clients", json=Applicant().body(token)).status_code == 201
    assert look(token) == (409, "enrolment_used")
    late = invite(api, admin)
    session.execute(sa.update(Enrolment).values(expires_at=clock.now() - timedelta(seconds=1)))
    assert look(late) == (409, "enrolment_expired")


@pytest.mark.parametrize(
    ("terms", "status"),
    [
        ({"epsilon": 8.0, "delta": 1e-5}, 201),
        ({"epsilon": 8.1, "delta": 1e-5}, 403),
        ({"epsilon": 8.0, "delta": 2e-5}, 403),
        ({"kind": "renyi", "order": 8.0, "epsilon": 50.0, "delta": 1e-5}, 403),
    ],
)
def test_who_plans_runs_grants_no_more_than_the_default(
    api: TestClient, session: Session, terms: dict[str, object], status: int
) -> None:
    coordinator = add_caller(session, Role.COORDINATOR)
    body = {"organisation_id": str(coordinator.organisation_id), "region": "eu-west-1", "budget": terms}
    assert api.post("/v1/enrolments", json=body, headers=coordinator.headers).status_code == status


def test_without_named_terms_the_servers_default_budget_is_granted(api: TestClient, session: Session) -> None:
    answer = api.post("/v1/clients", json=Applicant().body(invite(api, add_caller(session))))
    assert (answer.json()["budget"]["epsilon"], answer.json()["budget"]["delta"]) == (8.0, 1e-5)


def test_a_used_token_is_refused_to_another_key(api: TestClient, session: Session) -> None:
    token = invite(api, add_caller(session))
    assert api.post("/v1/clients", json=Applicant().body(token)).status_code == 201
    answer = api.post("/v1/clients", json=Applicant().body(token))
    assert (answer.status_code, answer.json()["code"]) == (409, "enrolment_used")
    assert session.scalar(sa.select(sa.func.count(Client.id))) == 1


def test_asking_again_with_the_same_key_finds_the_client_that_was_made(
    api: TestClient, session: Session
) -> None:
    applicant, token = Applicant(), invite(api, add_caller(session))
    first = api.post("/v1/clients", json=applicant.body(token))
    again = api.post("/v1/clients", json=applicant.body(token))
    assert (again.status_code, again.json()) == (201, first.json())


def test_an_expired_token_is_refused_with_the_servers_time(api: TestClient, session: Session) -> None:
    token = invite(api, add_caller(session), expires_in_s=60)
    with clock.shifted(timedelta(seconds=61)):
        answer = api.post("/v1/clients", json=Applicant().body(token))
    assert (answer.status_code, answer.json()["code"]) == (409, "enrolment_expired")
    assert "server_time" in answer.json()


@pytest.mark.parametrize("token", ["dpfl_enrol_" + "A" * 49, "x", "dpfl_enrol_"])
def test_a_token_that_was_never_issued_is_refused(api: TestClient, token: str) -> None:
    answer = api.post("/v1/clients", json=Applicant().body(token))
    assert (answer.status_code, answer.json()["code"]) == (401, "enrolment_unknown")
    assert answer.headers["www-authenticate"].startswith("Bearer")


def test_a_proof_by_another_key_or_over_another_token_is_refused(api: TestClient, session: Session) -> None:
    applicant, token = Applicant(), invite(api, add_caller(session))
    for other in (
        Applicant().body(token)["proof"],
        applicant.body(invite(api, add_caller(session)))["proof"],
        "A" * 86,
    ):
        answer = api.post("/v1/clients", json=applicant.body(token, proof=other))
        assert (answer.status_code, answer.json()["code"]) == (401, "proof_invalid")
    assert api.post("/v1/clients", json=applicant.body(token)).status_code == 201


def test_two_clients_never_share_a_key(api: TestClient, session: Session) -> None:
    admin = add_caller(session)
    applicant, _client_id = enrol(api, admin)
    answer = api.post("/v1/clients", json=applicant.body(invite(api, admin)))
    assert (answer.status_code, answer.json()["code"]) == (409, "key_taken")


def test_a_refused_account_leaves_no_client_and_the_token_unused(api: TestClient, session: Session) -> None:
    admin = add_caller(session)
    first, _client_id = enrol(api, admin)
    token, second = invite(api, admin), Applicant(population=first.population)
    answer = api.post("/v1/clients", json=second.body(token))
    assert (answer.status_code, answer.json()["code"]) == (409, "population_taken")
    assert session.scalar(sa.select(sa.func.count(Client.id))) == 1
    second.population = "another data set"
    assert api.post("/v1/clients", json=second.body(token)).status_code == 201


@pytest.mark.parametrize(
    "change",
    [
        {"public_key": "AAAA"},
        {"public_key": "=" * 43},
        {"proof": "A"},
        {"name": ""},
        {"name": "a\x00b"},
        {"name": "two\nlines"},
        {"name": "x" * 201},
        {"population": ""},
        {"role": "admin"},
        {"capability": {"memory_bytes": True, "cpu_count": 1}},
        {"capability": {"memory_bytes": -1, "cpu_count": 1}},
        {"capability": {"memory_bytes": 2**63, "cpu_count": 1}},
        {"capability": {"memory_bytes": 1, "cpu_count": 1, "software": {"\x00": "1"}}},
        {"capability": {"memory_bytes": 1, "cpu_count": 1, "assessment": {}}},
    ],
    ids=str,
)
def test_a_malformed_registration_is_refused_by_member(api: TestClient, change: dict[str, object]) -> None:
    answer = api.post("/v1/clients", json=Applicant().body("dpfl_enrol_" + "A" * 49, **change))
    assert (answer.status_code, answer.json()["code"]) == (422, "invalid")
    assert answer.headers["content-type"] == "application/problem+json"


def test_of_racing_uses_of_one_token_exactly_one_wins(database: Database) -> None:
    with database.run_tx("test") as session:
        organisation = add_organisation(session)
        admin = Principal(id=uuid4(), organisation_id=organisation.id, role=Role.ADMIN)
        token = enrolments.create_enrolment(
            session,
            admin,
            VAULT,
            organisation_id=organisation.id,
            region="eu-west-1",
            budget={"kind": "basic", "epsilon": 8.0, "delta": 1e-5, "order": None},
            default=(8.0, 1e-5),
            expires_in_s=600,
        ).token

    def race(index: int) -> str:
        applicant = Applicant()
        application = Application(
            token=token,
            name=f"racer {index}",
            public_key=applicant.raw,
            proof=applicant.key.sign(PROOF_PREFIX + token.encode() + b"\0" + applicant.raw),
            capability=Capability(memory_bytes=2**33, cpu_count=2),
        )
        try:
            with database.run_tx("test") as session:
                enrol_client(session, VAULT, application, population=f"data set {index}")
        except DomainError as error:
            return error.code
        return "won"

    with ThreadPoolExecutor(12) as pool:
        results = list(pool.map(race, range(12)))
    assert sorted(results) == ["enrolment_used"] * 11 + ["won"]
    with database.run_tx("test") as session:
        assert session.scalar(sa.select(sa.func.count(Client.id))) == 1
        assert session.scalars(sa.select(Enrolment)).one().used_at is not None


def test_an_assertion_is_exchanged_once_for_a_token_that_works(api: TestClient, session: Session) -> None:
    applicant, client_id = enrol(api, add_caller(session))
    assertion = applicant.assertion(client_id)
    answer = api.post("/v1/tokens", data=token_form(assertion))
    assert answer.status_code == 200
    assert answer.headers["cache-control"] == "no-store"
    token = answer.json()
    assert (token["token_type"], token["expires_in"]) == ("Bearer", 600)
    headers = {"Authorization": f"Bearer {token['access_token']}"}
    assert api.get(f"/v1/clients/{client_id}", headers=headers).json()["id"] == client_id
    again = api.post("/v1/tokens", data=token_form(assertion))
    assert (again.status_code, again.json()["code"]) == (401, "assertion_replayed")


@pytest.mark.parametrize("minutes", [-20, 20])
def test_a_clock_that_is_off_is_answered_with_the_servers_time(
    api: TestClient, session: Session, minutes: int
) -> None:
    applicant, client_id = enrol(api, add_caller(session))
    with clock.shifted(timedelta(minutes=minutes)):
        assertion = applicant.assertion(client_id)
    answer = api.post("/v1/tokens", data=token_form(assertion))
    assert (answer.status_code, answer.json()["code"]) == (401, "clock_skew")
    assert answer.json()["server_time"][:13] == clock.now().isoformat()[:13]
    assert answer.headers["date"].endswith("GMT")


@pytest.mark.parametrize(
    "change",
    [
        {"aud": "http://127.0.0.1:8000"},
        {"aud": ["http://127.0.0.1:8000/v1/tokens"]},
        {"iss": "somebody else"},
        {"sub": "not an id", "iss": "not an id"},
        {"exp": 10**12},
        {"exp": "soon"},
        {"jti": ""},
        {"jti": "a\x00b"},
        {"jti": "x" * 101},
        {"jti": 5},
    ],
    ids=str,
)
def test_an_assertion_with_wrong_claims_is_refused(
    api: TestClient, session: Session, change: dict[str, object]
) -> None:
    applicant, client_id = enrol(api, add_caller(session))
    answer = api.post("/v1/tokens", data=token_form(_signed(applicant, client_id, change)))
    assert (answer.status_code, answer.json()["code"]) == (401, "assertion_invalid")


def _signed(applicant: Applicant, client_id: str, change: dict[str, object]) -> str:
    """Sign claims that PyJWT would refuse to encode, too."""
    good = applicant.assertion(client_id).split(".")
    claims = json.loads(base64.urlsafe_b64decode(good[1] + "==")) | change
    body = f"{good[0]}." + base64.urlsafe_b64encode(json.dumps(claims).encode()).rstrip(b"=").decode()
    signature = base64.urlsafe_b64encode(applicant.key.sign(body.encode())).rstrip(b"=").decode()
    return f"{body}.{signature}"


def test_an_assertion_by_another_key_or_for_an_unknown_client_gets_the_same_answer(
    api: TestClient, session: Session
) -> None:
    _applicant, client_id = enrol(api, add_caller(session))
    stranger = Applicant()
    answers = [
        api.post("/v1/tokens", data=token_form(stranger.assertion(subject)))
        for subject in (client_id, str(uuid4()))
    ]
    seen = [{k: v for k, v in answer.json().items() if k != "request_id"} for answer in answers]
    assert seen[0] == seen[1]
    assert seen[0]["code"] == "assertion_invalid"


def test_a_token_request_of_another_form_is_refused(api: TestClient) -> None:
    form = token_form("a.b.c")
    assert api.post("/v1/tokens", json=form).status_code == 415
    assert api.post("/v1/tokens", data=form | {"grant_type": "password"}).status_code == 422
    assert api.post("/v1/tokens", data=form | {"scope": "all"}).status_code == 422


def test_a_suspended_client_gets_no_token_until_it_is_reinstated(api: TestClient, session: Session) -> None:
    admin = add_caller(session)
    applicant, client_id = enrol(api, admin)
    answer = api.post(f"/v1/clients/{client_id}/suspend", headers=admin.headers)
    assert (answer.status_code, answer.json()["state"]) == (200, "suspended")
    refused = api.post("/v1/tokens", data=token_form(applicant.assertion(client_id)))
    assert (refused.status_code, refused.json()["code"]) == (403, "suspended")
    assert api.post(f"/v1/clients/{client_id}/reinstate", headers=admin.headers).json()["state"] == "active"
    assert api.post("/v1/tokens", data=token_form(applicant.assertion(client_id))).status_code == 200


def test_a_training_client_sees_itself_and_no_other(api: TestClient, session: Session) -> None:
    admin = add_caller(session)
    _first, first_id = enrol(api, admin)
    _second, second_id = enrol(api, admin)
    caller = Principal(id=UUID(first_id), organisation_id=admin.organisation_id, role=Role.CLIENT)
    headers = client_headers(api.app, caller)  # type: ignore[arg-type]  # a FastAPI application
    assert [item["id"] for item in api.get("/v1/clients", headers=headers).json()["items"]] == [first_id]
    assert api.get(f"/v1/clients/{second_id}", headers=headers).status_code == 404
    assert api.post(f"/v1/clients/{first_id}/suspend", headers=headers).status_code == 403


def test_another_organisations_clients_and_enrolments_are_absent(api: TestClient, session: Session) -> None:
    admin = add_caller(session)
    _applicant, client_id = enrol(api, admin)
    stranger = add_caller(session, Role.COORDINATOR)
    assert api.get(f"/v1/clients/{client_id}", headers=stranger.headers).status_code == 404
    assert api.post(f"/v1/clients/{client_id}/suspend", headers=stranger.headers).status_code == 404
    for path in ("/v1/clients", "/v1/enrolments"):
        assert api.get(path, headers=stranger.headers).json() == {"items": [], "next_cursor": None}
    body = {"organisation_id": str(admin.organisation_id), "region": "eu-west-1"}
    assert api.post("/v1/enrolments", json=body, headers=stranger.headers).status_code == 404


def test_listing_enrolments_shows_no_token(api: TestClient, session: Session) -> None:
    admin = add_caller(session)
    token = invite(api, admin)
    listed = api.get("/v1/enrolments", headers=admin.headers)
    assert listed.json()["items"][0]["used_at"] is None
    assert token not in listed.text
    assert "token" not in listed.json()["items"][0]


@pytest.mark.parametrize(
    ("terms", "status", "code"),
    [
        ({"kind": "renyi", "order": 2.0, "epsilon": 8.0, "delta": 1e-5}, 422, "ceiling_not_positive"),
        ({"kind": "renyi", "order": 1.0001, "epsilon": 8.0, "delta": 0.9}, 422, "ceiling_not_positive"),
        ({"kind": "renyi", "order": 1.01, "epsilon": 4.925948, "delta": 1e-5}, 422, "ceiling_not_positive"),
        ({"kind": "renyi", "epsilon": 8.0, "delta": 1e-5}, 422, "invalid"),
        ({"kind": "renyi", "order": 8.0, "epsilon": 8.0}, 422, "invalid"),
        ({"kind": "basic", "order": 8.0, "epsilon": 8.0, "delta": 1e-5}, 422, "invalid"),
        ({"kind": "basic", "epsilon": 1e-10, "delta": 1e-5}, 422, "amount_invalid"),
        ({"kind": "basic", "epsilon": 8.0, "delta": 1e-19}, 422, "amount_invalid"),
        ({"kind": "renyi", "order": 8.0, "epsilon": 8.0, "delta": 1e-5}, 201, None),
    ],
    ids=str,
)
def test_terms_that_no_run_could_be_paid_from_are_refused_before_anybody_is_invited(
    api: TestClient, session: Session, terms: dict[str, object], status: int, code: str | None
) -> None:
    admin = add_caller(session)
    body = {"organisation_id": str(admin.organisation_id), "region": "eu-west-1", "budget": terms}
    answer = api.post("/v1/enrolments", json=body, headers=admin.headers)
    assert (answer.status_code, answer.json().get("code")) == (status, code), answer.text
    issued = session.scalar(sa.select(sa.func.count(Enrolment.id)))
    assert issued == (1 if status == 201 else 0)


def test_an_invitation_above_the_organisations_ceiling_is_refused(api: TestClient, session: Session) -> None:
    admin = add_caller(session)
    session.get_one(Organisation, admin.organisation_id).epsilon_ceiling = 4.0
    session.flush()
    body = {"organisation_id": str(admin.organisation_id), "region": "eu-west-1"}
    answer = api.post("/v1/enrolments", json=body, headers=admin.headers)
    assert (answer.status_code, answer.json()["code"]) == (409, "ceiling_over_organisation")
