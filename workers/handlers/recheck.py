"""Once a day, or when asked: every account is replayed from its entries, every run priced from its event.

What does not come out as it was booked becomes a violation and a line in the error log; nothing is put right
here. Reading and pricing change nothing, so that any part may be repeated.
"""

from __future__ import annotations

from typing import Any
from uuid import UUID

import structlog

from app.budget import arithmetic, chain, violations
from app.budget.queries import Reservation, account_ids, account_view, hold, reservations_of
from app.budget.violations import ViolationKind
from app.core.canonical import canonical_sha256
from app.jobs import leases
from app.jobs.leases import Claim
from app.runs.models import Run
from engines.privacy.accounting import ACCOUNTANT, AccountingFailed, epsilon_pld, rdp_at_order
from engines.privacy.schedule import schedule_of
from workers.context import Context

log = structlog.get_logger()

TOLERANCE = 1_000
"""Nano units by which two computations of one price may differ: the last digits of two machines."""
_PRICED_BY = (
    *("trust", "unit", "relation", "cohort", "canaries", "examples", "noise_multiplier", "steps", "delta"),
)

Priced = dict[str, tuple[int, int] | str]
"""Costs, or why there are none, by the digest of what they were computed from."""


def run(context: Context, claim: Claim) -> None:
    """Check every account by itself, each in a short transaction; finish when all were seen."""
    with context.database.run_tx("recheck read") as session:
        leases.fence(session, claim)
        ids = account_ids(session)
    priced: Priced = {}
    for account_id in ids:
        recheck(context, account_id, priced)
    with context.database.run_tx("recheck end") as session:
        leases.finish(session, claim)


def recheck(context: Context, account_id: UUID, priced: Priced) -> None:
    """Replay one account and price what it reserved; `priced` keeps what was computed before."""
    with context.database.run_tx("recheck account") as session:
        hold(session, account_id)
        check = chain.verify_chain(session, account_id)
        organisation_id = account_view(session, account_id).organisation_id
        reserved = reservations_of(session, account_id)
    if not check.holds:
        detail = {"account_id": str(account_id), "seq": check.broken_seq, "fault": check.fault}
        _report(context, organisation_id, None, detail)
    for one in reserved:
        if (difference := _difference(one, priced)) is not None:
            _report(context, organisation_id, one.event.get("run_id"), difference)


def _difference(one: Reservation, priced: Priced) -> dict[str, Any] | None:
    """What was booked beside what comes out, or None where they agree."""
    terms = {name: one.event.get(name) for name in _PRICED_BY} | {"order": one.order}
    key = canonical_sha256(terms)
    if key not in priced:
        priced[key] = _price(terms)
    found = priced[key]
    told = {"ref": one.ref, "order": one.order, "booked": [one.amount, one.delta_amount], "by": ACCOUNTANT}
    if isinstance(found, str):
        return told | {"computed": None, "why": found}
    amount, delta_amount = found
    if abs(amount - one.amount) <= TOLERANCE and delta_amount == one.delta_amount:
        return None
    return told | {"computed": [amount, delta_amount]}


def _price(terms: dict[str, Any]) -> tuple[int, int] | str:
    """The cost of the event's mechanism in the ledger's integers, or why it has none."""
    try:
        schedule = schedule_of(terms)
        if terms["order"] is not None:
            return arithmetic.cost(rdp_at_order([schedule], order=terms["order"])), 0
        delta = float(terms["delta"])
        return arithmetic.cost(epsilon_pld([schedule], delta=delta)), arithmetic.delta_cost(delta)
    except (AccountingFailed, TypeError, ValueError) as error:
        return str(error)


def _report(context: Context, organisation_id: UUID, run_id: str | None, detail: dict[str, Any]) -> None:
    """Record it once, and say it in the log every time."""
    log.error("ledger_differs", run_id=run_id, **detail)
    with context.database.run_tx("recheck report") as session:
        run = session.get(Run, UUID(run_id)) if run_id is not None else None
        violations.record_once(
            session,
            ViolationKind.PRICE_DIFFERS,
            organisation_id=organisation_id,
            run_id=run.id if run is not None else None,
            detail=detail,
        )
