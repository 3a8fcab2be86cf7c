"""Bodies: of the declared media type, and nothing said twice, on every route that takes one."""

import json
from collections import defaultdict
from typing import Any
from uuid import uuid4

import pytest
from fastapi import FastAPI
from sqlalchemy.orm import Session
from starlette.testclient import TestClient

from app.http.bodies import FORM, JSON
from app.http.routes import ThreadedRoute
from app.main import api_routes
from tests.http.accounts import Caller, add_caller


def gateway(api: TestClient) -> FastAPI:
    assert isinstance(api.app, FastAPI)
    return api.app


def routes_with_bodies(app: FastAPI) -> list[tuple[str, str, str]]:
    """(method, path, media type) of every endpoint that declares a JSON or form body."""
    found = []
    for path, item in app.openapi()["paths"].items():
        for method, operation in item.items():
            for media_type in operation.get("requestBody", {}).get("content", {}):
                if media_type in {JSON, FORM}:
                    found.append((method.upper(), path, media_type))
    return found


def filled(path: str) -> str:
    return path.format_map(defaultdict(uuid4))


@pytest.fixture
def admin(session: Session) -> Caller:
    return add_caller(session)


def test_a_body_of_another_media_type_is_refused_with_415_on_every_route(
    api: TestClient, admin: Caller
) -> None:
    routes = routes_with_bodies(gateway(api))
    assert len(routes) >= 14
    for method, path, media_type in routes:
        other = FORM if media_type == JSON else JSON
        for sent in ("text/plain", other, "application/octet-stream", None):
            headers = admin.headers | ({} if sent is None else {"Content-Type": sent})
            answer = api.request(method, filled(path), headers=headers, content=b"{}")
            told = answer.json()
            assert (answer.status_code, told["code"]) == (415, "unsupported_media_type"), (path, sent)
            assert told["media_type"] == media_type


@pytest.mark.parametrize("sent", ["application/json", "application/json; charset=utf-8", "Application/JSON"])
def test_json_is_read_however_its_type_is_spelled(api: TestClient, admin: Caller, sent: str) -> None:
    body = json.dumps({"name": f"organisation {uuid4()}", "region": "eu-west-1"}).encode()
    answer = api.post("/v1/organisations", headers=admin.headers | {"Content-Type": sent}, content=body)
    assert answer.status_code == 201, answer.text


def test_no_body_where_one_is_needed_is_a_missing_value(api: TestClient, admin: Caller) -> None:
    for method, path, _media_type in routes_with_bodies(gateway(api)):
        answer = api.request(method, filled(path), headers=admin.headers)
        for_clients = "disclaimers" in path or path.endswith(("{client_id}/key", "/v1/certificates"))
        expected = (403, "forbidden") if for_clients else (422, "invalid")
        assert (answer.status_code, answer.json()["code"]) == expected, path


def test_a_member_that_stands_twice_is_refused_with_400_on_every_route(
    api: TestClient, admin: Caller
) -> None:
    for method, path, media_type in routes_with_bodies(gateway(api)):
        body = b'{"name": "a", "name": "b"}' if media_type == JSON else b"name=a&name=b"
        headers = admin.headers | {"Content-Type": media_type}
        answer = api.request(method, filled(path), headers=headers, content=body)
        told = answer.json()
        assert (answer.status_code, told["code"]) == (400, "duplicate_member"), path
        assert told["member"] == "name"


@pytest.mark.parametrize("headers", [{}, {"Idempotency-Key": "once"}])
@pytest.mark.parametrize(
    "body",
    [
        b'{"name": "a", "region": "eu-west-1", "region": "eu-west-1"}',
        b'{"manifest": {"privacy": {"epsilon": 1.0, "epsilon": 8.0}}}',
        b'[{"a": [{"b": 1, "\\u0062": 2}]}]',
    ],
)
def test_however_deep_and_however_spelled(
    api: TestClient, admin: Caller, headers: dict[str, str], body: bytes
) -> None:
    sent = admin.headers | headers | {"Content-Type": JSON}
    answer = api.post("/v1/organisations", headers=sent, content=body)
    assert (answer.status_code, answer.json()["code"]) == (400, "duplicate_member")


@pytest.mark.parametrize("body", [b"{", b"\xff\xfe{", b"[" * 100_000, b'{"name": NaN-}'])
def test_what_is_no_json_stays_a_bad_request(api: TestClient, admin: Caller, body: bytes) -> None:
    answer = api.post("/v1/organisations", headers=admin.headers | {"Content-Type": JSON}, content=body)
    assert (answer.status_code, answer.json()["code"]) == (400, "bad_request")


def test_every_route_with_a_body_checks_it_and_declares_the_refusals(api: TestClient) -> None:
    document: dict[str, Any] = gateway(api).openapi()
    checked = {
        (method, str(route.path_format))
        for route in api_routes(gateway(api))
        if isinstance(route.original_route, ThreadedRoute) and route.original_route.media_type
        for method in route.methods or ()
    }
    assert checked == {(method, path) for method, path, _media_type in routes_with_bodies(gateway(api))}
    for method, path in checked:
        declared = set(document["paths"][path][method.lower()]["responses"])
        assert declared >= {"400", "413", "415", "422"}, path


@pytest.mark.parametrize(
    "turned",
    [
        "Riverside\r\nadmin signed in",
        "\x1b[2K\x1b[1ARiverside",
        "Riverside \u202elatipsoH",
        "a\u2066b",
        "a\x85b",
    ],
)
def test_a_name_in_which_something_else_is_read_than_is_written_is_refused(
    api: TestClient, admin: Caller, turned: str
) -> None:
    answer = api.post(
        "/v1/organisations", headers=admin.headers, json={"name": turned, "region": "eu-west-1"}
    )
    told = answer.json()
    assert (answer.status_code, told["code"], told["errors"][0]["pointer"]) == (422, "invalid", "/body/name")
    assert turned not in answer.text
