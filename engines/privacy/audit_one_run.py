"""A lower bound on epsilon from one run: canaries that were in or out by secret fair coins, and guesses.

Nothing here sees data, updates or noise: scores come from what a run released, coins from whoever kept
them secret until the scores were fixed. A bound over the claim refutes the claim at the stated confidence;
a bound under it proves nothing.
"""

import dataclasses
import math
from collections.abc import Callable, Sequence

import numpy as np
from numpy.typing import ArrayLike
from scipy.special import betainc, expit, ndtr, ndtri

from engines.privacy.gaussian_curve import gaussian_mean

SIGNIFICANCE = 0.05
"""Probability that a bound of a mechanism that keeps its claim lies over the claim: 95 % confidence."""

_TOLERANCE = 1e-9
_LARGEST_EPSILON = 200.0


@dataclasses.dataclass(frozen=True, kw_only=True)
class GuessCounts:
    """How many canaries are guessed: the highest scores as in, the lowest as out, the rest not at all."""

    included: int
    """k+"""
    excluded: int
    """k-"""

    def __post_init__(self) -> None:
        if min(self.included, self.excluded) < 0 or self.total < 1:
            raise ValueError("the numbers of guesses are at least 0, and one of them above 0")

    @property
    def total(self) -> int:
        """r, the number of guesses."""
        return self.included + self.excluded


