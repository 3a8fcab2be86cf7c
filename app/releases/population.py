"""What all runs on the data of a release claim together, or why there is no such claim.

A sum of epsilons is written only beside unit, relation and adversary that hold for all the runs in it.
"""

from __future__ import annotations

from collections.abc import Collection, Sequence
from typing import Any

from app.budget.arithmetic import shown_delta, shown_spent
from app.budget.joint import Paid, common_of
from app.budget.queries import AccountView, claimed_epsilon
from app.releases import statements

_NOTHING_SHARED = (
    "The accounts also paid for runs of another unit or relation, and no unit and relation is protected by "
    "all of them at their own price: {terms}. No sum of their epsilons is a guarantee."
)
_NOT_TOLD = "An entry of an account does not say what its run protects. No sum covers it."


def claim_of(
    accounts: Sequence[AccountView], paid: Collection[Paid], *, unclaimed_runs: int
) -> dict[str, Any]:
    """All runs on the same data, this one included: the largest epsilon and the largest delta of any account.

    The two may be of different accounts. The larger of each holds for every one of them.

    Args:
        accounts: those that this run reserved on.
        paid: what all runs are about that any of them ever paid for.
        unclaimed_runs: runs on the same data without a mechanism, or whose claim was refuted.
    """
    if unclaimed_runs:
        return _no_claim(
            f"Data of the same clients took part in {unclaimed_runs} run(s) without a privacy mechanism, or "
            "whose claim an audit refuted. No sum covers those."
        )
    if not accounts:
        return _no_claim("No account of this run's data sets is known.")
    if (common := common_of(paid)) is None:
        return _no_claim(_why_not(paid))
    worst = max(accounts, key=claimed_epsilon)
    basic = worst.order is None
    epsilon = shown_spent(claimed_epsilon(worst))
    delta = max(_claimed_delta(account) for account in accounts)
    return {
        "claimed": True,
        "statement": f"({epsilon}, {delta})-differential privacy of one {common.terms.unit} in one data set "
        f"under {common.terms.relation}, for all runs on that data set until now.",
        "epsilon": epsilon,
        "delta": delta,
        "unit": common.terms.unit,
        "relation": common.terms.relation,
        "trusts": list(common.trusts),
        "adversary": statements.joint_adversary(common.trusts, secret_cohort=common.secret_cohort),
        "account_kind": worst.kind,
        "order": worst.order,
        "covers": "all runs on one data set so far, spent and reserved; the largest of this run's data sets",
        "adds_up": "sum of each run's PLD epsilon and delta" if basic else "sum of divergences at one order",
    }


def _no_claim(why: str) -> dict[str, Any]:
    return {"claimed": False, "statement": why}


def _why_not(paid: Collection[Paid]) -> str:
    told = {f"{one.unit} under {one.relation}" for one in paid if one.unit and one.relation}
    if len(told) < 2:
        return _NOT_TOLD
    return _NOTHING_SHARED.format(terms=", ".join(sorted(told)))


def _claimed_delta(account: AccountView) -> float:
    if account.order is not None:
        return account.delta
    return shown_delta(account.delta_spent + account.delta_reserved)
