"""Mechanisms that need no secret sampling: each is one Gaussian mechanism, returned as a run to be priced.

The price holds only if participation is limited as declared: whoever uses these must enforce the number
of participations and their separation. Add/remove is refused: a member more would move the others' places.
"""

import math

import numpy as np
from numpy.typing import NDArray

from engines.privacy.gaussian_run import LARGEST_STEPS, GaussianRun
from engines.privacy.loss_library import Relation

_LARGEST_STRATEGY = 4096


def repeated_participation(
    *, noise_multiplier: float, participations: int, relation: Relation
) -> GaussianRun:
    """Describe sums of which one member is in at most `participations`, without amplification.

    For cohorts chosen by an optimiser under a cap on participations, for trust `distributed`, whose server
    and members see the cohort, and for buffered rounds: one contribution a buffer, weight at most 1, a
    constant divisor, and full noise on every buffer. Participations may follow earlier outputs, since each
    release is dominated by the same Gaussian whenever it happens.

    Args:
        noise_multiplier: standard deviation of each release's noise on the sum over C.
        participations: P, the most releases that one member is in during the whole run.
        relation: zero-out or replace-one.
    Returns:
        P unsampled releases, which are one Gaussian of multiplier z / sqrt(P).
    Raises:
        ValueError: an argument is out of range, or the relation is add/remove.
    Source: Dong et al. 2019, arXiv:1905.02383, Corollary 3.3.
    """
    _require_places(relation)
    return GaussianRun(
        noise_multiplier=noise_multiplier, sampling_rate=1.0, steps=participations, relation=relation
    )


def tree_aggregation(*, noise_multiplier: float, steps: int, relation: Relation) -> GaussianRun:
    """Describe binary-tree aggregation of `steps` releases, each member in at most one of them.

    Args:
        noise_multiplier: standard deviation of the noise on every node of the tree over C.
        steps: number of leaves that are ever filled, at least 1.
        relation: zero-out or replace-one.
    Returns:
        A run with one step for each of the h = ceil(log2(steps + 1)) nodes that one contribution enters:
        one Gaussian with mu = sqrt(h) / z.
    Raises:
        ValueError: an argument is out of range, or the relation is add/remove.
    Source: Kairouz et al. 2021, arXiv:2103.00039, Theorem 4.1.
    """
    _require_places(relation)
    if not 1 <= steps <= LARGEST_STEPS:
        raise ValueError("the number of steps must lie between 1 and 10,000,000")
    height = steps.bit_length()  # ceil(log2(steps + 1)), exactly
    return GaussianRun(noise_multiplier=noise_multiplier, sampling_rate=1.0, steps=height, relation=relation)


def matrix_mechanism(
    strategy: NDArray[np.float64],
    *,
    noise_multiplier: float,
    participations: int,
    separation: int,
    relation: Relation,
) -> GaussianRun:
    """Describe a matrix factorization mechanism: releases of B (C x + noise), with C the strategy.

    Rounds may follow earlier outputs where B C is lower triangular and of full rank.

    Args:
        strategy: C, shape (m, n), n rounds; float64.
        noise_multiplier: standard deviation of the noise on each entry of C x over the clip norm.
        participations: k, the most rounds that one member is in.
        separation: b, at least this many rounds apart; 1 is no restriction.
        relation: zero-out or replace-one.
    Returns:
        One unsampled release whose multiplier is `noise_multiplier` over `strategy_sensitivity`, rounded
        down.
    Raises:
        ValueError: an argument is out of range, or the relation is add/remove.
    Source: Choquette-Choo et al. 2022, arXiv:2211.06530; adaptive rounds: Denisov et al. 2022,
        arXiv:2202.08312, Theorem 2.1.
    """
    _require_places(relation)
    sensitivity = strategy_sensitivity(strategy, participations=participations, separation=separation)
    multiplier = math.nextafter(noise_multiplier / sensitivity, 0.0)
    return GaussianRun(noise_multiplier=multiplier, sampling_rate=1.0, steps=1, relation=relation)


