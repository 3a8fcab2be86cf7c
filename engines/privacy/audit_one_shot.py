"""An estimate of epsilon from the same run's canaries: how far their cosines stand out.

An estimate, never a bound: it takes the shape of the noise for granted and may fall on either side of the
truth. Nothing here sees data, updates or noise; cosines come from what a run released.
"""

import dataclasses
import enum
import math
from collections.abc import Iterable

import numpy as np
from numpy.typing import ArrayLike, NDArray

from engines.privacy.gaussian_curve import gaussian_epsilon


class Statistic(enum.StrEnum):
    """What of a run is looked at; also whom the estimate is about."""

    FINAL_ITERATE = "final_iterate"  # the whole change of the model: who receives the release only
    ALL_ITERATES = "all_iterates"  # the largest cosine over all rounds: who sees every round's sum
    SUM_OF_ROUNDS = "sum_of_rounds"  # the inner products of all rounds, added up: who sees every round's sum


@dataclasses.dataclass(frozen=True, kw_only=True)
class OneShotEstimate:
    """Epsilon as it looks from the canaries, with its standard error."""

    statistic: Statistic
    mean: float
    """mu: how far canaries that were in stand out, in standard deviations of those that were not."""
    mean_standard_error: float
    delta: float
    epsilon: float
    """Epsilon of one Gaussian with this mu at delta; 0 where mu is not above 0."""
    standard_error: float
    """What one standard error more of mu adds to epsilon."""


def cosines(directions: Iterable[ArrayLike], release: ArrayLike) -> NDArray[np.float64]:
    """Return the cosine of every canary's direction with what was released.

    Args:
        directions: m unit vectors, each of shape (d,), in or out alike.
        release: shape (d,): a round's noised sum, or the change of the model over the run; any scale.
    Returns:
        Shape (m,).
    Raises:
        ValueError: the release is zero or not finite, or a direction has another shape.
    Source: Andrew et al. 2023, arXiv:2302.03098, Algorithm 2.
    """
    released = np.asarray(release, dtype=np.float64)
    norm = float(np.linalg.norm(released))
    if released.ndim != 1 or not 0.0 < norm < math.inf:  # also false for NaN
        raise ValueError("a release is one vector, finite and not zero")
    found = []
    for direction in directions:
        if np.shape(direction) != released.shape:
            raise ValueError("a canary's direction and the release have different lengths")
        found.append(float(np.dot(np.asarray(direction, dtype=np.float64), released)) / norm)
    return np.array(found, dtype=np.float64)


def largest_over_rounds(by_round: ArrayLike) -> NDArray[np.float64]:
    """Return every canary's largest cosine: shape (rounds, m) to (m,).

    Suits canaries that take part once or seldom. Where they take part in every round their signal adds up,
    the maximum misses that, and the final iterate shows more.

    Raises:
        ValueError: there is no round.
    Source: Andrew et al. 2023, arXiv:2302.03098, Algorithm 3.
    """
    values = np.asarray(by_round, dtype=np.float64)
    if values.ndim != 2 or values.shape[0] < 1:
        raise ValueError("cosines of all rounds are one row a round, and at least one")
    return np.asarray(values.max(axis=0), dtype=np.float64)


def estimate_from_final_iterate(
    scores: ArrayLike, coins: ArrayLike, *, dimension: int, delta: float
) -> OneShotEstimate:
    """Estimate epsilon from cosines with the whole change of the model.

    A canary that was out has a cosine of mean 0 and variance exactly 1/d, whatever was released, since its
    direction was drawn apart from it. One that was in is taken to have the same variance: mu is its mean
    times sqrt(d). With k canaries in and noise of std sigma on unit updates mu is low by the factor
    1 / sqrt(1 + k / (sigma**2 d)); choose k well below sigma**2 d.

    Args:
        scores: shape (m,), cosines.
        coins: shape (m,), bool, True for in; at least two are.
        dimension: d, length of the flat update.
        delta: of the claim, above 0, below 1.
    Raises:
        ValueError: shapes disagree, a cosine is no cosine, or fewer than two canaries were in.
    Source: Andrew et al. 2023, arXiv:2302.03098, Algorithm 2 and Theorem 3.3, equal variances.
    """
    _require_cosines(scores)
    inside, _ = _split(scores, coins)
    if dimension < 2:
        raise ValueError("the dimension must be at least 2")
    standardised = inside * math.sqrt(dimension)
    spread = max(1.0, float(standardised.std(ddof=1)))  # never less than what is known of those out
    return _estimate(
        Statistic.FINAL_ITERATE,
        mean=float(standardised.mean()),
        error=spread / math.sqrt(inside.size),
        delta=delta,
    )


