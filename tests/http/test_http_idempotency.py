"""Idempotency-Key on POST."""

from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from uuid import uuid4

import pytest
import sqlalchemy as sa
from sqlalchemy.orm import Session
from starlette.testclient import TestClient

from app.core.db import Database
from app.http.models import StoredAnswer
from app.identity.models import ApiKey, Organisation
from app.main import build_app
from tests.database import settings_for
from tests.http.accounts import Caller, add_caller, enrol


def keyed(caller: Caller, key: str) -> dict[str, str]:
    return caller.headers | {"Idempotency-Key": key}


def test_the_same_key_and_body_get_the_first_answer_and_do_nothing_more(
    api: TestClient, session: Session
) -> None:
    admin, body = add_caller(session), {"name": f"clinic {uuid4()}", "region": "eu-west-1"}
    first = api.post("/v1/organisations", json=body, headers=keyed(admin, "k1"))
    again = api.post("/v1/organisations", json=body, headers=keyed(admin, "k1"))
    assert (first.status_code, again.status_code) == (201, 201)
    assert again.content == first.content
    assert "idempotency-replayed" not in first.headers
    assert again.headers["idempotency-replayed"] == "true"
    assert again.headers["content-type"] == "application/json"
    named = sa.select(sa.func.count()).select_from(Organisation).where(Organisation.name == body["name"])
    assert session.scalar(named) == 1


def test_the_same_key_with_another_body_is_refused(api: TestClient, session: Session) -> None:
    admin = add_caller(session)
    api.post("/v1/api-keys", json={"label": "a"}, headers=keyed(admin, "k1"))
    answer = api.post("/v1/api-keys", json={"label": "b"}, headers=keyed(admin, "k1"))
    assert (answer.status_code, answer.json()["code"]) == (422, "idempotency_mismatch")
    labels = session.scalars(sa.select(ApiKey.label).where(ApiKey.member_id == admin.principal.id))
    assert sorted(labels) == ["a", "test"]


def test_a_key_belongs_to_one_caller_and_one_address(api: TestClient, session: Session) -> None:
    first, second = add_caller(session), add_caller(session)
    for caller in (first, second):
        answer = api.post("/v1/api-keys", json={"label": "a"}, headers=keyed(caller, "k1"))
        assert (answer.status_code, answer.json()["member_id"]) == (201, str(caller.principal.id))
        assert "idempotency-replayed" not in answer.headers
    for _applicant, client_id in (enrol(api, first), enrol(api, first)):
        answer = api.post(f"/v1/clients/{client_id}/suspend", headers=keyed(first, "k1"))
        assert answer.json()["id"] == client_id


def test_a_refusal_is_not_kept(api: TestClient, session: Session) -> None:
    admin, body = add_caller(session), {"name": f"clinic {uuid4()}", "region": "eu-west-1"}
    assert api.post("/v1/organisations", json=body, headers=admin.headers).status_code == 201
    answer = api.post("/v1/organisations", json=body, headers=keyed(admin, "k1"))
    assert answer.status_code == 409
    other = {"name": f"clinic {uuid4()}", "region": "eu-west-1"}
    assert api.post("/v1/organisations", json=other, headers=keyed(admin, "k1")).status_code == 201


def test_a_kept_answer_is_sealed_since_it_may_hold_a_secret(api: TestClient, session: Session) -> None:
    admin = add_caller(session)
    made = api.post("/v1/api-keys", json={"label": "a"}, headers=keyed(admin, "k1")).json()
    again = api.post("/v1/api-keys", json={"label": "a"}, headers=keyed(admin, "k1")).json()
    assert again["api_key"] == made["api_key"]
    stored = session.scalars(sa.select(StoredAnswer)).one()
    assert made["api_key"].encode() not in stored.body


@pytest.mark.parametrize("key", ["", " ", "a b", "x" * 201, "\x7f"])
def test_a_key_of_another_form_is_refused(api: TestClient, session: Session, key: str) -> None:
    answer = api.post("/v1/api-keys", json={"label": "a"}, headers=keyed(add_caller(session), key))
    assert (answer.status_code, answer.json()["code"]) == (422, "invalid")


@pytest.fixture
def live(database_url: str, tmp_path: Path) -> Iterator[TestClient]:
    app = build_app(settings_for(database_url, tmp_path, pool_size=8))
    with TestClient(app, base_url="http://127.0.0.1:8000") as client:
        yield client


def test_of_racing_requests_with_one_key_one_runs_and_all_get_its_answer(
    live: TestClient, database: Database
) -> None:
    with database.run_tx("test") as session:
        admin = add_caller(session)

    def post(_index: int) -> tuple[int, bytes]:
        answer = live.post("/v1/api-keys", json={"label": "race"}, headers=keyed(admin, "k1"))
        return answer.status_code, answer.content

    with ThreadPoolExecutor(8) as pool:
        answers = list(pool.map(post, range(8)))
    assert len(set(answers)) == 1
    assert answers[0][0] == 201
    with database.run_tx("test") as session:
        count = sa.select(sa.func.count()).select_from(ApiKey).where(ApiKey.label == "race")
        assert session.scalar(count) == 1


def test_while_the_first_request_runs_the_second_waits_and_then_is_told_so(
    live: TestClient, database: Database, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("app.http.idempotency._WAIT", "50ms")
    with database.run_tx("test") as session:
        admin = add_caller(session)
    with database.run_tx("first") as session:
        session.add(
            StoredAnswer(
                principal_id=admin.principal.id,
                route="POST /v1/api-keys",
                key="k1",
                body_sha256="0" * 64,
                status=0,
                body=b"",
            )
        )
        session.flush()
        answer = live.post("/v1/api-keys", json={"label": "a"}, headers=keyed(admin, "k1"))
    assert (answer.status_code, answer.json()["code"]) == (409, "idempotency_in_progress")
    assert answer.json()["retryable"] is True
    assert answer.headers["retry-after"] == "1"