def strategy_sensitivity(strategy: NDArray[np.float64], *, participations: int, separation: int) -> float:
    """Bound how far one member moves C x, in units of the clip norm, under zero-out.

    With G = C^T C and a pattern p of rounds, contributions u_i of norm at most 1 give
    |C u|^2 = sum of G_ij <u_i, u_j> over i, j in p, at most the sum of |G_ij|. For each i in p the inner sum
    is at most r_i, its maximum over all patterns that hold i; so the square is at most the maximum of the
    sum of r_i over patterns. Both maxima are found exactly by dynamic programming. The bound holds for every
    matrix. It is tight where k = 1 and where |i - j| >= b implies G_ij = 0 (banded strategies).

    Args:
        strategy: C, shape (m, n), float64, at most 4,096 rounds.
        participations: k, at least 1.
        separation: b, at least 1.
    Returns:
        An upper bound on the L2 sensitivity, rounded up; positive.
    Raises:
        ValueError: an argument is out of range, or the matrix is not finite or zero.
    Source: Choquette-Choo et al. 2022, arXiv:2211.06530 (patterns); Choquette-Choo et al. 2023,
        arXiv:2306.08153 (least separation, banded strategies).
    """
    rounds = _require_strategy(strategy, participations=participations, separation=separation)
    picks = min(participations, -(-rounds // separation))
    size = np.abs(strategy)
    # The second term is above the rounding of the first: (m + 2) roundings of a half ulp each.
    slack = (strategy.shape[0] + 2) * 2.0**-52
    gram = np.abs(strategy.T @ strategy) + slack * (size.T @ size)
    before = _best_before(gram, picks=picks, separation=separation)
    after = _best_before(gram[::-1, ::-1], picks=picks, separation=separation)[:, ::-1]
    others = np.zeros(rounds)
    for left in range(picks):
        others = np.maximum(others, before[left] + after[picks - 1 - left])
    rows = np.diagonal(gram) + others
    squared = _best_total(rows, picks=picks, separation=separation)
    return math.sqrt(squared) * (1.0 + (4 * picks + 8) * 2.0**-52)


def _best_before(gram: NDArray[np.float64], *, picks: int, separation: int) -> NDArray[np.float64]:
    """Return, for m = 0 .. picks - 1 and each row i, the largest sum of at most m entries before i - b + 1.

    Shape (picks, n). The entries of a sum, and i itself, lie at least `separation` columns apart.
    """
    rounds = len(gram)
    found = np.zeros((picks, rounds))
    columns = gram.T  # columns[j, i]: what round j adds to row i
    best = np.zeros_like(columns)  # best[j, i]: over patterns that end at j or earlier
    reach = np.arange(separation, rounds)
    for number in range(1, picks):
        shifted = np.zeros_like(columns)
        shifted[separation:] = best[: max(0, rounds - separation)]
        best = np.maximum.accumulate(columns + shifted, axis=0)
        found[number, separation:] = best[reach - separation, reach]
    return found


def _best_total(weights: NDArray[np.float64], *, picks: int, separation: int) -> float:
    """Return the largest sum of at most `picks` weights that lie at least `separation` apart."""
    best = np.zeros_like(weights)
    for _ in range(picks):
        shifted = np.zeros_like(weights)
        shifted[separation:] = best[: max(0, len(weights) - separation)]
        best = np.maximum.accumulate(weights + shifted)
    return float(best[-1])


def _require_strategy(strategy: NDArray[np.float64], *, participations: int, separation: int) -> int:
    if strategy.ndim != 2 or strategy.dtype != np.float64:
        raise ValueError("a strategy is a matrix of float64")
    if not (1 <= strategy.shape[1] <= _LARGEST_STRATEGY and 1 <= strategy.shape[0] <= 2 * _LARGEST_STRATEGY):
        raise ValueError("a strategy has 1 to 4,096 rounds, and at most 8,192 rows")
    if not (np.isfinite(strategy).all() and np.abs(strategy).max() <= 1e100 and strategy.any()):
        raise ValueError("a strategy is finite, of ordinary size, and not zero")
    if participations < 1 or separation < 1:
        raise ValueError("participations and separation are at least 1")
    return int(strategy.shape[1])


def _require_places(relation: Relation) -> None:
    if relation is Relation.ADD_REMOVE:
        raise ValueError("participation in fixed places has no add/remove price: zero-out or replace-one")
