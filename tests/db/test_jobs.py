"""The outbox and the leases, on true commits."""

from __future__ import annotations

import threading
from concurrent.futures import ThreadPoolExecutor
from typing import Any
from uuid import UUID

import pytest
import sqlalchemy as sa
from celery import Celery

from app.core.db import Database
from app.core.errors import Conflict, NotFound
from app.core.ids import new_id
from app.jobs import leases, queue
from app.jobs.kinds import KINDS, JobKind, backoff_s, lease_s, time_limit_s
from app.jobs.models import Job, JobState
from tests.builders import build_organisation
from workers.relay import Relay

LEASE_S = 3.0


def ask(database: Database, kind: str = "aggregate", key: str = "k", **payload: Any) -> UUID:
    with database.run_tx("test") as session:
        queue.enqueue(session, kind, key=key, payload=payload)
        job_id = session.scalar(sa.select(Job.id).where(Job.kind == kind, Job.key == key))
    assert job_id is not None
    return job_id


def job(database: Database, job_id: UUID) -> Job:
    with database.run_tx("test") as session:
        row = session.get(Job, job_id)
        assert row is not None
        return row


def take(database: Database, job_id: UUID) -> leases.Claim:
    claim = leases.claim(database, job_id, ceiling_s=LEASE_S)
    assert claim is not None
    return claim


def expire(database: Database, job_id: UUID) -> None:
    """Let a lease run out without waiting for it."""
    with database.run_tx("test") as session:
        session.execute(
            sa.update(Job).where(Job.id == job_id).values(lease_until=sa.text("now() - interval '1 second'"))
        )


def make_due(database: Database, job_id: UUID) -> None:
    with database.run_tx("test") as session:
        session.execute(sa.update(Job).where(Job.id == job_id).values(run_at=sa.func.now()))


def organisations(database: Database) -> int:
    with database.run_tx("test") as session:
        return session.scalar(sa.text("SELECT count(*) FROM organisations")) or 0


def test_an_unknown_kind_is_refused(database: Database) -> None:
    with pytest.raises(ValueError, match="no such kind"), database.run_tx("test") as session:
        queue.enqueue(session, "mystery", key="k", payload={})


def test_asking_twice_is_one_job_with_the_first_payload(database: Database) -> None:
    first = ask(database, key="same", a=1)
    second = ask(database, key="same", a=2)
    assert first == second
    assert job(database, first).payload == {"a": 1}


def test_a_rolled_back_cause_leaves_no_job(database: Database) -> None:
    with database.run_tx("test") as session:
        queue.enqueue(session, "aggregate", key="gone", payload={})
        session.rollback()
    with database.run_tx("test") as session:
        assert session.scalar(sa.select(sa.func.count()).select_from(Job)) == 0


def test_of_sixteen_racing_claims_one_gets_the_lease(database: Database) -> None:
    job_id = ask(database)
    start = threading.Barrier(16)

    def race() -> leases.Claim | None:
        start.wait(timeout=10)
        return leases.claim(database, job_id, ceiling_s=LEASE_S)

    with ThreadPoolExecutor(16) as pool:
        won = [claim for claim in [f.result() for f in [pool.submit(race) for _ in range(16)]] if claim]
    assert len(won) == 1
    assert job(database, job_id).attempts == 1


def test_a_job_that_is_not_due_is_not_claimed(database: Database) -> None:
    job_id = ask(database)
    with database.run_tx("test") as session:
        session.execute(sa.update(Job).values(run_at=sa.text("now() + interval '1 hour'")))
    assert leases.claim(database, job_id, ceiling_s=LEASE_S) is None


def test_an_unknown_or_done_job_is_a_spare_hint(database: Database) -> None:
    assert leases.claim(database, new_id(), ceiling_s=LEASE_S) is None
    job_id = ask(database)
    with leases.settle(database, take(database, job_id)):
        pass
    assert job(database, job_id).state is JobState.DONE
    assert leases.claim(database, job_id, ceiling_s=LEASE_S) is None


def test_an_expired_lease_goes_to_the_next_and_the_zombies_results_roll_back(database: Database) -> None:
    job_id = ask(database)
    zombie = take(database, job_id)
    expire(database, job_id)
    heir = take(database, job_id)
    assert heir.attempt == 2
    with leases.settle(database, zombie), database.run_tx("zombie") as session:
        build_organisation(session)
        leases.finish(session, zombie)
    assert organisations(database) == 0
    assert job(database, job_id).state is JobState.QUEUED
    with leases.settle(database, heir), database.run_tx("heir") as session:
        leases.fence(session, heir)
        build_organisation(session)
        leases.finish(session, heir)
    assert organisations(database) == 1
    assert job(database, job_id).state is JobState.DONE


