"""Driving the audit log's sequencer in tests, as the dispatcher does, and reading what is in the log."""

import json
import time
from typing import Any
from uuid import UUID

import sqlalchemy as sa
from sqlalchemy.orm import Session

from app.audit import sequencer
from app.audit.models import AuditEntry, AuditPersonal
from app.audit.record import commitment
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


def entries(session: Session, organisation_id: UUID | str | None = None) -> list[dict[str, Any]]:
    """What the log holds of an organisation, or all, oldest first."""
    statement = sa.select(AuditEntry.canonical).order_by(AuditEntry.id)
    if organisation_id is not None:
        statement = statement.where(AuditEntry.organisation_id == UUID(str(organisation_id)))
    return [json.loads(one) for one in session.scalars(statement)]


def seen(session: Session, organisation_id: UUID | str | None = None) -> list[tuple[str, str, str]]:
    """The same as (action, actor, subject)."""
    return [(one["action"], one["actor"], one["subject"]) for one in entries(session, organisation_id)]


def opened(session: Session, entry: dict[str, Any], name: str) -> Any:
    """The value behind a commitment of an entry, which has to be what was committed to."""
    row = session.get_one(AuditPersonal, (UUID(entry["id"]), name))
    assert commitment(name, row.salt, row.clear).hex() == entry["commitments"][name]
    assert not row.concealed
    return json.loads(row.clear)
