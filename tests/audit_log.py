"""Driving the audit log's sequencer in tests, as the dispatcher does."""

import time

import sqlalchemy as sa

from app.audit import sequencer
from app.audit.models import AuditEntry
from app.core.crypto import Vault
from app.core.db import Database

URL = "http://127.0.0.1:8000"
ORIGIN = "127.0.0.1:8000/audit"
LONGEST_S = 90.0
"""Other tests' transactions hold up the order on the PostgreSQL that all share: for as long as they last."""


def place(database: Database) -> int:
    """One turn of the sequencer."""
    with database.run_tx("sequence") as session:
        return sequencer.sequence(session, Vault(bytes(range(32))), public_url=URL)


def place_all(database: Database) -> int:
    """Turn until every entry has its place; returns how many got one."""
    placed, until = 0, time.monotonic() + LONGEST_S
    while True:
        placed += place(database)
        with database.run_tx("test") as session:
            waiting = sa.select(sa.func.count()).where(AuditEntry.leaf_index.is_(None))
            if not session.scalar(waiting):
                return placed
        assert time.monotonic() < until, "entries wait for a transaction that does not end"
        time.sleep(0.02)
