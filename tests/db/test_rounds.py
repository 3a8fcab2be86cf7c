"""The life of a round: transitions, quorum, races, and the database's own refusal."""

from __future__ import annotations

import threading
from concurrent.futures import ThreadPoolExecutor
from datetime import timedelta
from uuid import UUID

import psycopg
import pytest
import sqlalchemy as sa
from sqlalchemy.engine import make_url
from sqlalchemy.orm import Session

from app.core import clock
from app.core.db import Database
from app.core.errors import IllegalTransition, NotFound
from app.core.ids import new_id
from app.jobs.models import Job
from app.rounds import lifecycle, queries
from app.rounds.models import RoundEdge
from app.rounds.states import EDGES, RoundState
from app.updates.models import UpdateState
from tests.builders import build_round, build_run, build_update, clients_of
from tests.http.accounts import VAULT


def jobs(session: Session) -> list[tuple[str, str]]:
    return [(row.kind, row.key) for row in session.scalars(sa.select(Job).order_by(Job.kind))]


def test_the_edges_in_the_database_are_the_edges_in_the_code(session: Session) -> None:
    assert {(row.src, row.dst) for row in session.scalars(sa.select(RoundEdge))} == {
        (str(src), str(dst)) for src, dst in EDGES
    }


@pytest.mark.parametrize("src", RoundState)
@pytest.mark.parametrize("dst", RoundState)
def test_only_an_edge_can_be_taken(session: Session, src: RoundState, dst: RoundState) -> None:
    row = build_round(session, src)
    before = row.version
    if (src, dst) in EDGES:
        assert lifecycle.advance(session, row.id, dst, actor="test") == before + 1
        assert [(e.src, e.dst, e.actor) for e in queries.log_of(session, row.id)][-1] == (src, dst, "test")
    else:
        with pytest.raises(IllegalTransition):
            lifecycle.advance(session, row.id, dst, actor="test")


def test_a_raw_update_to_an_illegal_state_is_refused_by_the_database(
    database: Database, database_url: str
) -> None:
    with database.run_tx("test") as session:
        row = build_round(session, RoundState.OPEN)
    dsn = make_url(database_url).set(drivername="postgresql").render_as_string(hide_password=False)
    with psycopg.connect(dsn) as psql, pytest.raises(psycopg.errors.ForeignKeyViolation):
        psql.execute("UPDATE rounds SET state = 'published' WHERE id = %s", [row.id])
    with psycopg.connect(dsn) as psql:
        psql.execute("UPDATE rounds SET state = 'sealed' WHERE id = %s", [row.id])
    with database.run_tx("test") as session:
        assert [entry.dst for entry in queries.log_of(session, row.id)] == ["planned", "open", "sealed"]
        assert queries.log_of(session, row.id)[-1].actor == "database:dpfl"


def test_a_round_is_planned_with_its_cohort_and_opened(session: Session) -> None:
    run = build_run(session, clients=3)
    row = lifecycle.plan(
        session,
        run_id=run.id,
        organisation_id=run.organisation_id,
        number=1,
        min_updates=2,
        max_updates=3,
        deadline=clock.now() + timedelta(minutes=10),
        adapter_sha256="a" * 64,
        client_ids=clients_of(session, run),
        actor="member:1",
    )
    assert row.state is RoundState.PLANNED
    assert list(queries.cohort_of(session, row.id)) == clients_of(session, run)
    lifecycle.open_round(session, row.id, actor="member:1")
    session.refresh(row)
    assert (row.state, row.opened_at is not None) == (RoundState.OPEN, True)
    assert queries.is_assigned(session, row.id, clients_of(session, run)[0])
    assert not queries.is_assigned(session, row.id, new_id())


def test_sealing_without_a_quorum_is_refused_and_queues_nothing(session: Session) -> None:
    row = build_round(session, updates=1)
    with pytest.raises(lifecycle.QuorumMissing) as refusal:
        lifecycle.seal(session, row.id, actor="test", vault=VAULT)
    assert refusal.value.members == {"received": 1, "min_updates": 2}
    session.refresh(row)
    assert (row.state, jobs(session)) == (RoundState.OPEN, [])


def test_an_update_that_is_not_whole_does_not_count_for_the_quorum(session: Session) -> None:
    row = build_round(session, updates=1)
    other = queries.cohort_of(session, row.id)[1]
    build_update(session, row, other, state=UpdateState.RECEIVING)
    with pytest.raises(lifecycle.QuorumMissing):
        lifecycle.seal(session, row.id, actor="test", vault=VAULT)


