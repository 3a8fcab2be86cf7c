"""Tables of rounds and of who is asked to take part in them."""

from __future__ import annotations

from datetime import datetime
from typing import Any
from uuid import UUID

import sqlalchemy as sa
from sqlalchemy.orm import Mapped, mapped_column

from app.core.db import Base, enum_type
from app.core.ids import new_id
from app.rounds.states import RoundState, Step


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
    optimizer_sha256: Mapped[str | None] = mapped_column(sa.String(64))
    """Blob of the server optimizer's state after this round, for the next; None without an optimizer."""
    target_norm: Mapped[float | None]
    """Frobenius norm of the clients' mean weight change, over all modules; None where it is not formed."""
    missed_norm: Mapped[float | None]
    """What of it the round's adapter does not hold: a mean of factors, or directions over its rank."""
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
    rank: Mapped[int | None]
    """The LoRA rank at which it trains, where a run mixes ranks; None is the run's."""
    adapter_at: Mapped[datetime | None]
    """When it first asked for the round's adapter; always None where the cohort is secret."""


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


class RoundCanaries(Base):
    """The canaries of a round: who was drawn, and, once the noise was drawn, how every canary scores.

    Nothing of it may be shown before the run is over; then its audit deletes it. Written by rounds.canaries
    alone. The draw is never changed, the scores are written once.
    """

    __tablename__ = "round_canaries"

    round_id: Mapped[UUID] = mapped_column(sa.ForeignKey("rounds.id"), primary_key=True)
    drawn: Mapped[list[Any]]
    """Numbers of the run's canaries, ascending."""
    scores: Mapped[bytes | None]
    """One little-endian float64 for each canary of the run, encrypted under the master key."""


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


class Evidence(Base):
    """What one round says about one client's update beside the others. Written by the aggregate job alone.

    As private as the update itself: operators read it, and a client its own finite and norm result. Deleted
    after its time. Under `central` there is none: see SealedEvidence.
    """

    __tablename__ = "update_evidence"

    round_id: Mapped[UUID] = mapped_column(sa.ForeignKey("rounds.id"), primary_key=True)
    client_id: Mapped[UUID] = mapped_column(sa.ForeignKey("clients.id"), primary_key=True, index=True)
    finite: Mapped[bool]
    norm: Mapped[float | None]
    """L2 norm before clipping, parameter units; None where the update is not finite."""
    clipped: Mapped[bool]
    norm_ratio: Mapped[float | None]
    """To the median of the round, as the next and the last; None where it was not measured or is infinite."""
    distance_ratio: Mapped[float | None]
    cosine: Mapped[float | None]
    nearest_ratio: Mapped[float | None]
    odd: Mapped[list[Any]]
    """What is odd about it: `norm`, `distance`, `direction`, `twin`, `not_finite`."""
    score: Mapped[float | None]
    """By how many robust standard deviations at most."""
    weight: Mapped[float]
    """What it counted in the aggregate by its client's standing: 1, one half, or 0."""
    at: Mapped[datetime] = mapped_column(server_default=sa.func.now(), index=True)


class SealedEvidence(Base):
    """What a `central` round saw of single updates. Written and read by rounds.sealed_evidence alone.

    One row a round, as long as for the fullest cohort. Deleted after its time.
    """

    __tablename__ = "sealed_evidence"

    round_id: Mapped[UUID] = mapped_column(sa.ForeignKey("rounds.id"), primary_key=True)
    sealed: Mapped[bytes]
    """Client ids and norms, encrypted under the master key."""
    at: Mapped[datetime] = mapped_column(server_default=sa.func.now(), index=True)


class Standing(Base):
    """Where a client stands after a judged round, or after an administrator took a step back. Append-only.

    The newest row counts; a client without one is at `observe`. Written by rounds.standing alone.
    """

    __tablename__ = "standings"
    __table_args__ = (
        sa.UniqueConstraint("round_id", "client_id"),
        sa.CheckConstraint("(round_id IS NULL) = (reason IS NOT NULL)", name="judged_or_reversed"),
        sa.CheckConstraint("suspicion >= 0", name="suspicion"),
    )

    id: Mapped[int] = mapped_column(sa.BigInteger, sa.Identity(always=True), primary_key=True)
    client_id: Mapped[UUID] = mapped_column(sa.ForeignKey("clients.id"), index=True)
    round_id: Mapped[UUID | None] = mapped_column(sa.ForeignKey("rounds.id"))
    odd: Mapped[bool | None]
    """Whether the round found it odd; None for a reversal."""
    step: Mapped[Step] = mapped_column(enum_type(Step))
    suspicion: Mapped[float]
    """Nats."""
    reason: Mapped[str | None]
    """Why a step was taken back."""
    actor: Mapped[str] = mapped_column(sa.String(100))
    at: Mapped[datetime] = mapped_column(server_default=sa.func.clock_timestamp())
