"""Rules that hold on every route at once, walked over the application's own description."""

from collections import defaultdict
from datetime import timedelta
from typing import Any
from uuid import UUID, uuid4

import pytest
import sqlalchemy as sa
from fastapi import FastAPI
from sqlalchemy.orm import Session
from starlette.testclient import TestClient

from app.audit.record import Action, record
from app.core import clock
from app.core.ids import new_id
from app.http.deps import Requires
from app.identity.models import ApiKey, Client, MemberSession
from app.identity.permissions import PERMISSIONS
from app.identity.roles import Principal, Role
from app.main import api_routes, declared
from app.policies.rules import Rules
from app.policies.service import set_rules
from app.releases.models import Release
from app.rounds.states import RoundState
from tests.builders import build_account, build_organisation, build_round, build_run, clients_of, principal_of
from tests.http.accounts import Caller, add_caller, client_headers

CERTIFICATE = {"version": 1, "privacy": {"claimed": False}}
OPEN = {
    "POST /v1/tokens",
    "POST /v1/clients",
    "POST /v1/sessions",
    "POST /v1/sessions/refresh",
    "POST /v1/passwords",
    "GET /v1/oidc",
    "GET /v1/oidc/{issuer_name}/authorize",
    "GET /v1/oidc/callback",
    "POST /v1/oidc/token",
    "GET /v1/audit/checkpoint",
    "GET /v1/audit/keys",
    "POST /v1/enrolments/check",
    "GET /v1/audit/proofs/consistency",
    "GET /.well-known/jwks.json",
    "GET /healthz",
    "GET /readyz",
    "GET /metrics",
}
"""What the document says anybody may call: sign-ins of every kind, public keys, health."""
UNDOCUMENTED = {
    "GET /docs",
    "GET /docs/initializer.js",
    "GET /docs/assets/{name}",
    "GET /docs/oauth2-redirect.html",
    "GET /docs/oauth2-redirect.js",
    "GET /openapi.json",
    "GET /problems",
    "GET /problems/{code}",
    "GET /problems/style.css",
}
MEMBERS = [role for role in Role if role is not Role.CLIENT]


def gateway(api: TestClient) -> FastAPI:
    assert isinstance(api.app, FastAPI)
    return api.app


def guarded(app: FastAPI) -> list[tuple[str, str, str]]:
    """Every (method, path, permission) that needs credentials."""
    return [
        (method, str(route.path_format), rule.permission)
        for route in api_routes(app)
        for rule in declared(route)
        if isinstance(rule, Requires)
        for method in sorted(route.methods or ())
    ]


def example(document: dict[str, Any], method: str, path: str) -> dict[str, Any]:
    """The arguments of a request with the documented example as its body."""
    content = document["paths"][path][method.lower()].get("requestBody", {}).get("content", {})
    if "application/json" not in content:
        return {}
    name = content["application/json"]["schema"]["$ref"].rsplit("/", 1)[1]
    return {"json": document["components"]["schemas"][name]["examples"][0]}


def filled(path: str, ids: dict[str, Any]) -> str:
    """The path with these ids, with ids of nothing for the rest, and with the first version of anything."""
    return path.format_map(defaultdict(uuid4, {"version": 1} | ids))