@dataclasses.dataclass(frozen=True, kw_only=True)
class GuessPlan:
    """The numbers of guesses that an audit may choose from, fixed before any score or coin is known.

    Each is tested at `significance` divided by their number (Bonferroni), so that choosing the best
    afterwards keeps the confidence.
    """

    canaries: int
    """m, those in and those out together."""
    choices: tuple[GuessCounts, ...]
    significance: float = SIGNIFICANCE

    def __post_init__(self) -> None:
        if not self.choices or any(choice.total > self.canaries for choice in self.choices):
            raise ValueError("a plan needs a number of guesses, and none beyond its canaries")
        _require_significance(self.significance)

    @classmethod
    def standard(cls, canaries: int) -> "GuessPlan":
        """Plan three choices: guess every canary, the outer quarters, or the outer tenths.

        The first shows a weak leak best, the last a strong one in the tails.

        Raises:
            ValueError: there are fewer than 20 canaries, with which nothing is ever shown.
        """
        if canaries < 20:
            raise ValueError("an audit needs at least 20 canaries")
        halves = GuessCounts(included=canaries - canaries // 2, excluded=canaries // 2)
        outer = [GuessCounts(included=canaries // part, excluded=canaries // part) for part in (4, 10)]
        return cls(canaries=canaries, choices=(halves, *outer))

    @property
    def significance_of_each(self) -> float:
        """What every choice is tested at."""
        return self.significance / len(self.choices)


@dataclasses.dataclass(frozen=True, kw_only=True)
class OneRunBound:
    """What the guesses show, at the confidence of their plan."""

    epsilon: float
    """Lower bound for any mechanism: refutes every claim below it at the same delta."""
    epsilon_if_gaussian: float
    """Lower bound for mechanisms whose trade-off curve is one Gaussian's (full participation, fixed
    schedule). Under a sampled cohort it refutes that shape, not the claim."""


def one_run_bound(scores: ArrayLike, coins: ArrayLike, *, plan: GuessPlan, delta: float) -> OneRunBound:
    """Guess by score, open the coins, and bound epsilon from below.

    Args:
        scores: shape (m,), finite; higher means rather in. A function of what was released and of the
            canaries, in no way of the coins.
        coins: shape (m,), bool, True for in; independent fair coins of a secure source.
        plan: fixed before.
        delta: of the claim, above 0, below 1.
    Raises:
        ValueError: shapes disagree, a score is not finite, or delta is out of range.
    Source: Steinke, Nasr and Jagielski 2023, arXiv:2305.08846, Algorithm 1 and Theorem 5.2; Mahloujifar
        et al. 2024, arXiv:2410.22235.
    """
    if np.shape(scores) != (plan.canaries,):
        raise ValueError("the plan was made for another number of canaries")
    correct = [correct_guesses(scores, coins, counts=choice) for choice in plan.choices]
    return best_bounds(plan, correct, delta=delta)


def best_bounds(plan: GuessPlan, correct: Sequence[int], *, delta: float) -> OneRunBound:
    """Return the best bound over a plan's choices, each at its share of the significance.

    Args:
        plan: fixed before.
        correct: right guesses, for each choice of the plan.
        delta: of the claim, above 0, below 1.
    Raises:
        ValueError: an argument is out of range.
    """
    if not 0.0 < delta < 1.0:
        raise ValueError("delta must be above 0 and below 1")
    if len(correct) != len(plan.choices):
        raise ValueError("there is one number of right guesses for each choice of the plan")

    def best(bound: Callable[..., float]) -> float:
        return max(
            bound(
                canaries=plan.canaries,
                guesses=choice.total,
                correct=right,
                delta=delta,
                significance=plan.significance_of_each,
            )
            for choice, right in zip(plan.choices, correct, strict=True)
        )

    return OneRunBound(
        epsilon=best(epsilon_lower_bound), epsilon_if_gaussian=best(epsilon_lower_bound_if_gaussian)
    )


def correct_guesses(scores: ArrayLike, coins: ArrayLike, *, counts: GuessCounts) -> int:
    """Count right guesses: the `included` highest scores as in, the `excluded` lowest as out.

    Equal scores are ordered by position, which no coin has touched.

    Raises:
        ValueError: shapes disagree, coins are not bool, a score is not finite, or there are more guesses
            than canaries.
    """
    values, flips = np.asarray(scores, dtype=np.float64), np.asarray(coins)
    if values.ndim != 1 or values.shape != flips.shape or flips.dtype != np.bool_:
        raise ValueError("scores and coins are one of each a canary, and coins are true or false")
    if not np.isfinite(values).all():
        raise ValueError("a canary's score is not a finite number")
    if counts.total > values.size:
        raise ValueError("there are more guesses than canaries")
    by_score = flips[np.argsort(values, kind="stable")]
    lowest, highest = by_score[: counts.excluded], by_score[by_score.size - counts.included :]
    return int(np.count_nonzero(~lowest) + np.count_nonzero(highest))


def p_value(*, canaries: int, guesses: int, correct: int, epsilon: float, delta: float) -> float:
    """Bound the probability of at least `correct` right guesses under (epsilon, delta).

    beta + 2 m delta alpha, with beta = P[B >= v] for B ~ Binomial(r, 1 / (1 + exp(-epsilon))) and
    alpha = max over i of P[v - i <= B < v] / i.

    Args:
        canaries: m.
        guesses: r, 1 to m.
        correct: v, 0 to r.
        epsilon: at least 0.
        delta: 0 to 1.
    Raises:
        ValueError: an argument is out of range.
    Source: Steinke, Nasr and Jagielski 2023, arXiv:2305.08846, Theorem 5.2.
    """
    _require_counts(canaries, guesses, correct)
    if not (0.0 <= epsilon < math.inf and 0.0 <= delta <= 1.0):
        raise ValueError("epsilon must be at least 0, and delta between 0 and 1")
    if correct == 0:
        return 1.0
    right = float(expit(epsilon))
    # P[B >= k] = I_right(k, r - k + 1), for k = v, v - 1, ..., 1; and 1 for k = 0.
    at_least = np.arange(correct, 0, -1, dtype=np.float64)
    tails = np.append(betainc(at_least, guesses - at_least + 1.0, right), 1.0)
    beta = float(tails[0])
    alpha = float(np.max((tails[1:] - beta) / np.arange(1, correct + 1)))
    return min(1.0, beta + 2.0 * canaries * delta * max(alpha, 0.0))


def epsilon_lower_bound(
    *, canaries: int, guesses: int, correct: int, delta: float, significance: float = SIGNIFICANCE
) -> float:
    """Return the largest epsilon that the guesses refute at `delta`, or 0; rounded down by up to 1e-9.

    Holds with probability at least 1 - `significance` over the coins and the mechanism, for numbers of
    guesses that were fixed before.

    Raises:
        ValueError: an argument is out of range.
    Source: as `p_value`.
    """
    _require_significance(significance)

    def refuted(epsilon: float) -> bool:
        chance = p_value(canaries=canaries, guesses=guesses, correct=correct, epsilon=epsilon, delta=delta)
        return chance <= significance

    return _largest_refuted(refuted)


def epsilon_lower_bound_if_gaussian(
    *, canaries: int, guesses: int, correct: int, delta: float, significance: float = SIGNIFICANCE
) -> float:
    """Return the largest epsilon whose Gaussian trade-off curve the guesses refute, or 0.

    (epsilon, delta) is read as one point of the curve of N(0, 1) against N(mu, 1). That is the whole truth
    of a Gaussian mechanism in which every client takes part, and not of one with a sampled cohort.

    Raises:
        ValueError: an argument is out of range; delta must be above 0.
    Source: Mahloujifar et al. 2024, arXiv:2410.22235, the test on the masses of right and wrong guesses.
    """
    _require_counts(canaries, guesses, correct)
    _require_significance(significance)

    def refuted(epsilon: float) -> bool:
        mean = gaussian_mean(epsilon=epsilon, delta=delta)
        right = significance * correct / canaries
        wrong = significance * (guesses - correct) / canaries
        for level in range(correct - 1, -1, -1):
            needed = max(wrong, float(ndtr(ndtri(right) - mean)))
            if needed == wrong:
                break  # neither mass can grow any more
            right = min(1.0, right + level / (guesses - level) * (needed - wrong))
            wrong = needed
        return right + wrong > guesses / canaries

    return _largest_refuted(refuted)


def largest_reachable_bound(plan: GuessPlan, *, delta: float) -> float:
    """Return the bound that `plan` reaches when every guess is right: about ln(m / 3) at 95 %.

    A leak beyond it cannot be shown with this number of canaries: 256 reach 4.4, and 1,000 reach 5.8,
    when one number of guesses is fixed; every further choice costs a little.

    Args:
        plan: the audit's plan.
        delta: of the claim, 0 to 1.
    """
    return max(
        epsilon_lower_bound(
            canaries=plan.canaries,
            guesses=choice.total,
            correct=choice.total,
            delta=delta,
            significance=plan.significance_of_each,
        )
        for choice in plan.choices
    )


def _largest_refuted(refuted: Callable[[float], bool]) -> float:
    """Bisect; what is returned was itself refuted, unless it is 0."""
    if not refuted(0.0):
        return 0.0
    low, high = 0.0, 1.0
    while high < _LARGEST_EPSILON and refuted(high):
        low, high = high, min(2.0 * high, _LARGEST_EPSILON)
    while high - low > _TOLERANCE:
        middle = (low + high) / 2.0
        low, high = (middle, high) if refuted(middle) else (low, middle)
    return low


def _require_counts(canaries: int, guesses: int, correct: int) -> None:
    if not 1 <= guesses <= canaries or not 0 <= correct <= guesses:
        raise ValueError("right guesses are part of the guesses, and those of the canaries")


def _require_significance(significance: float) -> None:
    if not 0.0 < significance < 0.5:
        raise ValueError("the significance must be above 0 and below one half")
