"""Noting what looks like an attack, and what was made of it. Nothing here bans anybody.

An event is written in the transaction of what it tells about, or in one of its own where that was refused.
The same thing about the same subject within an hour is one event with a count, so that whoever repeats an
attack fills no table.
"""

from __future__ import annotations

from collections.abc import Mapping
from datetime import datetime, timedelta
from typing import Any
from uuid import UUID

import sqlalchemy as sa
from sqlalchemy.dialects.postgresql import insert
from sqlalchemy.orm import Session

from app.audit.record import Action, record
from app.core import clock
from app.core.db import notify
from app.core.errors import NotFound
from app.core.i18n import _
from app.core.ids import new_id
from app.security.kinds import kind_of
from app.security.models import VERSIONS, SecurityEvent, Severity

CHANNEL, PAYLOAD = "dpfl_security", "events"
_MOST_TEXT = 200
_LOCK = "SELECT pg_advisory_xact_lock(hashtext('dpfl.security_events'))"
"""Versions become visible in their order, so that a feed misses none."""

Evidence = Mapping[str, str | float | bool | None]


def note(
    session: Session,
    *,
    kind: str,
    subject: str,
    organisation_id: UUID | None,
    severity: Severity,
    evidence: Evidence,
    score: float | None = None,
) -> UUID:
    """Note an event, or count it where it was noted this hour; returns its id.

    `score` is what the evidence says; None is what is known of the kind.
    """
    session.execute(sa.text(_LOCK))
    event_id, times = _counted(
        session,
        kind=kind,
        subject=subject[:120],
        organisation_id=organisation_id,
        severity=severity,
        score=kind_of(kind).score if score is None else score,
        evidence={name: one[:_MOST_TEXT] if isinstance(one, str) else one for name, one in evidence.items()},
    )
    if times == 1:
        record(
            session,
            action=Action.SECURITY_EVENT_NOTED,
            actor="server",
            organisation_id=organisation_id,
            subject=f"security_event:{event_id}",
            details={"kind": kind, "severity": severity.value},
            committed={"subject": subject[:120]},
        )
    notify(session, CHANNEL, PAYLOAD)
    return event_id


def _counted(session: Session, **values: Any) -> tuple[UUID, int]:
    """Write or count the event of this hour; returns its id and how often it was seen."""
    moment = clock.now()
    counted: dict[str, Any] = {
        "count": SecurityEvent.count + 1,
        "last_at": moment,
        "version": VERSIONS.next_value(),
        "resolved_at": None,
    }
    fresh = insert(SecurityEvent).values(
        id=new_id(),
        version=VERSIONS.next_value(),
        hour=_hour(moment),
        count=1,
        first_at=moment,
        last_at=moment,
        **values,
    )
    counted["score"] = sa.func.greatest(SecurityEvent.score, fresh.excluded.score)
    row = session.execute(
        fresh.on_conflict_do_update(index_elements=["kind", "subject", "hour"], set_=counted).returning(
            SecurityEvent.id, SecurityEvent.count.label("times")
        )
    ).one()
    return row.id, row.times


def resolve(session: Session, event_id: UUID, *, actor: str, reason: str) -> SecurityEvent:
    """Write down what was made of an event; raises NotFound. More of the same opens it again."""
    session.execute(sa.text(_LOCK))
    row = session.get(SecurityEvent, event_id, with_for_update=True, populate_existing=True)
    if row is None:
        raise NotFound(_("there is no such event"))
    row.resolved_at, row.resolved_by, row.resolution = clock.now(), actor, reason
    row.version = session.scalar(sa.select(VERSIONS.next_value())) or row.version
    session.flush()
    record(
        session,
        action=Action.SECURITY_EVENT_RESOLVED,
        actor=actor,
        organisation_id=row.organisation_id,
        subject=f"security_event:{row.id}",
        details={"kind": row.kind},
        committed={"reason": reason},
    )
    notify(session, CHANNEL, PAYLOAD)
    return row


def forget(session: Session, *, older_than: timedelta) -> None:
    """Delete events of which nothing was seen for so long; the audit log keeps that there were some."""
    session.execute(sa.delete(SecurityEvent).where(SecurityEvent.last_at < clock.now() - older_than))


def events(organisation_id: UUID | None) -> sa.Select[SecurityEvent]:
    """Events of one organisation's members and clients; of None all, those of unknown callers included."""
    statement = sa.select(SecurityEvent)
    if organisation_id is not None:
        statement = statement.where(SecurityEvent.organisation_id == organisation_id)
    return statement


def _hour(moment: datetime) -> datetime:
    return moment.replace(minute=0, second=0, microsecond=0)
