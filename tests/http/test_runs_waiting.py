"""Long-polls: an answer that is held back comes with the commit that changes it, and holds no connection."""

import time
from collections.abc import Callable, Iterator
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

import pytest
from starlette.testclient import TestClient

from app.core.db import Database
from app.identity.keys import ensure_signing_keys
from app.main import build_app
from app.runs import service
from app.security import events
from app.security.models import Severity
from tests.database import settings_for
from tests.federation import Federation
from tests.http.accounts import VAULT, add_caller, client_headers

PROMPT_S = 10.0
HELD_S = 30


@pytest.fixture
def live(database_url: str, tmp_path: Path) -> Iterator[TestClient]:
    """The gateway with its own pool and its hub listening."""
    app = build_app(settings_for(database_url, tmp_path / "blobs"))
    with TestClient(app) as client:
        assert until(app.state.hub.connected.is_set)
        yield client


def until(holds: Callable[[], bool]) -> bool:
    """Wait for a condition of another thread, with a bound."""
    end = time.monotonic() + PROMPT_S
    while not holds() and time.monotonic() < end:
        time.sleep(0.005)
    return holds()


def test_an_assignment_is_told_when_its_round_opens(live: TestClient, database: Database) -> None:
    with database.run_tx("set up") as session:
        ensure_signing_keys(session, VAULT)
        federation = Federation(session, live.app.state.settings)
        run = federation.priced()
    headers = client_headers(live.app, federation.principal())
    with ThreadPoolExecutor(1) as pool:
        answer = pool.submit(live.get, f"/v1/assignments?wait={HELD_S}", headers=headers)
        assert until(lambda: bool(live.app.state.hub._waiters))
        assert until(lambda: live.app.state.database.engine.pool.checkedout() == 0)
        with database.run_tx("start") as session:
            service.start(session, federation.coordinator, run.id, region=None)
        (found,) = answer.result(PROMPT_S).json()["items"]
    assert found["run_id"] == str(run.id)
    assert not live.app.state.hub._waiters


def test_a_run_is_shown_when_it_changes_and_at_once_to_who_knows_an_older_version(
    live: TestClient, database: Database
) -> None:
    with database.run_tx("set up") as session:
        ensure_signing_keys(session, VAULT)
        federation = Federation(session, live.app.state.settings)
        run = federation.running()
    headers = client_headers(live.app, federation.principal())
    path = f"/v1/runs/{run.id}?wait={HELD_S}"
    assert live.get(f"{path}&since=0", headers=headers).json()["state"] == "running"
    with ThreadPoolExecutor(2) as pool:
        waiting = [
            pool.submit(live.get, path, headers=headers),
            pool.submit(live.get, f"{path}&since={run.version}", headers=headers),
        ]
        assert until(lambda: sum(map(len, live.app.state.hub._waiters.values())) == 2)
        with database.run_tx("pause") as session:
            service.pause(session, federation.coordinator, run.id)
        assert {one.result(PROMPT_S).json()["state"] for one in waiting} == {"paused"}


def test_a_wait_that_nothing_ends_is_answered_when_its_time_is_over(
    live: TestClient, database: Database
) -> None:
    with database.run_tx("set up") as session:
        ensure_signing_keys(session, VAULT)
        federation = Federation(session, live.app.state.settings)
    headers = client_headers(live.app, federation.principal())
    assert live.get("/v1/assignments?wait=0.05", headers=headers).json() == {"items": []}


def test_an_administrators_feed_tells_of_an_event_when_it_is_noted(
    live: TestClient, database: Database
) -> None:
    with database.run_tx("set up") as session:
        admin = add_caller(session)
    with ThreadPoolExecutor(1) as pool:
        path = f"/v1/security-events/feed?wait={HELD_S}"
        answer = pool.submit(live.get, path, headers=admin.headers)
        assert until(lambda: bool(live.app.state.hub._waiters))
        with database.run_tx("note") as session:
            events.note(
                session,
                kind="tried",
                subject="address:10.0.0.1",
                organisation_id=None,
                severity=Severity.NOTICE,
                evidence={},
            )
        (found,) = answer.result(PROMPT_S).json()["items"]
    assert (found["kind"], found["subject"]) == ("tried", "address:10.0.0.1")
