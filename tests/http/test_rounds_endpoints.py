"""Rounds over HTTP: who sees them, how they are watched, sealed and aborted."""

from __future__ import annotations

from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

import pytest
import sqlalchemy as sa
from sqlalchemy.orm import Session
from starlette.testclient import TestClient

from app.core.db import Database
from app.core.ids import new_id
from app.identity.models import Organisation
from app.identity.roles import Principal, Role
from app.jobs.models import Job, JobState
from app.main import build_app
from app.rounds import lifecycle
from app.rounds.models import Round
from app.rounds.states import RoundState
from app.runs.models import Run
from app.runs.states import RunState
from tests.builders import build_client, build_round, clients_of
from tests.database import settings_for
from tests.http.accounts import VAULT, Caller, add_caller, client_headers


@pytest.fixture
def admin(session: Session) -> Caller:
    return add_caller(session)


def of_organisation(session: Session, role: Role, row: Round) -> Caller:
    return add_caller(session, role, row.organisation_id)


def test_a_round_is_shown_with_its_updates_and_what_it_waits_for(
    api: TestClient, session: Session, admin: Caller
) -> None:
    row = build_round(session, updates=2)
    lifecycle.seal(session, row.id, actor="test", vault=VAULT)
    session.flush()
    shown = api.get(f"/v1/rounds/{row.id}", headers=admin.headers).json()
    assert shown["state"] == "sealed"
    assert shown["updates"] == {"receiving": 0, "received": 2, "rejected": 0}
    assert shown["waits_for"] == {"kind": "aggregate", "state": "queued", "attempts": 0}


def test_a_round_that_is_known_answers_304(api: TestClient, session: Session, admin: Caller) -> None:
    row = build_round(session)
    first = api.get(f"/v1/rounds/{row.id}", headers=admin.headers)
    known = admin.headers | {"If-None-Match": first.headers["etag"]}
    assert api.get(f"/v1/rounds/{row.id}", headers=known).status_code == 304
    lifecycle.abort(session, row.id, code="x", reason="x", actor="test")
    session.flush()
    assert api.get(f"/v1/rounds/{row.id}", headers=known).status_code == 200


def test_a_round_of_another_organisation_is_not_found(api: TestClient, session: Session) -> None:
    row = build_round(session, updates=2)
    stranger = add_caller(session, Role.COORDINATOR)
    for method, path in (("GET", ""), ("GET", "/log"), ("POST", "/seal")):
        answer = api.request(method, f"/v1/rounds/{row.id}{path}", headers=stranger.headers)
        assert (answer.status_code, answer.json()["code"]) == (404, "not_found")
    answer = api.post(f"/v1/rounds/{row.id}/abort", json={"reason": "no"}, headers=stranger.headers)
    assert answer.status_code == 404


def test_a_client_sees_the_rounds_it_is_asked_for_and_no_others(api: TestClient, session: Session) -> None:
    row = build_round(session)
    run = session.get_one(Run, row.run_id)
    organisation = session.get_one(Organisation, row.organisation_id)
    add_caller(session)  # makes the signing keys
    insider = Principal(clients_of(session, run)[0], row.organisation_id, Role.CLIENT)
    outsider = Principal(build_client(session, organisation).id, row.organisation_id, Role.CLIENT)
    for principal, status in ((insider, 200), (outsider, 404)):
        answer = api.get(f"/v1/rounds/{row.id}", headers=client_headers(api.app, principal))
        assert answer.status_code == status


@pytest.mark.parametrize("role", [Role.VIEWER, Role.AUDITOR, Role.PRIVACY_OFFICER])
def test_who_may_only_read_cannot_seal_or_abort(api: TestClient, session: Session, role: Role) -> None:
    row = build_round(session, updates=2)
    reader = of_organisation(session, role, row)
    assert api.get(f"/v1/rounds/{row.id}", headers=reader.headers).status_code == 200
    assert api.post(f"/v1/rounds/{row.id}/seal", headers=reader.headers).status_code == 403
    refused = api.post(f"/v1/rounds/{row.id}/abort", json={"reason": "no"}, headers=reader.headers)
    assert refused.status_code == 403


def test_sealing_twice_is_refused_and_queues_nothing_more(
    api: TestClient, session: Session, admin: Caller
) -> None:
    row = build_round(session, updates=2)
    assert api.post(f"/v1/rounds/{row.id}/seal", headers=admin.headers).status_code == 202
    answer = api.post(f"/v1/rounds/{row.id}/seal", headers=admin.headers)
    assert (answer.status_code, answer.json()["code"]) == (409, "illegal_transition")
    assert session.scalar(sa.select(sa.func.count(Job.id))) == 1


def test_sealing_without_a_quorum_names_what_is_missing(
    api: TestClient, session: Session, admin: Caller
) -> None:
    row = build_round(session, updates=1)
    problem = api.post(f"/v1/rounds/{row.id}/seal", headers=admin.headers).json()
    assert (problem["code"], problem["received"], problem["min_updates"]) == ("quorum_missing", 1, 2)


