"""The table of security events: what looked like an attack, how often, and what became of it."""

from __future__ import annotations

from datetime import datetime
from enum import StrEnum
from typing import Any
from uuid import UUID

import sqlalchemy as sa
from sqlalchemy.orm import Mapped, mapped_column

from app.core.db import Base, enum_type
from app.core.ids import new_id
from app.security.kinds import Advice, kind_of

VERSIONS = sa.Sequence("security_event_versions")


class Severity(StrEnum):
    """How soon somebody should look."""

    NOTICE = "notice"  # may well be a mistake
    WARNING = "warning"  # looks like an attack that was stopped
    ALARM = "alarm"  # somebody has what they should not have


class SecurityEvent(Base):
    """One kind of thing about one subject within one hour; more of the same are counted."""

    __tablename__ = "security_events"
    __table_args__ = (
        sa.UniqueConstraint("kind", "subject", "hour"),
        sa.CheckConstraint("score BETWEEN 0 AND 1", name="score"),
    )

    id: Mapped[UUID] = mapped_column(primary_key=True, default=new_id)
    version: Mapped[int] = mapped_column(sa.BigInteger, VERSIONS, unique=True)
    """Grows with every change of any event: what a feed goes on from."""
    kind: Mapped[str] = mapped_column(sa.String(64))
    subject: Mapped[str] = mapped_column(sa.String(120))
    """`client:ID`, `member:ID`, `organisation:ID`, or `address:ADDRESS` where nobody is known."""
    organisation_id: Mapped[UUID | None] = mapped_column(index=True)
    hour: Mapped[datetime]
    severity: Mapped[Severity] = mapped_column(enum_type(Severity))
    score: Mapped[float] = mapped_column(server_default="0.5")
    """How sure one is that it is no accident; the highest that was seen."""
    count: Mapped[int] = mapped_column(default=1)
    evidence: Mapped[dict[str, Any]]
    """Of the first time: codes, ids and numbers."""
    first_at: Mapped[datetime]
    last_at: Mapped[datetime]
    resolved_at: Mapped[datetime | None]
    resolved_by: Mapped[str | None] = mapped_column(sa.String(100))
    resolution: Mapped[str | None] = mapped_column(sa.String(1000))

    @property
    def advice(self) -> Advice:
        """What an administrator might do first."""
        return kind_of(self.kind).advice