@pytest.fixture
def strangers(session: Session) -> dict[str, Any]:
    """One of everything, in an organisation that no caller of these tests belongs to."""
    run = build_run(session)
    row = build_round(session, RoundState.PUBLISHED, run=run, updates=1)
    client = session.get_one(Client, clients_of(session, run)[0])
    release = Release(
        run_id=run.id,
        round_id=row.id,
        organisation_id=run.organisation_id,
        number=1,
        adapter_sha256="0" * 64,
        size_bytes=1,
        adapter_config={},
        certificate=CERTIFICATE,
    )
    session.add(release)
    session.flush()
    owner = add_caller(session, Role.VIEWER, run.organisation_id)
    signed_in = MemberSession(
        member_id=owner.principal.id,
        method="password",
        second_factor=False,
        expires_at=clock.now() + timedelta(hours=1),
    )
    session.add(signed_in)
    session.flush()
    set_rules_elsewhere(session, run.organisation_id)
    key = session.scalars(sa.select(ApiKey.id).where(ApiKey.member_id == owner.principal.id)).one()
    return {
        "run_id": run.id,
        "round_id": row.id,
        "client_id": client.id,
        "release_id": release.id,
        "account_id": build_account(session, client),
        "api_key_id": key,
        "organisation_id": run.organisation_id,
        "entry_id": note_elsewhere(session, run.organisation_id),
        "member_id": owner.principal.id,
        "session_id": signed_in.id,
    }


def set_rules_elsewhere(session: Session, organisation_id: UUID) -> None:
    """The first version of the organisation's data rules."""
    steward = Principal(id=new_id(), organisation_id=organisation_id, role=Role.DATA_STEWARD)
    set_rules(session, steward, organisation_id, rules=Rules(smallest_cohort=3))


def note_elsewhere(session: Session, organisation_id: UUID) -> UUID:
    """What somebody of the organisation did."""
    return record(
        session,
        action=Action.JOB_RETRIED,
        actor=f"member:{new_id()}",
        organisation_id=organisation_id,
        subject=f"organisation:{organisation_id}",
    )


def test_without_credentials_every_guarded_route_answers_401(api: TestClient) -> None:
    document = gateway(api).openapi()
    routes = guarded(gateway(api))
    assert len(routes) > 30
    for method, path, _permission in routes:
        answer = api.request(method, filled(path, {}), **example(document, method, path))
        assert (answer.status_code, answer.json()["code"]) == (401, "unauthorized"), (method, path)


def test_what_needs_no_credentials_is_on_this_list_and_nothing_else(api: TestClient) -> None:
    """Over the application's routes and over the document alike: there is no third kind."""
    app = gateway(api)
    needing = {(method, path) for method, path, _permission in guarded(app)}
    routes = {(method, str(route.path_format)) for route in api_routes(app) for method in route.methods or ()}
    assert {f"{method} {path}" for method, path in routes - needing} == OPEN | UNDOCUMENTED
    document = app.openapi()["paths"]
    documented = {(method.upper(), path) for path, item in document.items() for method in item}
    assert {f"{method} {path}" for method, path in documented - needing} == OPEN
    assert documented >= needing
    secured = {
        (method.upper(), path)
        for path, item in document.items()
        for method, operation in item.items()
        if operation.get("security")
    }
    assert secured == needing


def test_every_method_of_every_path_without_credentials_is_401_405_or_on_the_list(api: TestClient) -> None:
    document = gateway(api).openapi()
    for path in document["paths"]:
        for method in ("GET", "POST", "PUT", "PATCH", "DELETE"):
            if f"{method} {path}" in OPEN:
                continue
            answer = api.request(method, filled(path, {}), **_body(document, method, path))
            assert answer.status_code in {401, 405}, (method, path, answer.text)


def test_a_method_that_a_path_does_not_answer_is_405_with_all_that_it_does(api: TestClient) -> None:
    document = gateway(api).openapi()
    for path, item in document["paths"].items():
        answer = api.request("PATCH", filled(path, {}))
        allowed = answer.headers["allow"].split(", ")
        assert (answer.status_code, allowed) == (405, sorted(method.upper() for method in item)), path


def test_a_path_beside_ids_is_not_taken_for_one(api: TestClient) -> None:
    answer = api.delete("/v1/sessions/refresh")
    assert (answer.status_code, answer.headers["allow"]) == (405, "POST")


def _body(document: dict[str, Any], method: str, path: str) -> dict[str, Any]:
    return example(document, method, path) if method.lower() in document["paths"][path] else {}


