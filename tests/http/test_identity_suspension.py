"""A suspension reaches every process through the hub, not by asking the database each time."""

import threading
from collections.abc import Iterator
from pathlib import Path

import pytest
from fastapi import FastAPI
from starlette.testclient import TestClient

from app.core.db import Database
from app.identity.keys import CHANNEL
from app.main import build_app
from tests.database import settings_for
from tests.http.accounts import Caller, add_caller, enrol, token_form


@pytest.fixture
def processes(database_url: str, tmp_path: Path) -> Iterator[list[TestClient]]:
    """Two gateways on one database, hubs and all."""
    apps = [build_app(settings_for(database_url, tmp_path, pool_size=4)) for _index in range(2)]
    clients = [TestClient(app, base_url="http://127.0.0.1:8000") for app in apps]
    with clients[0], clients[1]:
        yield clients


@pytest.fixture
def admin(database: Database) -> Caller:
    with database.run_tx("test") as session:
        return add_caller(session)


def heard(process: TestClient, client_id: str) -> threading.Event:
    """Set when the process has heard of this client."""
    app = process.app
    assert isinstance(app, FastAPI)
    assert process.portal is not None
    process.portal.call(app.state.hub.connected.wait)
    event = threading.Event()
    app.state.hub.subscribe(CHANNEL, lambda payload: event.set() if payload == client_id else None)
    return event


def test_a_running_token_stops_in_every_process_and_works_again(
    processes: list[TestClient], admin: Caller
) -> None:
    here, there = processes
    applicant, client_id = enrol(here, admin)
    token = here.post("/v1/tokens", data=token_form(applicant.assertion(client_id))).json()
    headers = {"Authorization": f"Bearer {token['access_token']}"}
    assert there.get("/v1/clients", headers=headers).status_code == 200
    for verb, status in (("suspend", 403), ("reinstate", 200)):
        events = [heard(process, client_id) for process in processes]
        assert here.post(f"/v1/clients/{client_id}/{verb}", headers=admin.headers).status_code == 200
        assert all(event.wait(10) for event in events)
        for process in processes:
            answer = process.get("/v1/clients", headers=headers)
            assert answer.status_code == status
    assert answer.json()["items"][0]["id"] == client_id
