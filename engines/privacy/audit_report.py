"""What an audit found, in a form that a certificate can carry beside its bound and anyone can recompute.

A report never says that a claim holds. It says that the claim is refuted, or that these canaries did not
refute it.
"""

import dataclasses
import math
import sys
from collections.abc import Mapping
from typing import Any

import numpy as np
from numpy.typing import ArrayLike

from engines.privacy.audit_canaries import Canaries
from engines.privacy.audit_one_run import (
    GuessPlan,
    best_bounds,
    correct_guesses,
    largest_reachable_bound,
)
from engines.privacy.audit_one_shot import (
    Statistic,
    epsilon_of_estimate,
    estimate_from_all_iterates,
    estimate_from_final_iterate,
    estimate_from_sum_of_rounds,
)

METHOD = "one-run arXiv:2305.08846, one-shot arXiv:2302.03098, standard guesses/1"
"""Name and version of what computes the numbers below."""

_RECOMPUTED_WITHIN = 1e-6


@dataclasses.dataclass(frozen=True, kw_only=True)
class AuditReport:
    """One audit of one run. Plain values only, so `dataclasses.asdict` is its JSON."""

    method: str = METHOD
    statistic: str
    """What was scored: `final_iterate` of one sum, `sum_of_rounds` of a run with canaries in its rounds."""
    canaries: int
    """m: made-up clients, declared; each had a place in the population, in or out."""
    canaries_in: int
    dimension: int
    """d, length of the flat update."""
    commitment: str
    """Of the secret that coins and directions follow from, published before the run."""
    secret: str
    """That secret in hex, opened after the scores were fixed."""
    claimed_epsilon: float
    claimed_delta: float
    confidence: float
    """Of the lower bound, .95."""
    correct_guesses: tuple[int, ...]
    """Right guesses at each of the standard plan's numbers of guesses."""
    lower_bound: float
    """One-run bound on epsilon at the claimed delta, for any mechanism."""
    lower_bound_if_gaussian: float
    """The same for mechanisms with one Gaussian's trade-off curve. It refutes nothing under a sampled
    cohort, and never enters `refuted`."""
    largest_reachable: float
    """The lower bound if every guess were right: a leak beyond it cannot show."""
    estimated_mean: float
    """One-shot mu, in standard deviations."""
    estimated_mean_standard_error: float
    estimate: float
    """One-shot epsilon: an estimate, never a bound."""
    estimate_standard_error: float
    refuted: bool
    """The lower bound exceeds the claim: at this confidence the claim is false."""


def audit_report(
    canaries: Canaries,
    scores: ArrayLike,
    *,
    statistic: Statistic,
    claimed_epsilon: float,
    claimed_delta: float,
) -> AuditReport:
    """Open the coins and audit one run's claim.

    Args:
        canaries: those whose commitment was published before the run.
        scores: shape (m,), as the statistic says.
        statistic: chosen before, since looking at two is two audits.
        claimed_epsilon: above 0, under any relation: replace-one covers more pairs than a canary's.
        claimed_delta: above 0, below 1.
    Raises:
        ValueError: a claim is out of range, or there is not one score a canary.
    """
    if not 0.0 < claimed_epsilon < math.inf:
        raise ValueError("the claimed epsilon must be a number above 0")
    plan = GuessPlan.standard(canaries.count)
    correct = tuple(correct_guesses(scores, canaries.coins(), counts=one) for one in plan.choices)
    shown = best_bounds(plan, correct, delta=claimed_delta)
    return AuditReport(
        canaries=canaries.count,
        canaries_in=_inside(canaries),
        dimension=canaries.dimension,
        commitment=canaries.commitment,
        secret=canaries.secret.hex(),
        claimed_epsilon=claimed_epsilon,
        claimed_delta=claimed_delta,
        confidence=1.0 - plan.significance,
        correct_guesses=correct,
        lower_bound=shown.epsilon,
        lower_bound_if_gaussian=shown.epsilon_if_gaussian,
        largest_reachable=largest_reachable_bound(plan, delta=claimed_delta),
        **_estimate_members(canaries, scores, statistic=statistic, delta=claimed_delta),
        refuted=shown.epsilon > claimed_epsilon,
    )


def _inside(canaries: Canaries) -> int:
    return int(np.count_nonzero(canaries.coins()))


