"""What the API shows of accounts. What is spent is rounded up, what is left is rounded down, always."""

from __future__ import annotations

from datetime import datetime
from decimal import Decimal
from typing import Annotated, Any, Self
from uuid import UUID

from pydantic import BaseModel, ConfigDict, Field

from app.budget.arithmetic import shown_delta, shown_left, shown_spent
from app.budget.models import Entry
from app.budget.queries import AccountView, Spending, claimed_epsilon
from app.core.strict import Reason, StrictModel


class Out(BaseModel):
    """An answer."""

    model_config = ConfigDict(extra="forbid")


class Amounts(Out):
    """Where a budget stands, in the unit that `unit` names."""

    ceiling: float
    reserved: float
    spent: float
    left: float


class AccountOut(Out):
    """The privacy account of one data population."""

    id: UUID
    organisation_id: UUID
    client_id: UUID | None
    population: str
    kind: str
    order: float | None
    """Of a renyi account: the order at which divergences add up."""
    epsilon: float
    """What was granted, together with `delta`."""
    delta: float
    amounts_in: str
    """`epsilon`, or `renyi_divergence`: costs of the two kinds never mix."""
    amounts: Amounts
    """`spent` and `reserved` rounded up, `ceiling` and `left` rounded down, to 4 decimals."""
    delta_amounts: Amounts | None
    """In a basic account, deltas add up as well; in a renyi account delta is part of the ceiling."""
    epsilon_claimed: float
    """What all runs on this population may have cost together, at most, at `delta`: the ledger's sum. It
    is a guarantee only for a unit and relation that all those runs cover, which a certificate states."""
    adds_up: str
    """How costs of several runs become one."""
    unit: str
    """What every run that the account pays for protects, under zero-out at least; each run's own unit and
    relation are in its entry's event."""
    relation: str
    basis: str
    entries: int
    created_at: datetime

    @classmethod
    def of(cls, view: AccountView) -> Self:
        """From an account's view."""
        basic = view.order is None
        return cls(
            id=view.id,
            organisation_id=view.organisation_id,
            client_id=view.client_id,
            population=view.population,
            kind=view.kind,
            order=view.order,
            epsilon=view.epsilon,
            delta=view.delta,
            amounts_in=view.amounts_in,
            amounts=Amounts(
                ceiling=shown_left(view.ceiling),
                reserved=shown_spent(view.reserved),
                spent=shown_spent(view.spent),
                left=shown_left(view.left),
            ),
            delta_amounts=_delta_amounts(view) if basic else None,
            epsilon_claimed=shown_spent(Decimal(claimed_epsilon(view))),
            adds_up="sum of each run's PLD epsilon and delta" if basic else "sum of divergences at one order",
            unit=view.unit,
            relation="zero_out; that of each entry's event is this or stronger",
            basis="declared by the client, mirrored here; the client's own ledger is the authority",
            entries=view.entries,
            created_at=view.created_at,
        )


def _delta_amounts(view: AccountView) -> Amounts:
    return Amounts(
        ceiling=shown_delta(view.delta_ceiling),
        reserved=shown_delta(view.delta_reserved),
        spent=shown_delta(view.delta_spent),
        left=shown_delta(view.delta_left),
    )


class EntryOut(Out):
    """One line of the ledger, in its own integers."""

    seq: int
    kind: str
    ref: str
    reserve_ref: str | None
    amount: int
    """Nano-epsilon in a basic account, nano-RDP at the account's order in a renyi one."""
    delta_amount: int
    """In units of 1e-18."""
    event: dict[str, Any]
    actor: str
    at: datetime
    prev_hash: str
    hash: str

    @classmethod
    def of(cls, entry: Entry) -> Self:
        """From a row."""
        return cls(
            seq=entry.seq,
            kind=entry.kind.value,
            ref=entry.ref,
            reserve_ref=entry.reserve_ref,
            amount=entry.amount,
            delta_amount=entry.delta_amount,
            event=entry.event,
            actor=entry.actor,
            at=entry.at,
            prev_hash=entry.prev_hash.hex(),
            hash=entry.hash.hex(),
        )


class SpendingOut(Out):
    """What one run has cost the account so far, with what the numbers mean."""

    run_id: UUID | None
    ref: str
    amounts_in: str
    spent: float
    """Rounded up, to 4 decimals, as is `reserved`."""
    reserved: float
    """Set aside for rounds to come; it stays so when a run is stopped."""
    charges: int
    """Updates that were sent; under `central` every round, whoever was drawn for it."""
    given_back: bool
    """The client signed that nothing was sent."""
    delta: float
    """Of the whole schedule."""
    unit: str | None
    relation: str | None
    trust: str | None
    cohort: dict[str, Any] | None
    examples: dict[str, Any] | None
    accountant: str | None
    reserved_at: datetime

    @classmethod
    def of(cls, view: AccountView, found: Spending) -> Self:
        """From a reservation and what was drawn on it."""
        event = found.event
        basic = view.order is None
        return cls(
            run_id=event.get("run_id"),
            ref=found.ref,
            amounts_in=view.amounts_in,
            spent=shown_spent(found.spent),
            reserved=shown_spent(found.reserved),
            charges=found.charges,
            given_back=found.given_back,
            delta=shown_delta(found.delta_spent + found.delta_reserved) if basic else view.delta,
            reserved_at=found.at,
            **{name: event.get(name) for name in ("unit", "relation", "trust", "cohort", "examples")},
            accountant=event.get("accountant"),
        )


class GrantIn(StrictModel):
    """Lift an account's ceiling."""

    model_config = ConfigDict(
        json_schema_extra={
            "examples": [{"epsilon": 2.0, "delta": 1e-6, "reason": "Second study, approved 2026-11-20"}]
        },
    )

    epsilon: Annotated[float, Field(ge=0, le=1000, allow_inf_nan=False, strict=True)]
    delta: Annotated[float, Field(ge=0, lt=1, allow_inf_nan=False, strict=True)]
    """0 in a renyi account, whose delta is fixed."""
    reason: Reason


class ChainOut(Out):
    """The result of walking an account's hash chain."""

    holds: bool
    entries: int
    broken_seq: int | None
    fault: str | None