def test_a_zombies_failure_does_not_disturb_the_heir(database: Database) -> None:
    job_id = ask(database)
    zombie = take(database, job_id)
    expire(database, job_id)
    heir = take(database, job_id)
    with leases.settle(database, zombie):
        raise RuntimeError("too late")
    row = job(database, job_id)
    assert (row.lease_token, row.last_error) == (heir.token, None)


def test_a_fence_holds_the_job_until_its_transaction_ends(database: Database) -> None:
    job_id = ask(database)
    claim = take(database, job_id)
    expire(database, job_id)
    with ThreadPoolExecutor(1) as pool:
        with database.run_tx("worker") as session:
            leases.fence(session, claim)
            thief = pool.submit(leases.claim, database, job_id, ceiling_s=LEASE_S)
            while not _someone_waits(database):
                pass
            leases.finish(session, claim)
        assert thief.result(timeout=10) is None


def _someone_waits(database: Database) -> bool:
    with database.run_tx("test") as session:
        waiting = session.scalar(
            sa.text(
                "SELECT count(*) FROM pg_stat_activity WHERE wait_event_type = 'Lock'"
                " AND datname = current_database()"
            )
        )
    return bool(waiting)


def test_a_failure_is_tried_again_later_and_dead_after_the_last_attempt(database: Database) -> None:
    job_id = ask(database, kind="validate")
    for attempt in range(1, KINDS["validate"].max_attempts + 1):
        make_due(database, job_id)
        claim = take(database, job_id)
        assert claim.attempt == attempt
        with leases.settle(database, claim):
            raise ValueError("patient 4711 has blood group AB")
        row = job(database, job_id)
        assert row.last_error is not None
        assert row.last_error.startswith("ValueError at ")
        assert "4711" not in row.last_error
        if attempt < KINDS["validate"].max_attempts:
            assert leases.claim(database, job_id, ceiling_s=LEASE_S) is None, "the back-off holds"
            assert (row.state, row.sent_at, row.lease_token) == (JobState.QUEUED, None, None)
    assert row.state is JobState.DEAD


def test_attempts_that_end_without_a_word_are_counted_too(database: Database) -> None:
    job_id = ask(database, kind="validate")
    for _attempt in range(KINDS["validate"].max_attempts):
        take(database, job_id)
        expire(database, job_id)
    assert leases.claim(database, job_id, ceiling_s=LEASE_S) is None
    row = job(database, job_id)
    assert (row.state, row.last_error) == (JobState.DEAD, leases.OUT_OF_ATTEMPTS)


def test_a_dead_job_can_be_retried_and_no_other(database: Database) -> None:
    job_id = ask(database)
    with database.run_tx("test") as session, pytest.raises(Conflict):
        queue.retry(session, job_id)
    with database.run_tx("test") as session, pytest.raises(NotFound):
        queue.retry(session, new_id())
    with database.run_tx("test") as session:
        session.execute(sa.update(Job).values(state=JobState.DEAD, attempts=5))
    with database.run_tx("test") as session:
        assert queue.retry(session, job_id).attempts == 0
    assert take(database, job_id).attempt == 1


@pytest.mark.parametrize("kind", KINDS.values(), ids=lambda kind: kind.name)
@pytest.mark.parametrize("ceiling_s", [3.0, 300.0, 10_000.0])
def test_a_time_limit_ends_before_its_lease(kind: JobKind, ceiling_s: float) -> None:
    assert 1 <= time_limit_s(kind, ceiling_s=ceiling_s) < lease_s(kind, ceiling_s=ceiling_s) <= ceiling_s


def test_the_back_off_doubles_and_is_bounded() -> None:
    kind = KINDS["aggregate"]
    waits = [backoff_s(kind, attempt=attempt) for attempt in range(1, 30)]
    assert waits[:4] == [1.0, 2.0, 4.0, 8.0]
    assert max(waits) == 600.0


class Bell(Celery):
    """Writes down which queue was rung for what."""

    def __init__(self) -> None:
        self.rung: set[tuple[str, str]] = set()

    def send_task(self, name: str, *_args: Any, **options: Any) -> None:
        self.rung.add((name, options["queue"]))


@pytest.mark.parametrize(("gpu_workers", "queues"), [(True, ["gpu", "cpu"]), (False, ["cpu", "cpu"])])
def test_a_gpu_is_offered_an_aggregation_once_and_then_anybody_is(
    database: Database, gpu_workers: bool, queues: list[str]
) -> None:
    ask(database, "aggregate")
    ask(database, "price")
    for name in queues:
        bell = Bell()
        with database.run_tx("test") as session:
            Relay(bell, resend_s=1e-6, gpu_workers=gpu_workers).send_due(session)
        assert bell.rung == {("job.aggregate", name), ("job.price", "cpu")}
