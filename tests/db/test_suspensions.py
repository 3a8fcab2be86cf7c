"""The suspensions in memory: while they are being read again, nobody is let in by what was held before."""

import threading
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from uuid import UUID

import pytest
from sqlalchemy.orm import Session

from app.core import clock
from app.core.db import Database
from app.core.errors import Unavailable
from app.identity.authentication import Suspensions
from app.identity.models import Member
from tests.http.accounts import add_caller


class Watched(Database):
    """A database of which a test says what happens around a read."""

    def __init__(self, database: Database) -> None:
        self.engine, self.sessions = database.engine, database.sessions
        self.before: Callable[[], None] | None = None
        self.after: Callable[[], None] | None = None

    @contextmanager
    def run_tx(self, name: str) -> Iterator[Session]:
        before, after, self.before, self.after = self.before, self.after, None, None
        with super().run_tx(name) as session:
            if before is not None:
                before()
            yield session
            if after is not None:
                after()


class NoticedLock:
    """A lock that tells when somebody comes to it while it is held."""

    def __init__(self, noticed: threading.Event) -> None:
        self._lock = threading.Lock()
        self._noticed = noticed

    def __enter__(self) -> None:
        if self._lock.locked():
            self._noticed.set()
        self._lock.acquire()

    def __exit__(self, *_raised: object) -> None:
        self._lock.release()


@pytest.fixture
def watched(database: Database) -> Watched:
    return Watched(database)


@pytest.fixture
def member_id(database: Database) -> UUID:
    with database.run_tx("test") as session:
        return add_caller(session).principal.id


def suspend(database: Database, member_id: UUID) -> None:
    with database.run_tx("suspend") as session:
        session.get_one(Member, member_id).suspended_at = clock.now()


def test_who_asks_while_the_suspensions_are_read_waits_for_what_is_read(
    watched: Watched, member_id: UUID, monkeypatch: pytest.MonkeyPatch
) -> None:
    suspensions = Suspensions(watched)
    came = threading.Event()
    monkeypatch.setattr(suspensions, "_lock", NoticedLock(came))
    assert member_id not in suspensions
    suspend(watched, member_id)
    suspensions.announce()
    answers: list[bool] = []

    def ask() -> None:
        answers.append(member_id in suspensions)
        came.set()

    asker = threading.Thread(target=ask)

    def another_asks() -> None:
        asker.start()
        assert came.wait(30)  # it was answered, or stands at the lock

    watched.before = another_asks
    assert member_id in suspensions
    asker.join(30)
    assert answers == [True]


def test_a_suspension_announced_during_a_read_makes_that_read_old(watched: Watched, member_id: UUID) -> None:
    suspensions = Suspensions(watched)

    def meanwhile() -> None:
        suspend(watched, member_id)
        suspensions.announce()

    watched.after = meanwhile
    assert member_id not in suspensions  # asked before it was suspended
    assert member_id in suspensions


def test_a_read_that_failed_is_none(watched: Watched, member_id: UUID) -> None:
    suspensions = Suspensions(watched)
    assert member_id not in suspensions
    suspend(watched, member_id)
    suspensions.announce()

    def fail() -> None:
        raise Unavailable

    watched.before = fail
    with pytest.raises(Unavailable):
        _ = member_id in suspensions
    assert member_id in suspensions