def test_sealing_fixes_the_set_and_queues_the_aggregation_once(session: Session) -> None:
    row = build_round(session, updates=2)
    lifecycle.seal(session, row.id, actor="test", vault=VAULT)
    with pytest.raises(IllegalTransition):
        lifecycle.seal(session, row.id, actor="test", vault=VAULT)
    with pytest.raises(lifecycle.RoundClosed):
        lifecycle.hold_open(session, row.id)
    assert jobs(session) == [("aggregate", str(row.id))]


@pytest.mark.parametrize(
    ("received", "rejected", "seals"), [(3, 0, True), (2, 1, True), (2, 0, False), (1, 2, False)]
)
def test_a_round_seals_itself_when_everybody_was_heard_and_the_quorum_is_there(
    session: Session, received: int, rejected: int, seals: bool
) -> None:
    row = build_round(session, run=build_run(session, clients=3), updates=received)
    for client_id in queries.cohort_of(session, row.id)[received : received + rejected]:
        build_update(session, row, client_id, state=UpdateState.REJECTED)
    assert lifecycle.seal_if_complete(session, row.id, actor="test", vault=VAULT) is seals
    session.refresh(row)
    assert row.state is (RoundState.SEALED if seals else RoundState.OPEN)


def test_an_abort_says_why_and_asks_for_the_purge(session: Session) -> None:
    row = build_round(session, updates=1)
    lifecycle.abort(session, row.id, code="deadline", reason="too late", actor="test")
    session.refresh(row)
    assert (row.state, row.abort_code, row.abort_reason) == (RoundState.ABORTED, "deadline", "too late")
    assert jobs(session) == [("purge", str(row.id))]


def test_an_absent_round_is_not_found(session: Session) -> None:
    with pytest.raises(NotFound):
        lifecycle.seal(session, new_id(), actor="test", vault=VAULT)
    with pytest.raises(NotFound):
        queries.get_round(session, new_id())


def test_of_thirty_two_racing_seals_one_wins_and_one_job_is_queued(database: Database) -> None:
    with database.run_tx("test") as session:
        row = build_round(session, updates=2)
    start = threading.Barrier(16)

    def race() -> bool:
        start.wait(timeout=20)
        try:
            with database.run_tx("seal") as session:
                lifecycle.seal(session, row.id, actor="test", vault=VAULT)
        except IllegalTransition:
            return False
        return True

    with ThreadPoolExecutor(16) as pool:
        won = [future.result() for future in [pool.submit(race) for _ in range(32)]]
    assert won.count(True) == 1
    with database.run_tx("test") as session:
        assert jobs(session) == [("aggregate", str(row.id))]
        assert [entry.dst for entry in queries.log_of(session, row.id)].count("sealed") == 1


def test_an_update_that_holds_the_round_open_is_in_the_sealed_set(database: Database) -> None:
    with database.run_tx("test") as session:
        row = build_round(session, updates=1)
        late = queries.cohort_of(session, row.id)[1]

    def seal() -> None:
        with database.run_tx("seal") as session:
            lifecycle.seal(session, row.id, actor="test", vault=VAULT)

    with ThreadPoolExecutor(1) as pool:
        with database.run_tx("accept") as session:
            lifecycle.hold_open(session, row.id)
            sealing = pool.submit(seal)
            build_update(session, row, late)
        sealing.result(timeout=20)  # would raise QuorumMissing, had it not waited
    with database.run_tx("test") as session:
        assert queries.get_round(session, row.id).state is RoundState.SEALED


def test_every_change_is_notified_with_its_commit(database: Database, database_url: str) -> None:
    dsn = make_url(database_url).set(drivername="postgresql").render_as_string(hide_password=False)
    with psycopg.connect(dsn, autocommit=True) as listener:
        listener.execute("LISTEN dpfl_rounds")
        with database.run_tx("test") as session:
            row = build_round(session, RoundState.PLANNED)
            clients = {f"client:{client_id}" for client_id in queries.cohort_of(session, row.id)}
            lifecycle.open_round(session, row.id, actor="test")
        heard = {message.payload for message in listener.notifies(timeout=10, stop_after=3)}
    assert heard == {str(row.id)} | clients


def _overdue_ids(session: Session) -> list[UUID]:
    return [row.id for row in queries.overdue(session)]


def test_only_open_rounds_past_their_deadline_are_overdue(session: Session) -> None:
    late, early = build_round(session), build_round(session)
    build_round(session, RoundState.ABORTED).deadline = clock.now() - timedelta(hours=2)
    late.deadline = clock.now() - timedelta(hours=2)
    session.flush()
    assert _overdue_ids(session) == [late.id]
    assert early.id not in _overdue_ids(session)
