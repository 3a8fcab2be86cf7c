"""Celery on Valkey as a bell that may fail to ring or ring twice: every effect still happens exactly once."""

from __future__ import annotations

import threading
import time
from collections.abc import Callable, Iterator
from contextlib import closing, contextmanager
from pathlib import Path
from typing import Any
from uuid import UUID

import pytest
import redis
import sqlalchemy as sa
import structlog
from celery import Celery
from celery.contrib.testing.worker import start_worker

from app.core.db import Database
from app.core.settings import Settings
from app.identity.models import Organisation
from app.jobs import leases, queue
from app.jobs.kinds import KINDS
from app.jobs.models import Job, JobState
from cli.embedded.valkey import Valkey
from tests.database import settings_for
from workers import dispatcher, relay
from workers.broker import build_celery
from workers.context import Context
from workers.dispatcher import Dispatcher, StopSwitch
from workers.shell import run_job

pytestmark = pytest.mark.system
JOBS = 24
PATIENCE_S = 40.0


class BadBroker(Celery):
    """Loses the first hint of every second job, and sends every third of the others twice.

    It counts by job: a loss by the turn alone could fall on the same job for ever.
    """

    def __init__(self, good: Celery) -> None:
        self.good = good
        self.seen: dict[str, int] = {}
        self.lost = 0

    def close(self) -> None:
        self.good.close()

    def send_task(self, *args: Any, **options: Any) -> None:
        job_id = options["args"][0]
        first = job_id not in self.seen
        turn = self.seen.setdefault(job_id, len(self.seen))
        if first and turn % 2:
            self.lost += 1
            return
        for _copy in range(2 if turn % 3 == 0 else 1):
            self.good.send_task(*args, **options)


@pytest.fixture
def valkey(tmp_path: Path) -> Iterator[Valkey]:
    server = Valkey.start(tmp_path / "valkey", password="bell", durable=False)
    yield server
    server.stop()


@pytest.fixture
def settings(database_url: str, tmp_path: Path) -> Settings:
    return settings_for(database_url, tmp_path / "blobs", lease_s=3.0, tick_s=0.05, resend_s=0.3)


@contextmanager
def worker(valkey: Valkey, settings: Settings) -> Iterator[None]:
    """A Celery worker in a thread, whose handler founds an organisation named after the job."""

    def handle(context: Context, claim: leases.Claim) -> None:
        with context.database.run_tx("handler") as session:
            session.add(Organisation(name=f"{claim.key} {claim.attempt}", region="eu-west-1"))
            leases.finish(session, claim)

    def rest(_context: Context, _claim: leases.Claim) -> None:
        """What the clock asks for meanwhile."""

    context = Context.open(settings)
    celery = build_celery(valkey.url)
    handlers = {**dict.fromkeys(KINDS, rest), "aggregate": handle}

    def run(job_id: str) -> None:
        run_job(context, UUID(job_id), handlers=handlers)

    for kind in handlers:
        celery.task(run, name=f"job.{kind}", ignore_result=True, shared=False)

    try:
        with (
            closing(celery),
            start_worker(celery, pool="solo", concurrency=1, perform_ping_check=False, queues=["cpu"]),
        ):
            yield
    finally:
        context.database.dispose()


@contextmanager
def dispatching(settings: Settings, celery: Celery) -> Iterator[None]:
    """A dispatcher in a thread."""
    stop = StopSwitch()
    thread = threading.Thread(target=Dispatcher(settings, celery, stop).run)
    thread.start()
    try:
        yield
    finally:
        stop.turn()
        thread.join(timeout=10)
        stop.close()
        celery.close()
        assert not thread.is_alive()


def ask_for(database: Database, count: int) -> None:
    for number in range(count):
        with database.run_tx("test") as session:
            queue.enqueue(session, "aggregate", key=f"job {number}", payload={})


def wait_until(condition: Callable[[], bool]) -> None:
    deadline = time.monotonic() + PATIENCE_S
    while not condition():
        assert time.monotonic() < deadline, "it did not happen in time"
        time.sleep(0.02)


def done(database: Database) -> int:
    with database.run_tx("test") as session:
        return (
            session.scalar(
                sa.select(sa.func.count())
                .select_from(Job)
                .where(Job.kind == "aggregate", Job.state == JobState.DONE)
            )
            or 0
        )


def effects(database: Database) -> list[str]:
    with database.run_tx("test") as session:
        return sorted(name.rsplit(" ", 1)[0] for name in session.scalars(sa.select(Organisation.name)))


