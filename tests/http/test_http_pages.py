"""Documentation, problem pages, health, metrics and the API's description."""

import json
import re
from pathlib import Path
from typing import Any

import pytest
from fastapi import FastAPI
from sqlalchemy.orm import Session
from starlette.testclient import TestClient

from app.core.errors import DomainError
from app.core.i18n import catalogs
from app.http.pages import problem_types
from app.identity.roles import Role
from tests.http.accounts import add_caller


@pytest.fixture
def described(api: TestClient) -> dict[str, Any]:
    document: dict[str, Any] = api.get("/openapi.json").json()
    return document


def operations(document: dict[str, Any]) -> list[tuple[str, str, dict[str, Any]]]:
    return [
        (path, method, operation)
        for path, item in document["paths"].items()
        for method, operation in item.items()
    ]


def test_swagger_ui_comes_from_this_host_and_has_nothing_inline(api: TestClient) -> None:
    page = api.get("/docs")
    policy = page.headers["content-security-policy"]
    assert "script-src 'self'" in policy
    assert "unsafe" not in policy
    assert "http" not in policy
    assert not re.search(r"<script(?![^>]*\bsrc=)", page.text)
    assert "style=" not in page.text
    for source in re.findall(r'(?:src|href)="([^"]+)"', page.text):
        answer = api.get(f"/{source}")
        assert answer.status_code == 200
        assert answer.headers["content-type"].split(";")[0] in {
            "text/javascript",
            "text/css",
            "image/png",
        }
    assert "persistAuthorization: false" in api.get("/docs/initializer.js").text


def test_a_sign_in_in_swagger_ui_authorizes_the_page(api: TestClient, described: dict[str, Any]) -> None:
    script = api.get("/docs/initializer.js").text
    assert "responseInterceptor: authorize" in script
    named = re.findall(r'"(/v1/[^"]+)"', script)
    assert named == ["/v1/sessions", "/v1/sessions/refresh"]
    for path in named:
        answer = described["paths"][path]["post"]["responses"]
        shown = (answer.get("201") or answer["200"])["content"]["application/json"]["schema"]["$ref"]
        view = described["components"]["schemas"][shown.rpartition("/")[2]]
        assert "access_token" in view["properties"]
    (scheme,) = re.findall(r'preauthorizeApiKey\("([^"]+)"', script)
    assert described["components"]["securitySchemes"][scheme]["scheme"] == "bearer"


def test_every_tag_that_is_described_has_operations_and_each_operation_a_described_tag(
    described: dict[str, Any],
) -> None:
    used = {tag for _path, _method, operation in operations(described) for tag in operation["tags"]}
    assert used == {tag["name"] for tag in described["tags"]}


@pytest.mark.parametrize("name", ["index.html", "..%2f..%2fsetup.py", "swagger-ui.js.map", "%00"])
def test_no_other_file_is_served_beside_the_documentation(api: TestClient, name: str) -> None:
    assert api.get(f"/docs/assets/{name}").status_code in {404, 422}


def test_every_problem_has_a_page_in_each_language(api: TestClient) -> None:
    index = api.get("/problems").text
    for code in problem_types():
        assert f'href="problems/{code}"' in index
        for locale in catalogs():
            page = api.get(f"/problems/{code}", headers={"Accept-Language": locale})
            assert page.status_code == 200
            assert page.headers["content-language"] == locale
            assert f'<html lang="{locale}">' in page.text


def test_a_problems_type_leads_to_its_page(api: TestClient) -> None:
    problem = api.get("/v1/clients").json()
    page = api.get(problem["type"].removeprefix("http://127.0.0.1:8000"))
    assert page.status_code == 200
    assert "unauthorized" in page.text


def test_no_two_problems_share_a_code() -> None:
    def descendants(kind: type[DomainError]) -> list[type[DomainError]]:
        return [kind, *(deeper for child in kind.__subclasses__() for deeper in descendants(child))]

    codes: dict[str, type[DomainError]] = {}
    for kind in descendants(DomainError):
        assert codes.setdefault(kind.code, kind) is kind, f"{kind} and {codes[kind.code]} share {kind.code}"


def test_a_page_for_an_unknown_code_is_absent_and_echoes_nothing(api: TestClient) -> None:
    answer = api.get("/problems/<script>alert(1)<")
    assert answer.status_code == 404
    assert answer.headers["content-type"] == "application/problem+json"


def test_alive_and_ready(api: TestClient, session: Session) -> None:
    assert api.get("/healthz").json() == {"status": "ok"}
    answer = api.get("/readyz")
    assert (answer.status_code, answer.json()["missing"]) == (503, ["bootstrap"])
    add_caller(session)
    assert api.get("/readyz").json()["status"] == "ready"


def test_not_ready_names_what_is_missing(api: TestClient, session: Session) -> None:
    add_caller(session)
    app = api.app
    assert isinstance(app, FastAPI)
    app.state.blobs.store.aside = Path("/nonexistent")
    answer = api.get("/readyz")
    assert (answer.status_code, answer.json()["code"], answer.json()["missing"]) == (
        503,
        "not_ready",
        ["blobs"],
    )
    assert answer.headers["retry-after"]


def test_metrics_are_for_this_host_or_for_administrators(api: TestClient, session: Session) -> None:
    admin, viewer = add_caller(session), add_caller(session, Role.VIEWER)
    assert api.get("/metrics").status_code == 401
    assert api.get("/metrics", headers=viewer.headers).status_code == 403
    answer = api.get("/metrics", headers=admin.headers)
    assert answer.status_code == 200
    assert 'dpfl_http_requests_total{operation="get_metrics",status="401"} 1.0' in answer.text
    local = TestClient(api.app, base_url="http://127.0.0.1:8000", client=("127.0.0.1", 5000))
    assert local.get("/metrics").status_code == 200
    assert local.get("/metrics", headers={"X-Forwarded-For": "203.0.113.9"}).status_code == 401


def test_every_operation_is_named_after_its_function_once(described: dict[str, Any]) -> None:
    names = [operation["operationId"] for _path, _method, operation in operations(described)]
    assert len(names) == len(set(names))
    assert all(re.fullmatch(r"[a-z][a-z_]+", name) for name in names)


def test_every_operation_declares_its_refusals_as_problems(described: dict[str, Any]) -> None:
    for path, method, operation in operations(described):
        declared = operation["responses"]
        assert {"405", "503"} <= declared.keys(), path
        if operation.get("security"):
            assert {"401", "403"} <= declared.keys(), path
        if "requestBody" in operation:
            assert {"400", "413", "415", "422"} <= declared.keys(), path
        if method != "get":
            assert "409" in declared, path
        for status, answer in declared.items():
            if status >= "400":
                assert list(answer["content"]) == ["application/problem+json"], (path, status)


def test_every_body_has_an_example(described: dict[str, Any]) -> None:
    for path, method, operation in operations(described):
        for media, content in operation.get("requestBody", {}).get("content", {}).items():
            if media == "application/octet-stream":
                assert content["schema"] == {"type": "string", "format": "binary"}
                continue
            schema = content["schema"]
            named = described["components"]["schemas"][schema["$ref"].rsplit("/", 1)[1]]
            assert named.get("examples") or content.get("examples"), (method, path)


def test_the_description_refers_to_nothing_that_is_not_in_it(described: dict[str, Any]) -> None:
    schemas = described["components"]["schemas"]
    for reference in re.findall(r'"#/components/schemas/([^"]+)"', json.dumps(described)):
        assert reference in schemas