def test_an_abort_by_hand_says_why_and_pauses_the_run(api: TestClient, session: Session) -> None:
    row = build_round(session, updates=1)
    coordinator = of_organisation(session, Role.COORDINATOR, row)
    answer = api.post(
        f"/v1/rounds/{row.id}/abort", json={"reason": "broken disk"}, headers=coordinator.headers
    )
    assert answer.status_code == 202
    assert (answer.json()["state"], answer.json()["abort_code"]) == ("aborted", "aborted_by_hand")
    assert answer.json()["abort_reason"] == "broken disk"
    session.expire_all()
    run = session.get_one(Run, row.run_id)
    assert (run.state, run.reason_code) == (RunState.PAUSED, "aborted_by_hand")


def test_an_abort_needs_a_reason(api: TestClient, session: Session, admin: Caller) -> None:
    row = build_round(session)
    for body in ({}, {"reason": ""}, {"reason": "a\nb"}, {"reason": "x", "more": 1}):
        assert api.post(f"/v1/rounds/{row.id}/abort", json=body, headers=admin.headers).status_code == 422


def test_the_log_names_every_step_and_who_took_it(api: TestClient, session: Session, admin: Caller) -> None:
    row = build_round(session, updates=2)
    api.post(f"/v1/rounds/{row.id}/seal", headers=admin.headers)
    steps = api.get(f"/v1/rounds/{row.id}/log", headers=admin.headers).json()["items"]
    assert [step["dst"] for step in steps] == ["planned", "open", "sealed"]
    assert steps[-1]["actor"] == admin.principal.actor


def test_an_absent_round_is_not_found(api: TestClient, admin: Caller) -> None:
    answer = api.get(f"/v1/rounds/{new_id()}", headers=admin.headers)
    assert (answer.status_code, answer.json()["code"]) == (404, "not_found")


@pytest.fixture
def gateway(database: Database, database_url: str, tmp_path: Path) -> Iterator[TestClient]:
    """The whole gateway with its hub, on true commits."""
    app = build_app(settings_for(database_url, tmp_path / "blobs", pool_size=4))
    with TestClient(app, base_url="http://127.0.0.1:8000") as client:
        yield client


def test_a_waiting_caller_hears_of_a_change_at_once_and_holds_no_connection(
    gateway: TestClient, database: Database
) -> None:
    with database.run_tx("test") as session:
        admin = add_caller(session)
        row = build_round(session, RoundState.PLANNED)
    with ThreadPoolExecutor(12) as pool:
        waiting = [
            pool.submit(
                gateway.get, f"/v1/rounds/{row.id}?wait=25&since={row.version}", headers=admin.headers
            )
            for _waiter in range(12)  # three times as many as there are connections
        ]
        _until_waiting(gateway, str(row.id), 12)
        with database.run_tx("test") as session:
            lifecycle.open_round(session, row.id, actor="test")
        answers = [future.result(timeout=20) for future in waiting]
    assert {(answer.status_code, answer.json()["state"]) for answer in answers} == {(200, "open")}


def _until_waiting(gateway: TestClient, round_id: str, count: int) -> None:
    waiters = gateway.app.state.hub._waiters
    while len(waiters.get((lifecycle.CHANNEL, round_id), ())) < count:
        pass


def test_a_wait_that_is_over_answers_with_what_is_there(gateway: TestClient, database: Database) -> None:
    with database.run_tx("test") as session:
        admin = add_caller(session)
        row = build_round(session)
    answer = gateway.get(f"/v1/rounds/{row.id}?wait=0.1", headers=admin.headers)
    assert (answer.status_code, answer.json()["version"]) == (200, row.version)


def test_dead_jobs_are_listed_and_retried_by_administrators_only(
    api: TestClient, session: Session, admin: Caller
) -> None:
    row = build_round(session, updates=2)
    lifecycle.seal(session, row.id, actor="test", vault=VAULT)
    session.execute(sa.update(Job).values(state=JobState.DEAD, attempts=5, last_error="ValueError at x:1"))
    coordinator = of_organisation(session, Role.COORDINATOR, row)
    assert api.get("/v1/admin/jobs", headers=coordinator.headers).status_code == 403
    (job,) = api.get("/v1/admin/jobs?state=dead&kind=aggregate", headers=admin.headers).json()["items"]
    assert (job["attempts"], job["last_error"]) == (5, "ValueError at x:1")
    assert api.get("/v1/admin/jobs?kind=publish", headers=admin.headers).json()["items"] == []
    answer = api.post(f"/v1/admin/jobs/{job['id']}/retry", headers=admin.headers)
    assert (answer.status_code, answer.json()["state"], answer.json()["attempts"]) == (202, "queued", 0)
    again = api.post(f"/v1/admin/jobs/{job['id']}/retry", headers=admin.headers)
    assert (again.status_code, again.json()["code"]) == (409, "job_not_dead")
    assert api.post(f"/v1/admin/jobs/{new_id()}/retry", headers=admin.headers).status_code == 404


def test_jobs_come_newest_first_in_pages(api: TestClient, session: Session, admin: Caller) -> None:
    for _number in range(3):
        lifecycle.seal(session, build_round(session, updates=2).id, actor="test", vault=VAULT)
    session.flush()
    first = api.get("/v1/admin/jobs?limit=2", headers=admin.headers).json()
    rest = api.get(f"/v1/admin/jobs?limit=2&cursor={first['next_cursor']}", headers=admin.headers).json()
    ids = [job["id"] for job in first["items"] + rest["items"]]
    assert ids == sorted(ids, reverse=True)
    assert (len(ids), rest["next_cursor"]) == (3, None)