def test_lost_and_doubled_hints_leave_each_effect_exactly_once(
    settings: Settings, database: Database, valkey: Valkey
) -> None:
    broker = BadBroker(build_celery(valkey.url))
    with worker(valkey, settings), dispatching(settings, broker):
        ask_for(database, JOBS)
        wait_until(lambda: done(database) == JOBS)
    assert effects(database) == sorted(f"job {number}" for number in range(JOBS))
    assert broker.lost >= JOBS // 3


def test_a_flushed_broker_only_delays(settings: Settings, database: Database, valkey: Valkey) -> None:
    client = redis.Redis.from_url(valkey.url)
    with dispatching(settings, build_celery(valkey.url)):
        ask_for(database, JOBS)
        wait_until(lambda: int(client.llen("cpu")) >= JOBS)
        client.flushall()
        with worker(valkey, settings):
            wait_until(lambda: done(database) == JOBS)
    client.close()
    assert effects(database) == sorted(f"job {number}" for number in range(JOBS))


def test_a_broker_that_was_down_is_logged_once_and_catches_up(
    settings: Settings, database: Database, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    said = structlog.testing.LogCapture()
    monkeypatch.setattr(relay, "log", structlog.wrap_logger(None, processors=[said]))
    server = Valkey.start(tmp_path / "valkey", password="bell", durable=False)
    celery, port = build_celery(server.url), server.port
    celery.send_task("job.nothing", args=["x"], queue="elsewhere", retry=False)  # a connection in the pool
    server.stop()
    with dispatching(settings, celery):
        ask_for(database, JOBS)
        wait_until(lambda: bool(said.entries))
        with database.run_tx("test") as session:
            assert session.scalar(sa.select(sa.func.count(Job.sent_at))) == 0
        server = Valkey.start(tmp_path / "valkey", password="bell", durable=False, port=port)
        with worker(server, settings):
            wait_until(lambda: done(database) == JOBS)
    server.stop()
    assert [entry["event"] for entry in said.entries] == ["broker_unreachable", "broker_answers_again"]
    assert effects(database) == sorted(f"job {number}" for number in range(JOBS))


def test_several_dispatchers_share_the_work(settings: Settings, database: Database, valkey: Valkey) -> None:
    with (
        worker(valkey, settings),
        dispatching(settings, build_celery(valkey.url)),
        dispatching(settings, build_celery(valkey.url)),
    ):
        ask_for(database, JOBS)
        wait_until(lambda: done(database) == JOBS)
        with database.run_tx("test") as session:
            slots = session.scalars(sa.select(Job.key).where(Job.kind == "sweep")).all()
    assert len(slots) == len(set(slots)) >= 1
    assert effects(database) == sorted(f"job {number}" for number in range(JOBS))


def test_a_database_that_was_gone_is_logged_once_and_found_again(
    settings: Settings, database: Database, valkey: Valkey, monkeypatch: pytest.MonkeyPatch
) -> None:
    said = structlog.testing.LogCapture()
    monkeypatch.setattr(dispatcher, "log", structlog.wrap_logger(None, processors=[said]))

    def count(event: str) -> int:
        return sum(entry["event"] == event for entry in said.entries)

    with worker(valkey, settings), dispatching(settings, build_celery(valkey.url)):
        wait_until(lambda: count("dispatcher_listens") == 1)
        with database.run_tx("test") as session:
            session.execute(
                sa.text(
                    "SELECT pg_terminate_backend(pid) FROM pg_stat_activity"
                    " WHERE datname = current_database() AND pid <> pg_backend_pid()"
                )
            )
        wait_until(lambda: count("dispatcher_listens") == 2)
        ask_for(database, JOBS)
        wait_until(lambda: done(database) == JOBS)
    assert count("database_unreachable") == 1


def test_a_kind_that_a_newer_release_knows_is_left_to_it(
    settings: Settings, database: Database, valkey: Valkey
) -> None:
    with database.run_tx("test") as session:
        session.add(Job(kind="kind_of_tomorrow", key="x", payload={}))
    with worker(valkey, settings), dispatching(settings, build_celery(valkey.url)):
        ask_for(database, 2)
        wait_until(lambda: done(database) == 2)
    with database.run_tx("test") as session:
        assert session.scalar(sa.select(Job.sent_at).where(Job.kind == "kind_of_tomorrow")) is None