def _estimate_members(
    canaries: Canaries, scores: ArrayLike, *, statistic: Statistic, delta: float
) -> dict[str, Any]:
    if statistic is Statistic.FINAL_ITERATE:
        seen = estimate_from_final_iterate(
            scores, canaries.coins(), dimension=canaries.dimension, delta=delta
        )
    else:
        estimated = {
            Statistic.ALL_ITERATES: estimate_from_all_iterates,
            Statistic.SUM_OF_ROUNDS: estimate_from_sum_of_rounds,
        }[statistic]
        seen = estimated(scores, canaries.coins(), delta=delta)
    return {
        "statistic": seen.statistic.value,
        "estimated_mean": seen.mean,
        "estimated_mean_standard_error": seen.mean_standard_error,
        "estimate": seen.epsilon,
        "estimate_standard_error": seen.standard_error,
    }


def report_from(members: Mapping[str, Any]) -> AuditReport:
    """Read a report back from JSON.

    Raises:
        ValueError: a member is missing, unknown, or of another type.
    """
    known = {field.name: field.type for field in dataclasses.fields(AuditReport)}
    if set(members) != set(known):
        raise ValueError(f"{sorted(set(members) ^ set(known))[0]}: missing from the audit, or unknown to it")
    for name, value in members.items():
        if not _is_of(known[name], value):
            raise ValueError(f"{name}: not what an audit holds there")
    return AuditReport(**{**members, "correct_guesses": tuple(members["correct_guesses"])})


def _is_of(kind: object, value: object) -> bool:
    if kind is bool or isinstance(value, bool):
        return kind is bool and isinstance(value, bool)
    if kind is float:
        return isinstance(value, int | float) and abs(value) <= sys.float_info.max  # false for NaN
    if kind in (int, str):
        return type(value) is kind
    return isinstance(value, list | tuple) and all(type(entry) is int for entry in value)


def first_contradiction(report: AuditReport) -> str | None:
    """Recompute a report and name the first member that does not follow from the others, or None.

    Opens the commitment, and computes bounds, reach, estimate and verdict again. Whether the right guesses
    and the mean are those of the release, only who has the release can check, with `Canaries` and `cosines`.
    """
    if report.method != METHOD:
        return "method"
    if not 0.0 < report.claimed_epsilon < math.inf or not 0.0 < report.claimed_delta < 1.0:
        return "claimed_delta" if report.claimed_epsilon > 0.0 else "claimed_epsilon"
    try:
        canaries = Canaries(bytes.fromhex(report.secret), count=report.canaries, dimension=report.dimension)
    except ValueError:
        return "secret"
    steps = (_opened(report, canaries), _bounds(report), _estimate(report))
    return next(
        (name for step in steps for name, value in step.items() if _differs(report, name, value)), None
    )


def _opened(report: AuditReport, canaries: Canaries) -> dict[str, Any]:
    return {
        "commitment": canaries.commitment,
        "canaries_in": _inside(canaries),
        "statistic": next((one.value for one in Statistic if one == report.statistic), None),
    }


def _bounds(report: AuditReport) -> dict[str, Any]:
    plan = GuessPlan.standard(report.canaries)
    try:
        shown = best_bounds(plan, report.correct_guesses, delta=report.claimed_delta)
    except ValueError:
        return {"correct_guesses": None}
    return {
        "confidence": 1.0 - plan.significance,
        "lower_bound": shown.epsilon,
        "lower_bound_if_gaussian": shown.epsilon_if_gaussian,
        "largest_reachable": largest_reachable_bound(plan, delta=report.claimed_delta),
        "refuted": report.lower_bound > report.claimed_epsilon,
    }


def _estimate(report: AuditReport) -> dict[str, Any]:
    mean, error = report.estimated_mean, report.estimated_mean_standard_error
    try:
        epsilon, standard_error = epsilon_of_estimate(mean, error, delta=report.claimed_delta)
    except ValueError:
        return {"estimated_mean": None}
    return {"estimate": epsilon, "estimate_standard_error": standard_error}


def _differs(report: AuditReport, name: str, value: Any) -> bool:
    stated = getattr(report, name)
    if isinstance(value, float):
        return not math.isclose(stated, value, rel_tol=0.0, abs_tol=_RECOMPUTED_WITHIN)
    return bool(stated != value)
