"""The closed form of one Gaussian mechanism: mean difference mu, epsilon and delta.

For audits, which compare estimates of mu with claims. Claims themselves are priced by
engines.privacy.accounting, whose numbers are upper bounds by construction; these are exact up to rounding.
"""

import math

from scipy.optimize import brentq
from scipy.special import log_ndtr

_LARGEST_MEAN = 1e4


def gaussian_delta(mean: float, *, epsilon: float) -> float:
    """Return the smallest delta of telling N(0, 1) from N(mean, 1) at `epsilon`.

    Args:
        mean: mu, 0 to 10,000: sensitivity over the noise's standard deviation.
        epsilon: at least 0.
    Raises:
        ValueError: an argument is out of range.
    Source: Balle and Wang 2018, arXiv:1805.06530, Theorem 8; Dong et al. 2019, arXiv:1905.02383,
        Corollary 2.13.
    """
    if not 0.0 <= mean <= _LARGEST_MEAN:  # also false for NaN, as below
        raise ValueError("the mean difference must lie between 0 and 10,000")
    if not 0.0 <= epsilon < math.inf:
        raise ValueError("epsilon must be at least 0")
    if mean == 0.0:
        return 0.0
    kept = float(log_ndtr(mean / 2.0 - epsilon / mean))
    paid = epsilon + float(log_ndtr(-mean / 2.0 - epsilon / mean))
    return -math.exp(kept) * math.expm1(min(paid - kept, 0.0))


def gaussian_epsilon(mean: float, *, delta: float) -> float:
    """Return the smallest epsilon of telling N(0, 1) from N(mean, 1) at `delta`.

    Args:
        mean: mu, 0 to 10,000.
        delta: above 0, below 1.
    Raises:
        ValueError: an argument is out of range.
    Source: as `gaussian_delta`, solved for epsilon.
    """
    _require_delta(delta)
    if gaussian_delta(mean, epsilon=0.0) <= delta:
        return 0.0
    # At the upper end the first term alone is at most delta: P[N(0, 1) > x] <= exp(-x**2 / 2).
    enough = mean * mean / 2.0 + mean * math.sqrt(-2.0 * math.log(delta))
    return float(brentq(lambda epsilon: _excess(mean, epsilon, delta), 0.0, enough, xtol=1e-12))


def gaussian_mean(*, epsilon: float, delta: float) -> float:
    """Return the mu whose `gaussian_epsilon` at `delta` is `epsilon`: the claim read as one Gaussian.

    Args:
        epsilon: 0 to 10,000.
        delta: above 0, below 1.
    Raises:
        ValueError: an argument is out of range.
    """
    _require_delta(delta)
    if not 0.0 <= epsilon <= 1e4:
        raise ValueError("epsilon must lie between 0 and 10,000")
    enough = 1.0
    while gaussian_delta(enough, epsilon=epsilon) <= delta:
        enough *= 2.0
        if enough > _LARGEST_MEAN:
            raise ValueError("no Gaussian of ordinary size has this epsilon and delta")
    return float(brentq(lambda mean: _excess(mean, epsilon, delta), 0.0, enough, xtol=1e-14))


def _excess(mean: float, epsilon: float, delta: float) -> float:
    return gaussian_delta(mean, epsilon=epsilon) - delta


def _require_delta(delta: float) -> None:
    if not 0.0 < delta < 1.0:
        raise ValueError("delta must be above 0 and below 1")
