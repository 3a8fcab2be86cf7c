"""Tables of runs: a federated fine-tuning with one manifest, fixed when it starts."""

from __future__ import annotations

from datetime import datetime
from typing import Any
from uuid import UUID

import sqlalchemy as sa
from sqlalchemy.orm import Mapped, mapped_column

from app.core.db import Base, enum_type
from app.core.ids import new_id
from app.runs.states import RunState


class Run(Base):
    """A run. `state` is written by runs.service.advance() alone; the log's trigger writes its history."""

    __tablename__ = "runs"

    id: Mapped[UUID] = mapped_column(primary_key=True, default=new_id)
    organisation_id: Mapped[UUID] = mapped_column(sa.ForeignKey("organisations.id"), index=True)
    name: Mapped[str] = mapped_column(sa.String(200))
    state: Mapped[RunState] = mapped_column(enum_type(RunState), default=RunState.DRAFT)
    version: Mapped[int] = mapped_column(default=1)
    manifest: Mapped[dict[str, Any]]
    manifest_sha256: Mapped[str | None] = mapped_column(sa.String(64))
    """Hash of the canonical manifest, set when the run starts and fixed from then on."""
    price: Mapped[dict[str, Any] | None]
    """What workers/handlers/price.py found: noise_multiplier, epsilon, delta, epsilon_by_round, ..."""
    reason_code: Mapped[str | None] = mapped_column(sa.String(64))
    """Why the run was refused, paused or aborted."""
    reason: Mapped[str | None]
    start_adapter_sha256: Mapped[str | None] = mapped_column(sa.String(64))
    """Blob of the adapter that round 1 starts from, made by the price job."""
    from_release_id: Mapped[UUID | None]
    clone_of_id: Mapped[UUID | None]
    created_by: Mapped[str] = mapped_column(sa.String(100))
    created_at: Mapped[datetime] = mapped_column(server_default=sa.func.now())
    started_at: Mapped[datetime | None]
    finished_at: Mapped[datetime | None]


class RunClient(Base):
    """A training client that takes part in a run, and how often it did.

    `participations` and its cap are written by a trigger on the table of updates alone.
    """

    __tablename__ = "run_clients"
    __table_args__ = (sa.CheckConstraint("participations <= participation_cap", name="participations"),)

    run_id: Mapped[UUID] = mapped_column(sa.ForeignKey("runs.id"), primary_key=True)
    client_id: Mapped[UUID] = mapped_column(sa.ForeignKey("clients.id"), primary_key=True, index=True)
    participations: Mapped[int] = mapped_column(server_default=sa.text("0"))
    """Updates of this client that were begun in this run."""
    participation_cap: Mapped[int | None]
    """The most of them, by the manifest of a buffered run; None before the first, or without one."""


class RunEdge(Base):
    """The allowed steps of a run; the log's foreign key refuses every other."""

    __tablename__ = "run_edges"

    src: Mapped[str] = mapped_column(sa.String(32), primary_key=True)
    dst: Mapped[str] = mapped_column(sa.String(32), primary_key=True)


class RunLog(Base):
    """What happened to a run, written by a trigger."""

    __tablename__ = "run_log"
    __table_args__ = (sa.ForeignKeyConstraint(["src", "dst"], ["run_edges.src", "run_edges.dst"]),)

    id: Mapped[int] = mapped_column(sa.BigInteger, sa.Identity(always=True), primary_key=True)
    run_id: Mapped[UUID] = mapped_column(sa.ForeignKey("runs.id"), index=True)
    src: Mapped[str] = mapped_column(sa.String(32))
    dst: Mapped[str] = mapped_column(sa.String(32))
    actor: Mapped[str] = mapped_column(sa.String(100))
    at: Mapped[datetime] = mapped_column(server_default=sa.func.clock_timestamp())
