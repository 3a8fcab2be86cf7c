"""Tables of rounds and of who is asked to take part in them."""

from __future__ import annotations

from datetime import datetime
from uuid import UUID

import sqlalchemy as sa
from sqlalchemy.orm import Mapped, mapped_column

from app.core.db import Base, enum_type
from app.core.ids import new_id
from app.rounds.states import RoundState


class Round(Base):
    """One training round. `state` is written by rounds.lifecycle.advance() alone."""

    __tablename__ = "rounds"
    __table_args__ = (
        sa.UniqueConstraint("run_id", "number"),
        sa.CheckConstraint("max_updates >= min_updates AND min_updates >= 0", name="quorum"),
        sa.CheckConstraint("NOT cohort_secret OR clip_norm IS NOT NULL", name="noised_once"),
        sa.Index("ix_rounds_deadline", "deadline", postgresql_where=sa.text("state = 'open'")),
    )

    id: Mapped[UUID] = mapped_column(primary_key=True, default=new_id)
    run_id: Mapped[UUID] = mapped_column(sa.ForeignKey("runs.id"), index=True)
    organisation_id: Mapped[UUID] = mapped_column(sa.ForeignKey("organisations.id"))
    number: Mapped[int]
    """1 to the manifest's `rounds`."""
    state: Mapped[RoundState] = mapped_column(enum_type(RoundState), default=RoundState.PLANNED)
    version: Mapped[int] = mapped_column(default=1)
    min_updates: Mapped[int]
    max_updates: Mapped[int]
    deadline: Mapped[datetime | None]
    """When an open round is sealed, or aborted for want of a quorum."""
    cohort_secret: Mapped[bool] = mapped_column(server_default=sa.false())
    """Who was drawn, and how many, is nobody's business: nothing that leaves the server may show it."""
    clip_norm: Mapped[float | None]
    """C of this round where the server adds the noise (trust `central`); None under every other trust."""
    next_clip_norm: Mapped[float | None]
    """What adaptive clipping found for the next round, from noised bits alone."""
    adapter_sha256: Mapped[str] = mapped_column(sa.String(64))
    """Blob of the adapter that clients start from."""
    candidate_sha256: Mapped[str | None] = mapped_column(sa.String(64))
    """Blob of the aggregated adapter."""
    device: Mapped[str | None] = mapped_column(sa.String(100))
    """Where the aggregate was computed."""
    abort_code: Mapped[str | None] = mapped_column(sa.String(64))
    abort_reason: Mapped[str | None]
    opened_at: Mapped[datetime | None]
    sealed_at: Mapped[datetime | None]
    finished_at: Mapped[datetime | None]
    created_at: Mapped[datetime] = mapped_column(server_default=sa.func.now())


class Assignment(Base):
    """A client that belongs to a round's cohort."""

    __tablename__ = "assignments"

    round_id: Mapped[UUID] = mapped_column(sa.ForeignKey("rounds.id"), primary_key=True)
    client_id: Mapped[UUID] = mapped_column(sa.ForeignKey("clients.id"), primary_key=True, index=True)


class RoundSecret(Base):
    """What the noise of a sealed round is derived from: made when it is sealed, deleted when it is over.

    Written by rounds.lifecycle alone. Never changed, and never to be in a backup: with the secret, and what
    was sealed, anybody can take a release's noise away again.
    """

    __tablename__ = "round_secrets"

    round_id: Mapped[UUID] = mapped_column(sa.ForeignKey("rounds.id"), primary_key=True)
    sealed: Mapped[bytes]
    """32 random bytes, encrypted under the master key."""
    created_at: Mapped[datetime] = mapped_column(server_default=sa.func.now())


class RoundEdge(Base):
    """The allowed steps of a round; the log's foreign key refuses every other."""

    __tablename__ = "round_edges"

    src: Mapped[str] = mapped_column(sa.String(32), primary_key=True)
    dst: Mapped[str] = mapped_column(sa.String(32), primary_key=True)


class RoundLog(Base):
    """What happened to a round, written by a trigger."""

    __tablename__ = "round_log"
    __table_args__ = (sa.ForeignKeyConstraint(["src", "dst"], ["round_edges.src", "round_edges.dst"]),)

    id: Mapped[int] = mapped_column(sa.BigInteger, sa.Identity(always=True), primary_key=True)
    round_id: Mapped[UUID] = mapped_column(sa.ForeignKey("rounds.id"), index=True)
    src: Mapped[str] = mapped_column(sa.String(32))
    dst: Mapped[str] = mapped_column(sa.String(32))
    actor: Mapped[str] = mapped_column(sa.String(100))
    at: Mapped[datetime] = mapped_column(server_default=sa.func.clock_timestamp())
