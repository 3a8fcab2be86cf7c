"""Passwords are hashed apart: sign-ins that wait hold up nobody, and only so many may wait."""

import threading
import time
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

from starlette.testclient import TestClient

from app.core.db import Database
from app.identity.passwords import THREADS
from app.main import build_app
from tests.database import settings_for
from tests.http.accounts import add_caller
from tests.http.members import add_person, refusal

POOL = 4
MOST = 64


def until_waiting(app: object, count: int) -> None:
    ends = time.monotonic() + 30
    while app.state.hashing._waiting < count:  # type: ignore[attr-defined]
        assert time.monotonic() < ends, app.state.hashing._waiting
        time.sleep(0.01)


def test_sign_ins_that_wait_for_a_hash_hold_neither_threads_nor_connections(
    database: Database, database_url: str, tmp_path: Path
) -> None:
    app = build_app(settings_for(database_url, tmp_path, pool_size=POOL))
    with database.run_tx("test") as session:
        caller = add_caller(session)
        persons = [add_person(session) for _index in range(3 * POOL)]
    with TestClient(app, base_url="http://127.0.0.1:8000") as api, ThreadPoolExecutor(3 * POOL) as callers:
        goes_on = threading.Event()
        for _thread in range(THREADS):
            app.state.hashing.start(lambda: goes_on.wait(60))
        waiting = [callers.submit(api.post, "/v1/sessions", json=person.body()) for person in persons]
        until_waiting(app, len(persons))
        started = time.monotonic()
        for _index in range(2 * POOL):
            assert api.get("/v1/account", headers=caller.headers).status_code == 200
        assert time.monotonic() - started < 4  # less than a pool's timeout: nothing stood in the way
        goes_on.set()
        assert [one.result(60).status_code for one in waiting] == [201] * len(persons)


def test_beyond_a_number_that_waits_a_sign_in_is_told_to_come_again(
    database: Database, database_url: str, tmp_path: Path
) -> None:
    app = build_app(settings_for(database_url, tmp_path, pool_size=POOL))
    with database.run_tx("test") as session:
        person = add_person(session)
    with TestClient(app, base_url="http://127.0.0.1:8000") as api:
        app.state.hashing._waiting = MOST
        answer = api.post("/v1/sessions", json=person.body())
        assert refusal(answer) == (503, "busy")
        assert answer.headers["retry-after"]
        app.state.hashing._waiting = 0
        assert api.post("/v1/sessions", json=person.body()).status_code == 201
