"""Finding entries. Who may see them is decided by the caller; nothing here writes."""

from __future__ import annotations

import json
from dataclasses import dataclass
from datetime import datetime
from typing import Any
from uuid import UUID

import sqlalchemy as sa
from sqlalchemy.orm import Session

from app.audit import tree
from app.audit.actions import Action
from app.audit.models import AuditEntry, AuditPersonal


@dataclass(frozen=True, slots=True)
class Filters:
    """What entries have to be; None leaves a thing open."""

    action: Action | None = None
    subject: str | None = None
    actor: str | None = None
    since: datetime | None = None
    until: datetime | None = None


@dataclass(frozen=True, slots=True)
class Receipt:
    """That an entry is in the tree: its place, the path to the root, and the checkpoint with that root."""

    leaf_index: int
    path: tuple[bytes, ...]
    checkpoint: str


def entries(filters: Filters) -> sa.Select[AuditEntry]:
    """The entries that pass all filters."""
    columns = (
        (AuditEntry.action, filters.action),
        (AuditEntry.subject, filters.subject),
        (AuditEntry.actor, filters.actor),
    )
    statement = sa.select(AuditEntry).where(*(column == value for column, value in columns if value))
    if filters.since is not None:
        statement = statement.where(AuditEntry.at >= filters.since)
    if filters.until is not None:
        statement = statement.where(AuditEntry.at < filters.until)
    return statement


def entry_of(session: Session, *, action: Action, subject: str, actor: str) -> UUID | None:
    """The id of the first such entry."""
    filters = Filters(action=action, subject=subject, actor=actor)
    statement = entries(filters).with_only_columns(AuditEntry.id)
    found: UUID | None = session.scalar(statement.order_by(AuditEntry.id).limit(1))
    return found


def openings(session: Session, entry_id: UUID) -> dict[str, tuple[str, Any]]:
    """By name, salt (hex) and value of what an entry commits to; not what is concealed or was erased."""
    rows = session.scalars(
        sa.select(AuditPersonal)
        .where(AuditPersonal.entry_id == entry_id, AuditPersonal.concealed.is_(False))
        .order_by(AuditPersonal.name)
    )
    return {row.name: (row.salt.hex(), json.loads(row.clear)) for row in rows}


def receipt_of(session: Session, entry: AuditEntry) -> Receipt | None:
    """The entry's receipt under the first checkpoint that covers it; None while it waits for its place."""
    if entry.leaf_index is None:
        return None
    over = tree.checkpoint_over(session, entry.leaf_index)
    if over is None:
        return None
    path = tree.inclusion_proof(session, index=entry.leaf_index, size=over.size)
    return Receipt(entry.leaf_index, tuple(path), over.note)
