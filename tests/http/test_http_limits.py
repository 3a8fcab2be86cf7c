"""Body ceilings, rates, and what every answer carries."""

from collections.abc import Iterator
from pathlib import Path

import pytest
from sqlalchemy.orm import Session
from starlette.testclient import TestClient

from app.core.db import Database
from app.core.settings import Settings
from app.http.rates import LocalRates
from app.main import build_app, install_state
from tests.database import settings_for
from tests.http.accounts import Applicant, add_caller, token_form


@pytest.fixture
def small(settings: Settings, rolled_back: Database, tmp_path: Path) -> Iterator[TestClient]:
    """A gateway that takes 2 KiB."""
    url = settings.database_url.get_secret_value()
    app = build_app(settings_for(url, tmp_path, max_body_bytes=2048))
    install_state(app, settings, rolled_back)
    with_errors = TestClient(app, base_url="http://127.0.0.1:8000", raise_server_exceptions=False)
    yield with_errors
    with_errors.close()


def test_an_announced_body_above_the_ceiling_is_refused_unread(small: TestClient) -> None:
    answer = small.post("/v1/clients", content=b"x" * 2049, headers={"Content-Type": "application/json"})
    assert (answer.status_code, answer.json()["code"]) == (413, "too_large")
    assert answer.json()["max_bytes"] == 2048
    assert answer.headers["content-type"] == "application/problem+json"


def test_an_unannounced_body_is_counted(small: TestClient, session: Session) -> None:
    def chunks() -> Iterator[bytes]:
        for _index in range(5):
            yield b"x" * 1024

    headers = {"Content-Type": "application/json"}
    answer = small.post("/v1/clients", content=chunks(), headers=headers)
    assert (answer.status_code, answer.json()["code"]) == (413, "too_large")
    admin = add_caller(session)
    answer = small.post(
        "/v1/api-keys", content=chunks(), headers=headers | admin.headers | {"Idempotency-Key": "k"}
    )
    assert answer.status_code == 413


@pytest.mark.parametrize(
    "body", [b"{", b"\xff\xfe", b"[" * 100_000, b'{"a":' * 50_000, b"NaN", b"1" * 5000, b'{"a": 1e999}']
)
def test_a_body_that_is_no_sane_json_is_a_refusal_and_never_an_error(api: TestClient, body: bytes) -> None:
    answer = api.post("/v1/clients", content=body, headers={"Content-Type": "application/json"})
    assert answer.status_code in {400, 422}
    assert answer.headers["content-type"] == "application/problem+json"


def test_a_bucket_lets_its_size_through_and_then_its_rate() -> None:
    limits = LocalRates()
    waits = [limits.take("tokens:10.0.0.1", per_minute=5) for _index in range(6)]
    assert waits[:5] == [0.0] * 5
    assert 0 < waits[5] <= 12
    assert limits.take("tokens:10.0.0.2", per_minute=5) == 0.0
    assert limits.take("clients:10.0.0.1", per_minute=5) == 0.0


def test_too_many_registrations_from_one_address_are_told_to_wait(api: TestClient, session: Session) -> None:
    add_caller(session)
    body = Applicant().body("dpfl_enrol_" + "A" * 49)
    statuses = [api.post("/v1/clients", json=body).status_code for _index in range(62)]
    assert statuses[:60] == [401] * 60
    assert statuses[-1] == 429
    answer = api.post("/v1/clients", json=body)
    assert (answer.json()["code"], answer.headers["retry-after"]) == ("rate_limited", "2")
    assert api.post("/v1/tokens", data=token_form("a.b.c")).status_code == 401


@pytest.mark.parametrize("path", ["/healthz", "/v1/clients", "/nowhere", "/docs", "/problems/invalid"])
def test_every_answer_carries_an_id_a_date_and_security_headers(api: TestClient, path: str) -> None:
    headers = api.get(path).headers
    assert len(headers["x-request-id"]) == 36
    assert headers["date"].endswith("GMT")
    assert headers["x-content-type-options"] == "nosniff"
    assert headers["x-frame-options"] == "DENY"
    assert "unsafe-inline" not in headers["content-security-policy"]
    assert "default-src 'none'" in headers["content-security-policy"]


def test_a_harmless_request_id_is_kept_and_any_other_replaced(api: TestClient) -> None:
    kept = api.get("/v1/clients", headers={"X-Request-Id": "trace-0001"})
    assert (kept.headers["x-request-id"], kept.json()["request_id"]) == ("trace-0001", "trace-0001")
    for harmful in ("a\x1b[31mred", "short", "x" * 65, 'quote"quote"'):
        assert api.get("/healthz", headers={"X-Request-Id": harmful}).headers["x-request-id"] != harmful


def test_a_method_or_path_that_does_not_exist_is_a_problem_document(api: TestClient) -> None:
    wrong_method = api.request("PATCH", "/v1/clients")
    assert (wrong_method.status_code, wrong_method.json()["code"]) == (405, "method_not_allowed")
    assert "GET" in wrong_method.headers["allow"]
    nowhere = api.get("/v1/nowhere")
    assert (nowhere.status_code, nowhere.json()["code"]) == (404, "not_found")


def test_an_unforeseen_error_is_a_dressed_500_without_its_text(api: TestClient, session: Session) -> None:
    headers = add_caller(session).headers

    class Broken:
        def principal(self, _header: str, _address: str) -> None:
            raise ArithmeticError("the secret inside")

    api.app.state.authenticator = Broken()  # type: ignore[attr-defined]  # a FastAPI application
    answer = api.get("/v1/clients", headers=headers)
    assert (answer.status_code, answer.json()["code"]) == (500, "internal_error")
    assert "secret" not in answer.text
    assert answer.headers["x-request-id"] == answer.json()["request_id"]
    assert answer.headers["x-content-type-options"] == "nosniff"
