"""Projections over HTTP: how far an account reaches under the plan of a run."""

from __future__ import annotations

from typing import Annotated, Any, Self
from uuid import UUID

from fastapi import APIRouter, Query
from pydantic import BaseModel, ConfigDict

from app.budget.arithmetic import shown_left, shown_spent
from app.budget.projection import MOST_ROUNDS, Projection, implied
from app.budget.queries import AccountView, account_for, claimed_epsilon
from app.http.deps import SessionDep, requires
from app.http.routes import ThreadedRoute
from app.identity.roles import Principal
from app.runs import projecting, queries
from app.runs.models import Run

router = APIRouter(prefix="/budgets", tags=["budgets"], route_class=ThreadedRoute)


class ProjectionOut(BaseModel):
    """Where an account would stand after more rounds of a run's plan. Costs are rounded up, the rest down."""

    model_config = ConfigDict(extra="forbid")

    account_id: UUID
    run_id: UUID
    rounds: int
    """How many more rounds are looked at: first the run's own, then those of further runs under its plan."""
    rounds_reserved: int
    """The run's own rounds that are paid for and not charged yet; they cost nothing more."""
    rounds_affordable: int
    """The most rounds that the account covers, the reserved ones among them."""
    covered: bool
    amounts_in: str
    asked: float
    """What these rounds would have to reserve anew."""
    left: float
    ceiling: float
    epsilon_now: float
    """What all runs on this population may have cost together, spent and reserved."""
    epsilon_after: float
    """The same after these rounds; beyond the account's budget where they are not covered."""
    epsilon_spent_after: float
    """Of it, what was charged by then."""
    delta_after: float
    unit: str
    relation: str
    trust: str
    cohort: dict[str, Any]
    examples: dict[str, Any]
    noise_multiplier: float | None
    accountant: str | None
    adds_up: str

    @classmethod
    def of(cls, view: AccountView, run: Run, found: Projection) -> Self:
        """From an account, a priced run and what was projected."""
        privacy, price = run.manifest["privacy"], run.price or {}
        epsilon, delta = implied(view, found.committed)
        return cls(
            account_id=view.id,
            run_id=run.id,
            rounds=found.rounds,
            rounds_reserved=found.reserved_rounds,
            rounds_affordable=found.affordable,
            covered=found.covered,
            amounts_in=view.amounts_in,
            asked=shown_spent(found.cost[0]),
            left=shown_left(view.left),
            ceiling=shown_left(view.ceiling),
            epsilon_now=shown_spent(claimed_epsilon(view)),
            epsilon_after=shown_spent(epsilon),
            epsilon_spent_after=shown_spent(implied(view, found.spent)[0]),
            delta_after=delta,
            **{name: privacy[name] for name in ("unit", "relation", "trust", "cohort", "examples")},
            noise_multiplier=price.get("noise_multiplier"),
            accountant=price.get("accountant"),
            adds_up="each run is priced as a whole; the prices of further runs are added",
        )


@router.get("/{account_id}/projections/{run_id}")
def project_budget(
    account_id: UUID,
    run_id: UUID,
    session: SessionDep,
    principal: Annotated[Principal, requires("budgets:read")],
    rounds: Annotated[int, Query(ge=1, le=MOST_ROUNDS, description="How many more rounds.")] = 1,
) -> ProjectionOut:
    """Project more rounds of a priced run's plan onto an account: what they cost, and how many it covers."""
    view = account_for(session, principal, account_id)
    run = queries.run_for(session, principal, run_id)
    return ProjectionOut.of(view, run, projecting.project(session, view, run, rounds=rounds))
