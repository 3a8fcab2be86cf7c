"""The log as JSON Lines, for somebody who checks it without us: see app.audit.verify for what is checked.

    {"format": "dpfl-audit-export/1", "origin": ..., "scope": "federation" | <organisation>, "size": N}
    {"entry": {...}, "leaf_hash": <hex>, "leaf_index": 0}      N lines; without `entry` where it is another's
    {"checkpoint": <signed text over N entries>}
    {"keys": [<verifier key of each signature>]}

Every line is in the one byte form of its value and ends with a newline.
"""

from __future__ import annotations

import json
from collections.abc import Iterator
from typing import Any
from uuid import UUID

import sqlalchemy as sa
from sqlalchemy.orm import Session

from app.audit import checkpoint, keys
from app.audit.models import AuditCheckpoint, AuditEntry
from app.audit.verify import FEDERATION, FORMAT
from app.core.canonical import canonical_bytes

LINES = 500
"""Entries that are read at a time."""


def head(newest: AuditCheckpoint, organisation_id: UUID | None) -> bytes:
    """The first line; `organisation_id` is whose entries are shown, None for all."""
    origin = checkpoint.parse(newest.note)[0].origin
    scope = FEDERATION if organisation_id is None else str(organisation_id)
    return _line({"format": FORMAT, "origin": origin, "scope": scope, "size": newest.size})


def entries(session: Session, organisation_id: UUID | None, *, start: int, size: int) -> bytes:
    """The lines of at most LINES entries from leaf `start` on, below `size`."""
    rows = session.scalars(
        sa.select(AuditEntry)
        .where(AuditEntry.leaf_index >= start, AuditEntry.leaf_index < min(start + LINES, size))
        .order_by(AuditEntry.leaf_index)
    )
    shown = organisation_id
    return b"".join(_entry(row, hidden=shown not in {None, row.organisation_id}) for row in rows)


def tail(session: Session, newest: AuditCheckpoint) -> bytes:
    """The last two lines."""
    _checkpoint, signatures = checkpoint.parse(newest.note)
    known = {key.id: key.text for key in (keys.public(row) for row in keys.public_keys(session))}
    signers = [known[one.key_id] for one in signatures]
    return _line({"checkpoint": newest.note}) + _line({"keys": signers})


def starts(size: int) -> Iterator[int]:
    """Where each piece of the entries begins."""
    yield from range(0, size, LINES)


def _entry(row: AuditEntry, *, hidden: bool) -> bytes:
    line: dict[str, Any] = {"leaf_hash": row.leaf_hash.hex(), "leaf_index": row.leaf_index}
    return _line(line if hidden else line | {"entry": json.loads(row.canonical)})


def _line(value: dict[str, Any]) -> bytes:
    return canonical_bytes(value) + b"\n"
