"""How far a budget reaches: what further rounds of a priced plan cost an account. Integers; writes nothing.

A plan is priced as a whole before it starts. Rounds beyond it are therefore those of further runs under the
same plan, each priced as a whole again: their costs are added, never continued from where one run ended.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from decimal import Decimal

from app.budget import arithmetic
from app.budget.errors import BudgetExceeded
from app.budget.queries import AccountView
from app.core.i18n import _

MOST_ROUNDS = 1_000_000
"""No projection looks further."""
Amounts = tuple[int, int]
"""An amount and a delta in the ledger's units."""


@dataclass(frozen=True, slots=True, kw_only=True)
class Projection:
    """Where an account would stand after so many more rounds."""

    rounds: int
    reserved_rounds: int
    """Rounds of the run itself that are paid for and not charged yet: they come first, at no further cost."""
    cost: Amounts
    """What would have to be reserved anew."""
    covered: bool
    affordable: int
    """The most rounds that the account covers, the reserved ones among them; at most a million."""
    spent: Amounts
    """After these rounds: what could not be taken back."""
    committed: Amounts
    """After these rounds: spent and reserved, which every claim counts."""


def project(
    view: AccountView, parts: Sequence[Amounts], *, held: Sequence[Amounts], rounds: int
) -> Projection:
    """Project `rounds` more rounds of a plan onto an account.

    `parts` is what a run's first, second, ... round costs; `held` those parts that its reservation still
    holds for rounds to come.
    """
    first = held[:rounds]
    amount, delta_amount = cost_of(parts, rounds - len(first))
    paid, delta_paid = _sum(first)
    further = affordable(parts, left=view.left, delta_left=view.delta_left)
    return Projection(
        rounds=rounds,
        reserved_rounds=len(held),
        cost=(amount, delta_amount),
        covered=_fits((amount, delta_amount), view.left, view.delta_left),
        affordable=min(MOST_ROUNDS, len(held) + further),
        spent=(view.spent + paid + amount, view.delta_spent + delta_paid + delta_amount),
        committed=(
            view.spent + view.reserved + amount,
            view.delta_spent + view.delta_reserved + delta_amount,
        ),
    )


def cost_of(parts: Sequence[Amounts], rounds: int) -> Amounts:
    """What so many rounds cost: whole runs, and one run of the rounds that remain."""
    whole, rest = divmod(rounds, len(parts))
    amount, delta_amount = _sum(parts)
    last, delta_last = _sum(parts[:rest])
    return whole * amount + last, whole * delta_amount + delta_last


def affordable(parts: Sequence[Amounts], *, left: int, delta_left: int) -> int:
    """The most rounds whose cost is at most what is left of both; at most a million."""
    amount, delta_amount = _sum(parts)
    runs = MOST_ROUNDS
    if amount:
        runs = min(runs, left // amount)
    if delta_amount:
        runs = min(runs, delta_left // delta_amount)
    rounds = min(MOST_ROUNDS, runs * len(parts))
    while rounds < MOST_ROUNDS and _fits(cost_of(parts, rounds + 1), left, delta_left):
        rounds += 1
    return rounds


def refusal(view: AccountView, *, asked: Amounts) -> BudgetExceeded:
    """The refusal of a cost by an account, with its numbers: only for who may see that account."""
    amount, delta_amount = asked
    if amount <= view.left:
        return BudgetExceeded(
            _("{population} has too little delta for this: {asked} asked, {left} left of {ceiling}"),
            population=view.population,
            account_id=str(view.id),
            amounts_in="delta",
            asked=arithmetic.shown_delta(delta_amount),
            left=arithmetic.shown_delta(view.delta_left),
            ceiling=arithmetic.shown_delta(view.delta_ceiling),
        )
    return BudgetExceeded(
        _("the budget of {population} does not cover this: {asked} asked, {left} left of {ceiling}"),
        population=view.population,
        account_id=str(view.id),
        amounts_in=view.amounts_in,
        asked=arithmetic.shown_spent(amount),
        left=arithmetic.shown_left(view.left),
        ceiling=arithmetic.shown_left(view.ceiling),
    )


def implied(view: AccountView, amounts: Amounts) -> tuple[Decimal, float]:
    """The (epsilon, delta) that amounts of this account mean, epsilon rounded up."""
    delta = view.delta if view.order is not None else arithmetic.shown_delta(amounts[1])
    return view.implied_epsilon(amounts[0]), delta


def _sum(parts: Sequence[Amounts]) -> Amounts:
    return sum(amount for amount, _delta in parts), sum(delta for _amount, delta in parts)


def _fits(cost: Amounts, left: int, delta_left: int) -> bool:
    return cost[0] <= left and cost[1] <= delta_left
