"""The privacy ledger's tables. Only app/budget may import this module; ledger.py is the only writer.

Amounts are integers: nano-epsilon in a `basic` account, nano-RDP at the account's order in a `renyi`
one, delta in units of 1e-18. Guards in the database: spent + reserved never passes the ceiling, entries
are never changed or removed.
"""

from __future__ import annotations

from datetime import datetime
from enum import StrEnum
from typing import Any
from uuid import UUID

import sqlalchemy as sa
from sqlalchemy.orm import Mapped, mapped_column

from app.core.db import Base, enum_type
from app.core.ids import new_id


class AccountKind(StrEnum):
    """How costs add up. Fixed when the account is made."""

    BASIC = "basic"  # every run is priced once by PLD; epsilons and deltas of runs are summed
    RENYI = "renyi"  # Renyi divergence at one order is summed: sound under full adaptivity


class AccountUnit(StrEnum):
    """What an account's sum protects, under zero-out at least."""

    EXAMPLE = "example"  # one record
    PERSON = "person"  # all records of one person in the data set
    CLIENT = "client"  # the whole data set


class ViolationKind(StrEnum):
    """What went against a privacy promise, or would have."""

    MISSING_NOISE = "missing_noise"  # a release that should hold noise holds none
    SCALED_NOISE = "scaled_noise"  # noise of another size than the plan's
    PRICE_DIFFERS = "price_differs"  # what was declared is not what was computed again
    CEILING_HIT = "ceiling_hit"  # a plan that an account does not cover was refused
    BOUND_EXCEEDED = "bound_exceeded"  # an update was longer than the plan's clip, and was clipped
    NO_CONSENT = "no_consent"  # data were asked for without a valid consent
    RESIDENCY = "residency"  # data were asked for from a region that they may not leave


class EntryKind(StrEnum):
    """What an entry records."""

    GRANT = "grant"  # lifts the ceiling
    RESERVE = "reserve"  # sets an amount aside for a run
    SPEND = "spend"  # turns reserved into spent: something left or may have left
    VOID = "void"  # gives reserved back: the client signed that nothing was sent


class Account(Base):
    """The budget of one data population, for all runs on it; written by app.budget.ledger alone."""

    __tablename__ = "accounts"
    __table_args__ = (
        sa.UniqueConstraint("organisation_id", "population"),
        sa.CheckConstraint("spent >= 0 AND reserved >= 0 AND spent + reserved <= ceiling", name="ceiling"),
        sa.CheckConstraint(
            "delta_spent >= 0 AND delta_reserved >= 0 AND delta_spent + delta_reserved <= delta_ceiling",
            name="delta_ceiling",
        ),
        sa.CheckConstraint("(kind = 'renyi') = (\"order\" IS NOT NULL)", name="order_of_renyi"),
    )

    id: Mapped[UUID] = mapped_column(primary_key=True, default=new_id)
    organisation_id: Mapped[UUID] = mapped_column(sa.ForeignKey("organisations.id"), index=True)
    population: Mapped[str] = mapped_column(sa.String(200))
    """Names the data set, not a run: deleting a run gives nothing back."""
    client_id: Mapped[UUID | None] = mapped_column(sa.ForeignKey("clients.id"), index=True)
    kind: Mapped[AccountKind] = mapped_column(enum_type(AccountKind))
    unit: Mapped[AccountUnit] = mapped_column(enum_type(AccountUnit), server_default="example")
    """A run that promises nothing for this unit is refused (app.budget.joint)."""
    order: Mapped[float | None]
    epsilon: Mapped[float]
    """The (epsilon, delta) that the ceiling stands for, as granted; shown, never summed."""
    delta: Mapped[float]
    ceiling: Mapped[int] = mapped_column(default=0)
    reserved: Mapped[int] = mapped_column(default=0)
    spent: Mapped[int] = mapped_column(default=0)
    delta_ceiling: Mapped[int] = mapped_column(default=0)
    delta_reserved: Mapped[int] = mapped_column(default=0)
    delta_spent: Mapped[int] = mapped_column(default=0)
    seq: Mapped[int] = mapped_column(default=0)
    head_hash: Mapped[bytes]
    created_at: Mapped[datetime] = mapped_column(server_default=sa.func.now())


class Entry(Base):
    """One line of the ledger, hash-chained to the line before. Append-only, by trigger."""

    __tablename__ = "ledger_entries"
    __table_args__ = (
        sa.UniqueConstraint("account_id", "kind", "ref"),
        sa.CheckConstraint("amount >= 0 AND delta_amount >= 0", name="amounts"),
        sa.CheckConstraint("(kind IN ('spend', 'void')) = (reserve_ref IS NOT NULL)", name="draws_on"),
    )

    account_id: Mapped[UUID] = mapped_column(sa.ForeignKey("accounts.id"), primary_key=True)
    seq: Mapped[int] = mapped_column(primary_key=True, autoincrement=False)
    kind: Mapped[EntryKind] = mapped_column(enum_type(EntryKind))
    ref: Mapped[str] = mapped_column(sa.String(200))
    """What the entry is for, e.g. `run:<id>` or `round:<id>`: one entry of a kind each."""
    reserve_ref: Mapped[str | None] = mapped_column(sa.String(200))
    """Of a spend or a void: the `ref` of the reservation that it draws on."""
    amount: Mapped[int]
    delta_amount: Mapped[int]
    event: Mapped[dict[str, Any]]
    """The exact parameters of the mechanism, so that any accountant can price it again."""
    actor: Mapped[str] = mapped_column(sa.String(100))
    at: Mapped[datetime]
    prev_hash: Mapped[bytes]
    hash: Mapped[bytes]


class PrivacyViolation(Base):
    """Something that went against a privacy promise. Append-only; written by app.budget.violations alone.

    Never with a client where a round's cohort is secret.
    """

    __tablename__ = "privacy_violations"

    id: Mapped[UUID] = mapped_column(primary_key=True, default=new_id)
    once: Mapped[str | None] = mapped_column(sa.String(200), unique=True)
    """Names what is recorded one time only, whatever its detail; null where each finding counts."""
    kind: Mapped[ViolationKind] = mapped_column(enum_type(ViolationKind))
    organisation_id: Mapped[UUID] = mapped_column(sa.ForeignKey("organisations.id"), index=True)
    run_id: Mapped[UUID | None] = mapped_column(sa.ForeignKey("runs.id"))
    client_id: Mapped[UUID | None] = mapped_column(sa.ForeignKey("clients.id"))
    detail: Mapped[dict[str, Any]]
    """Numbers and names of rules, never data."""
    at: Mapped[datetime] = mapped_column(server_default=sa.func.now())


class PrivacyAudit(Base):
    """What an empirical audit of a run's mechanism found. Append-only; written by app.budget.audits alone."""

    __tablename__ = "privacy_audits"

    id: Mapped[UUID] = mapped_column(primary_key=True, default=new_id)
    organisation_id: Mapped[UUID] = mapped_column(sa.ForeignKey("organisations.id"), index=True)
    run_id: Mapped[UUID] = mapped_column(sa.ForeignKey("runs.id"))
    manifest_sha256: Mapped[str | None] = mapped_column(sa.String(64))
    """Of the frozen manifest whose mechanism was attacked; an audit of any other says nothing of the run."""
    refuted: Mapped[bool]
    """The claim is false, at the report's confidence. False says only that this audit did not show it."""
    report: Mapped[dict[str, Any]]
    """Made-up canaries and numbers, from which anybody computes the verdict again; nobody's data."""
    at: Mapped[datetime] = mapped_column(server_default=sa.func.now())
