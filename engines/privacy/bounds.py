"""What every accountant here shares: limits of parameters, the reserve for the sampler, and refusals.

Nothing here computes a price.
"""

import math
from collections.abc import Sequence

from engines.privacy.gaussian_run import CappedPoisson, GaussianRun
from engines.privacy.loss_library import AccountingFailed, Relation

LARGEST_EPSILON = 200.0
SMALLEST_EPSILON = 1e-9
_SMALLEST_DELTA, _LARGEST_DELTA = 1e-10, 0.1  # below, float64 transforms are no longer clearly an upper bound

SAMPLER_RESERVE = 2.0**-20
"""Share of delta kept back for the noise sampler's distance from the ideal: docs/privacy-proof.md."""
SMALL_RESERVE = 2.0**-30
"""The share where that is enough, so that a closed form is met to 1e-9."""
_COVERED_DISTANCE = 2.0 ** (36 - 98.7)
"""Total variation of 2**36 drawn coordinates from ideal ones."""

Part = tuple[float, float, CappedPoisson | None]
"""Noise multiplier, sampling rate and cut of steps that are alike."""


class Hopeless(AccountingFailed):
    """Epsilon is over the largest that is ever claimed."""


def pays_for_sampler(share: float, *, epsilon: float, delta: float) -> bool:
    """Say whether this share of delta pays for 2**36 coordinates of noise at this epsilon."""
    if epsilon > LARGEST_EPSILON:
        return False
    return (1.0 + math.exp(epsilon)) * _COVERED_DISTANCE <= share * delta


def merge(runs: Sequence[GaussianRun]) -> dict[Part, int]:
    """Count the steps of each kind; a cap that no cohort can exceed is no cap."""
    merged: dict[Part, int] = {}
    for run in runs:
        cut = run.capped if run.capped is not None and run.capped.cap < run.capped.population else None
        key = (run.noise_multiplier, run.sampling_rate, cut)
        merged[key] = merged.get(key, 0) + run.steps
    return merged


def one_relation(runs: Sequence[GaussianRun]) -> Relation:
    """Return the relation that all runs share; ValueError if there is none."""
    relations = {run.relation for run in runs}
    if len(relations) != 1:
        raise ValueError("a price needs at least one run, and all under one relation")
    return relations.pop()


def require_delta(delta: float) -> None:
    """Refuse a delta that no price is stated for."""
    if not _SMALLEST_DELTA <= delta <= _LARGEST_DELTA:
        raise ValueError("delta must lie between 1e-10 and 0.1")


def require_epsilon(epsilon: float) -> None:
    """Refuse a target or ceiling that claims nothing."""
    if not SMALLEST_EPSILON <= epsilon <= LARGEST_EPSILON:
        raise ValueError("epsilon must be above 0 and at most 200")


def trusted(epsilon: float) -> float:
    """Pass on a bound that is a number; a bound of zero becomes the smallest claim."""
    if not 0.0 <= epsilon < math.inf:
        raise AccountingFailed("the accountant found no epsilon for this plan")
    if epsilon > LARGEST_EPSILON:
        raise Hopeless("epsilon is over 200, which claims nothing: more noise or fewer steps")
    return max(epsilon, SMALLEST_EPSILON)