def estimate_from_all_iterates(scores: ArrayLike, coins: ArrayLike, *, delta: float) -> OneShotEstimate:
    """Estimate epsilon from every canary's largest cosine over the rounds.

    Maxima have no known null, so the canaries that were out give it: mu is the difference of the means
    over the pooled standard deviation.

    Args:
        scores: shape (m,), from `largest_over_rounds`.
        coins: shape (m,), bool, True for in; at least two are, and at least two are not.
        delta: of the claim, above 0, below 1.
    Raises:
        ValueError: shapes disagree, a cosine is no cosine, fewer than two canaries were in or out, or all
            of them score the same.
    Source: Andrew et al. 2023, arXiv:2302.03098, Algorithm 3, equal variances; the standard error is that
        of a standardised mean difference (Hedges and Olkin 1985).
    """
    _require_cosines(scores)
    inside, outside = _split_enough(scores, coins)
    free = inside.size + outside.size - 2
    squares = inside.var(ddof=1) * (inside.size - 1) + outside.var(ddof=1) * (outside.size - 1)
    spread = _above_zero(math.sqrt(float(squares) / free))
    mean = (float(inside.mean()) - float(outside.mean())) / spread
    error = math.sqrt(1.0 / inside.size + 1.0 / outside.size + mean * mean / (2.0 * free))
    return _estimate(Statistic.ALL_ITERATES, mean=mean, error=error, delta=delta)


def estimate_from_sum_of_rounds(scores: ArrayLike, coins: ArrayLike, *, delta: float) -> OneShotEstimate:
    """Estimate epsilon from every canary's inner products, added up over the rounds.

    Canaries that were out give the null, in which the clients' own signal is: mu is the difference of the
    means over the standard deviation of those out. With cohorts that are drawn, those in are spread wider,
    by how often each was drawn; that enters the standard error and not mu.

    Args:
        scores: shape (m,), in any unit.
        coins: shape (m,), bool, True for in; at least two are, and at least two are not.
        delta: of the claim, above 0, below 1.
    Raises:
        ValueError: shapes disagree, a score is not finite, fewer than two canaries were in or out, or all
            that were out score the same.
    Source: Andrew et al. 2023, arXiv:2302.03098, Algorithm 2, with an empirical null; the standard error is
        that of a mean difference standardised by one group (Hedges and Olkin 1985).
    """
    inside, outside = _split_enough(scores, coins)
    spread = _above_zero(float(outside.std(ddof=1)))
    mean = (float(inside.mean()) - float(outside.mean())) / spread
    wider = float(inside.var(ddof=1)) / spread**2
    error = math.sqrt(wider / inside.size + 1.0 / outside.size + mean * mean / (2.0 * (outside.size - 1)))
    return _estimate(Statistic.SUM_OF_ROUNDS, mean=mean, error=error, delta=delta)


def epsilon_of_estimate(mean: float, mean_standard_error: float, *, delta: float) -> tuple[float, float]:
    """Turn mu and its standard error into epsilon and its own: closed form, so anyone can do it again.

    Raises:
        ValueError: the standard error is negative, or delta is out of range.
    """
    if not 0.0 <= mean_standard_error < math.inf:
        raise ValueError("a standard error is at least 0")
    epsilon = gaussian_epsilon(max(mean, 0.0), delta=delta)
    above = gaussian_epsilon(max(mean, 0.0) + mean_standard_error, delta=delta)
    return epsilon, above - epsilon


def _estimate(statistic: Statistic, *, mean: float, error: float, delta: float) -> OneShotEstimate:
    epsilon, standard_error = epsilon_of_estimate(mean, error, delta=delta)
    return OneShotEstimate(
        statistic=statistic,
        mean=mean,
        mean_standard_error=error,
        delta=delta,
        epsilon=epsilon,
        standard_error=standard_error,
    )


def _split(scores: ArrayLike, coins: ArrayLike) -> tuple[NDArray[np.float64], NDArray[np.float64]]:
    """Return the scores of the canaries that were in, and of those that were out."""
    values, flips = np.asarray(scores, dtype=np.float64), np.asarray(coins)
    if values.ndim != 1 or values.shape != flips.shape or flips.dtype != np.bool_:
        raise ValueError("scores and coins are one of each a canary, and coins are true or false")
    if not np.isfinite(values).all():
        raise ValueError("a canary's score is not a finite number")
    if np.count_nonzero(flips) < 2:
        raise ValueError("at least two canaries must have been in")
    return values[flips], values[~flips]


def _split_enough(scores: ArrayLike, coins: ArrayLike) -> tuple[NDArray[np.float64], NDArray[np.float64]]:
    inside, outside = _split(scores, coins)
    if outside.size < 2:
        raise ValueError("at least two canaries must have been out")
    return inside, outside


def _above_zero(spread: float) -> float:
    if spread == 0.0:
        raise ValueError("all canaries score the same")
    return spread


def _require_cosines(scores: ArrayLike) -> None:
    if not (np.abs(np.asarray(scores, dtype=np.float64)) <= 1.0 + 1e-9).all():  # also refuses NaN
        raise ValueError("a cosine lies between -1 and 1")
