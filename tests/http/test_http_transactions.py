"""A request is one transaction: what fails late fails whole, and many at once all get an answer."""

from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from uuid import uuid4

import pytest
import sqlalchemy as sa
from fastapi import FastAPI
from starlette.testclient import TestClient

from app.core.db import NOTICE_LOSS, Database
from app.http.models import StoredAnswer
from app.identity.models import Organisation
from app.main import build_app
from tests.database import settings_for
from tests.http.accounts import Caller, add_caller

FAILING_COMMIT = """
CREATE FUNCTION fail_late() RETURNS trigger LANGUAGE plpgsql AS
$$ BEGIN RAISE EXCEPTION 'the disk of the database is on fire'; END $$;
CREATE CONSTRAINT TRIGGER fail_late AFTER INSERT ON organisations
DEFERRABLE INITIALLY DEFERRED FOR EACH ROW EXECUTE FUNCTION fail_late();
"""


@pytest.fixture
def app(database_url: str, tmp_path: Path) -> FastAPI:
    return build_app(settings_for(database_url, tmp_path))


@pytest.fixture
def live(app: FastAPI) -> Iterator[TestClient]:
    """A gateway with its own pool and hub."""
    with TestClient(app, base_url="http://127.0.0.1:8000", raise_server_exceptions=False) as client:
        yield client


@pytest.fixture
def admin(database: Database) -> Caller:
    with database.run_tx("test") as session:
        return add_caller(session)


def organisations_named(database: Database, name: str) -> int:
    with database.run_tx("test") as session:
        count = sa.select(sa.func.count()).select_from(Organisation).where(Organisation.name == name)
        return session.scalar(count) or 0


def test_a_commit_that_fails_answers_500_and_leaves_nothing(
    live: TestClient, admin: Caller, database: Database
) -> None:
    with database.run_tx("test") as session:
        session.execute(sa.text(FAILING_COMMIT))
    body = {"name": f"clinic {uuid4()}", "region": "eu-west-1"}
    headers = admin.headers | {"Idempotency-Key": "k1"}
    answer = live.post("/v1/organisations", json=body, headers=headers)
    assert (answer.status_code, answer.json()["code"]) == (500, "internal_error")
    assert "fire" not in answer.text
    assert organisations_named(database, body["name"]) == 0
    with database.run_tx("test") as session:
        assert session.scalar(sa.select(sa.func.count()).select_from(StoredAnswer)) == 0
        session.execute(sa.text("DROP TRIGGER fail_late ON organisations"))
    assert live.post("/v1/organisations", json=body, headers=headers).status_code == 201


def test_a_hundred_requests_at_once_all_get_their_answer(live: TestClient, admin: Caller) -> None:
    def post(index: int) -> int:
        body = {"name": f"clinic {uuid4()}", "region": "eu-west-1"}
        headers = admin.headers | {"Idempotency-Key": f"k{index}"}
        return live.post("/v1/organisations", json=body, headers=headers).status_code

    with ThreadPoolExecutor(100) as pool:
        assert list(pool.map(post, range(100))) == [201] * 100


def test_a_database_that_is_gone_answers_503_and_when_to_try_again(
    live: TestClient, app: FastAPI, admin: Caller
) -> None:
    assert live.get("/v1/organisations", headers=admin.headers).status_code == 200
    app.state.database.engine.dispose()
    engine = sa.create_engine(
        "postgresql+psycopg://nobody@127.0.0.1:1/none", connect_args={"connect_timeout": 2}
    )
    app.state.database.sessions.configure(bind=engine)
    answer = live.get("/v1/organisations", headers=admin.headers)
    assert (answer.status_code, answer.json()["code"]) == (503, "unavailable")
    assert answer.headers["retry-after"]
    ready = live.get("/readyz")
    assert (ready.status_code, ready.json()["missing"]) == (503, ["database"])
    assert live.get("/healthz").status_code == 200


def test_the_error_of_a_statement_tells_nothing_of_what_was_to_be_stored(database: Database) -> None:
    with pytest.raises(sa.exc.DBAPIError) as refused, database.run_tx("test") as session:
        session.execute(sa.text("SELECT CAST(:stored AS text) FROM no_such_table"), {"stored": "a secret"})
    assert "a secret" not in str(refused.value)


def test_a_transaction_whose_process_stands_still_is_ended(
    database: Database,
) -> None:
    with database.run_tx("test") as session:
        assert session.scalar(sa.text("SHOW idle_in_transaction_session_timeout")) == "1min"


def test_a_connection_over_a_silent_network_is_given_up(database: Database) -> None:
    with database.engine.connect() as connection:
        given = connection.connection.driver_connection.info.get_parameters()
    assert {name: int(given[name]) for name in NOTICE_LOSS} == NOTICE_LOSS