@pytest.mark.parametrize("role", MEMBERS)
def test_a_role_without_the_permission_gets_403_and_its_name(
    api: TestClient, session: Session, strangers: dict[str, Any], role: Role
) -> None:
    document, caller = gateway(api).openapi(), add_caller(session, role)
    for method, path, permission in guarded(gateway(api)):
        if role in PERMISSIONS[permission]:
            continue
        answer = api.request(
            method, filled(path, strangers), headers=caller.headers, **example(document, method, path)
        )
        assert (answer.status_code, answer.json()["permission"]) == (403, permission), (method, path)


@pytest.mark.parametrize("role", [role for role in MEMBERS if role is not Role.ADMIN])
def test_another_organisations_objects_are_absent_to_every_role(
    api: TestClient, session: Session, strangers: dict[str, Any], role: Role
) -> None:
    caller: Caller = add_caller(session, role)
    check_absent(api, caller.headers, role, strangers)


def test_other_clients_objects_are_absent_to_a_training_client(
    api: TestClient, session: Session, strangers: dict[str, Any]
) -> None:
    elsewhere = build_run(session)
    client = session.get_one(Client, clients_of(session, elsewhere)[0])
    check_absent(api, client_headers(gateway(api), principal_of(client)), Role.CLIENT, strangers)


def check_absent(api: TestClient, headers: dict[str, str], role: Role, ids: dict[str, Any]) -> None:
    document, asked = gateway(api).openapi(), 0
    for method, path, permission in guarded(gateway(api)):
        if role not in PERMISSIONS[permission] or "{" not in path:
            continue
        sent = headers
        if method == "PUT" and "/updates/" in path:
            sent = headers | {
                "Content-Type": "application/octet-stream",
                "Content-Digest": "sha-256=:X48E9qOokqqrvdts8nOJRJN3OWDUoyWxBf7kbu9DBPE=:",
                "Content-Length": "10",
            }
        answer = api.request(method, filled(path, ids), headers=sent, **example(document, method, path))
        assert (answer.status_code, answer.json()["code"]) == (404, "not_found"), (method, path, answer.text)
        asked += 1
    assert asked >= 10


@pytest.mark.parametrize("role", [*MEMBERS, Role.CLIENT])
def test_lists_hold_nothing_of_another_organisation(
    api: TestClient, session: Session, strangers: dict[str, Any], role: Role
) -> None:
    if role is Role.ADMIN:
        headers = add_caller(session, role, strangers["organisation_id"]).headers
    elif role is Role.CLIENT:
        client = session.get_one(
            Client, clients_of(session, build_run(session, organisation=build_organisation(session)))[0]
        )
        headers = client_headers(gateway(api), principal_of(client))
    else:
        headers = add_caller(session, role).headers
    for method, path, permission in guarded(gateway(api)):
        if method != "GET" or "{" in path or role not in PERMISSIONS[permission]:
            continue
        text = api.get(path, headers=headers).text
        found = [name for name, value in strangers.items() if str(value) in text]
        assert role is Role.ADMIN or found == [], (path, found)


def test_every_documented_example_is_a_valid_body(api: TestClient, session: Session) -> None:
    document, admin = gateway(api).openapi(), add_caller(session)
    for method, path, permission in guarded(gateway(api)):
        body = example(document, method, path)
        if not body or Role.ADMIN not in PERMISSIONS[permission]:
            continue
        answer = api.request(method, filled(path, {}), headers=admin.headers, **body)
        wrong = answer.json().get("errors", []) if answer.content else []
        assert wrong == [], (method, path, wrong)
        assert answer.status_code in {200, 201, 202, 204, 404, 409, 422}, (method, path, answer.text)
    registration = document["components"]["schemas"]["ClientIn"]["examples"][0]
    answer = api.post("/v1/clients", json=registration)
    assert answer.json()["code"] == "proof_invalid"
    form = document["components"]["schemas"]["TokenForm"]["examples"][0]
    assert api.post("/v1/tokens", data=form).json()["code"] == "assertion_invalid"
