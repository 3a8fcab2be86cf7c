"""The dispatcher keeps the audit log in order, and jobs going whatever is wrong with it."""

import os
from pathlib import Path

import pytest
import sqlalchemy as sa
import structlog

from app.audit import tree
from app.core.db import Database
from app.core.settings import Settings
from app.jobs.models import Job
from tests.database import settings_for
from tests.db.test_audit_sequencer import leaves_of, note
from tests.services import REDIS_VARIABLE
from tests.system.test_jobs_over_a_bad_broker import ask_for, dispatching, wait_until
from workers import dispatcher
from workers.broker import build_celery

pytestmark = [pytest.mark.system, pytest.mark.timeout(120)]


@pytest.fixture
def settings(database_url: str, tmp_path: Path) -> Settings:
    return settings_for(database_url, tmp_path / "blobs", tick_s=0.05, resend_s=60.0)


def sizes(database: Database) -> list[int]:
    with database.run_tx("test") as session:
        newest = tree.latest(session)
        return [] if newest is None else [newest.size]


def test_two_dispatchers_place_each_entry_once(settings: Settings, database: Database) -> None:
    celery = [build_celery(os.environ[REDIS_VARIABLE]) for _number in range(2)]
    with dispatching(settings, celery[0]), dispatching(settings, celery[1]):
        for number in range(20):
            with database.run_tx("test") as session:
                note(session, number)
        wait_until(lambda: sizes(database) == [20])
    with database.run_tx("test") as session:
        assert [index for index, _leaf, _subject in leaves_of(session)] == list(range(20))


def test_a_broken_tree_stops_the_log_and_no_job(
    settings: Settings, database: Database, monkeypatch: pytest.MonkeyPatch
) -> None:
    said = structlog.testing.LogCapture()
    monkeypatch.setattr(dispatcher, "log", structlog.wrap_logger(None, processors=[said]))
    with database.run_tx("test") as session:
        note(session)
    with dispatching(settings, build_celery(os.environ[REDIS_VARIABLE])):
        wait_until(lambda: sizes(database) == [1])
        with database.run_tx("test") as session:
            session.execute(sa.text("ALTER TABLE audit_entries DISABLE TRIGGER USER"))
            session.execute(
                sa.text("UPDATE audit_entries SET canonical = '{}', leaf_hash = sha256('\\x007b7d')")
            )
            note(session)
        ask_for(database, 1)
        wait_until(lambda: any(one["event"] == "audit_log_not_sequenced" for one in said.entries))
        wait_until(lambda: _is_sent(database))
    assert sizes(database) == [1]


def _is_sent(database: Database) -> bool:
    with database.run_tx("test") as session:
        sent = sa.select(sa.func.count(Job.sent_at)).where(Job.kind == "aggregate")
        return bool(session.scalar(sent))
