"""What a schedule's price means to an attacker: the best membership test at a false-positive rate.

An upper bound for every attack on all releases together, by the adversary of the claim. No attack is run.
"""

import math
from collections.abc import Sequence

import numpy as np
from scipy.special import ndtr, ndtri

from engines.privacy.gaussian_run import GaussianRun
from engines.privacy.loss_library import AccountingFailed, watched_library
from engines.privacy.pld import CLAIM_INTERVAL, WIDE_UP_TO, composed, require_hope, unsampled_mean

_HOPE_DELTA = 1e-5
_WIDE = 10
"""How many times wider than a claim's the grid may be: as many times faster, looser by under .001."""
_ROUNDING = 1e-9
"""Above the rounding of the closed form, and above the noise sampler's distance from the ideal."""


def greatest_true_positive_rate(runs: Sequence[GaussianRun], *, false_positive_rate: float = 0.01) -> float:
    """Bound the true-positive rate of any test whether the unit is in the data (or which record is).

    Every (epsilon, delta(epsilon)) of the schedule bounds a test of false-positive rate f by
    exp(epsilon) f + delta and by 1 - exp(-epsilon) (1 - delta - f); the least of them is returned. An
    unsampled schedule is one Gaussian of mean mu, with ndtr(ndtri(f) + mu) exactly.

    Args:
        runs: the parts of the schedule, all under one relation, fixed before it starts.
        false_positive_rate: f, 1e-6 to 0.5.
    Returns:
        A rate, at least f and at most 1.
    Raises:
        ValueError: no run, mixed relations, or the rate is out of range.
        AccountingFailed: no bound could be computed.
    Source: Kairouz et al. 2015, arXiv:1311.0776, Theorem 2.1; Dong et al. 2019, arXiv:1905.02383,
        section 2.
    """
    if not 1e-6 <= false_positive_rate <= 0.5:
        raise ValueError("the false-positive rate must lie between 1e-6 and 0.5")
    mean = unsampled_mean(runs)
    if mean is not None:
        rate = float(ndtr(ndtri(false_positive_rate) + mean))
        return min(1.0, rate + _ROUNDING)
    require_hope(runs, delta=_HOPE_DELTA)
    return _by_losses(runs, false_positive_rate=false_positive_rate)


def _by_losses(runs: Sequence[GaussianRun], *, false_positive_rate: float) -> float:
    """Search a grid of epsilons twice: each of them gives a bound, so a coarse grid is only looser."""
    # Above this one exp(epsilon) f alone is over 1.
    low, high = 0.0, math.log(1.0 / false_positive_rate)
    best = 1.0
    wide = _WIDE if sum(run.steps for run in runs) <= WIDE_UP_TO / _WIDE else 1
    with watched_library():
        losses = composed(runs, interval=wide * CLAIM_INTERVAL)
        for _ in range(2):
            grid = np.linspace(low, high, 41)
            deltas = np.asarray(losses.get_delta_for_epsilon(list(grid)), dtype=np.float64)
            rates = np.minimum(
                np.exp(grid) * false_positive_rate + deltas,
                1.0 - np.exp(-grid) * (1.0 - deltas - false_positive_rate),
            )
            if not np.isfinite(rates).all():
                raise AccountingFailed("the accountant returned a delta that is no number")
            at = int(np.argmin(rates))
            best = min(best, float(rates[at]))
            low, high = grid[max(at - 1, 0)], grid[min(at + 1, len(grid) - 1)]
    return min(1.0, max(false_positive_rate, best) + _ROUNDING)
