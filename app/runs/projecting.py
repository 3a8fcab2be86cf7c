"""Projecting a run's plan onto an account, and saying which account refused a run. Writes nothing."""

from __future__ import annotations

from typing import Any

from sqlalchemy.orm import Session

from app.budget import projection, queries
from app.budget.arithmetic import AmountInvalid
from app.budget.errors import BudgetExceeded
from app.budget.projection import Amounts, Projection
from app.budget.queries import AccountView
from app.core.i18n import _
from app.identity.roles import Principal
from app.runs.charges import PriceMissing, is_charged, require_covered, reservation, run_ref, schedule
from app.runs.models import Run
from app.runs.queries import client_ids_of
from app.runs.service import OVER_BUDGET
from app.runs.states import RunState

GOES_ON = frozenset({RunState.RUNNING, RunState.PAUSED})
"""Where what is reserved pays for rounds to come; afterwards it stays reserved and pays for none."""


def project(session: Session, view: AccountView, run: Run, *, rounds: int) -> Projection:
    """What `rounds` more rounds of a run's plan cost the account; raises PriceMissing, UnitTooFine
    and RelationTooWeak."""
    if not is_charged(run.manifest):
        raise PriceMissing(_("a run with trust `none` claims nothing and has no price"))
    require_covered(run.manifest, view)
    parts = [(charge.amount, charge.delta_amount) for charge in schedule(run, view)]
    return projection.project(view, parts, held=_held(session, view, run, parts), rounds=rounds)


def _held(session: Session, view: AccountView, run: Run, parts: list[Amounts]) -> list[Amounts]:
    """The parts that the run's reservation on this account still holds for rounds to come."""
    found = queries.spending_under(session, view.id, run_ref(run.id))
    if found is None or found.given_back or run.state not in GOES_ON:
        return []
    return parts[found.charges :]


def refusal(session: Session, principal: Principal, run: Run) -> BudgetExceeded:
    """Why accounts do not cover a run: with the numbers of one that the caller may see, else without any."""
    clients = client_ids_of(session, run.id)
    views = queries.accounts_of_clients(session, clients).values()
    asked = {view.id: _asked(run, view) for view in views}
    short = [view for view in views if not _covers(view, asked[view.id])]
    seen = queries.seen_among(session, principal, [view.id for view in short])
    mine = sorted((view for view in short if view.id in seen), key=lambda view: (view.left, view.id))
    if mine:
        return projection.refusal(mine[0], asked=asked[mine[0].id])
    return BudgetExceeded(_("at least one account does not cover this"))


def shortfall(session: Session, principal: Principal, run: Run) -> dict[str, Any] | None:
    """What an account that the caller may see lacks for a run that was refused over it; None otherwise."""
    if run.state is not RunState.REFUSED or run.reason_code != OVER_BUDGET[0]:
        return None
    try:
        members = refusal(session, principal, run).members
    except (AmountInvalid, PriceMissing):  # more than any ledger holds, or an account that came later
        return None
    return members or None


def _asked(run: Run, view: AccountView) -> Amounts:
    charge = reservation(run, view)
    return charge.amount, charge.delta_amount


def _covers(view: AccountView, asked: Amounts) -> bool:
    return asked[0] <= view.left and asked[1] <= view.delta_left
