"""Attempts at once gain nothing over attempts in turn."""

from concurrent.futures import ThreadPoolExecutor

import sqlalchemy as sa

from app.core.db import Database
from app.identity import attempts
from app.identity.models import Attempts
from tests.http.accounts import VAULT


def test_of_many_wrong_attempts_at_once_five_are_judged(database: Database) -> None:
    guarded = attempts.of_password("ada@riverside.example", "203.0.113.7")

    def attempt(_index: int) -> bool:
        try:
            with database.run_tx("attempt") as session:
                attempts.count(session, VAULT, guarded)
        except attempts.TooManyAttempts:
            return False
        return True

    with ThreadPoolExecutor(16) as pool:
        judged = list(pool.map(attempt, range(32)))
    assert judged.count(True) == 5
    with database.run_tx("test") as session:
        assert sorted(session.scalars(sa.select(Attempts.failures))) == [5, 5]


def test_right_attempts_at_once_make_nobody_wait(database: Database) -> None:
    def attempt(index: int) -> None:
        guarded = attempts.of_password(f"{index}@riverside.example", "203.0.113.7")
        with database.run_tx("attempt") as session:
            attempts.count(session, VAULT, guarded)
        with database.run_tx("judged") as session:
            attempts.take_back(session, VAULT, guarded)

    with ThreadPoolExecutor(16) as pool:
        list(pool.map(attempt, range(64)))
    with database.run_tx("test") as session:
        assert set(session.scalars(sa.select(Attempts.failures))) == {0}
