"""A person who is more than one unit: in several data sets, or with several records in one.

Both cost more than the claim for one unit, and neither is the sum of other people's prices.
"""

import dataclasses
import math
from collections.abc import Sequence

from engines.privacy.accounting import epsilon_pld
from engines.privacy.bounds import LARGEST_EPSILON, SAMPLER_RESERVE, require_delta
from engines.privacy.gaussian_run import GaussianRun
from engines.privacy.loss_library import AccountingFailed, watched_library
from engines.privacy.pld import CLAIM_INTERVAL, composed, require_hope, unsampled_mean

_LARGEST_GROUP = 10_000
_GRID_POINTS = 256
"""Single epsilons that are tried for a group."""


def epsilon_in_silos(runs: Sequence[GaussianRun], *, silos: int, delta: float) -> float:
    """Price the schedule for a person whose one unit is in `silos` data sets, each noised by itself.

    The data sets' releases compose: k times the steps, priced as one schedule, never k times epsilon.

    Args:
        runs: the schedule of one data set; all data sets share it.
        silos: k, at least 1.
        delta: 1e-10 to 0.1, for all k together.
    Raises:
        ValueError: an argument is out of range.
        AccountingFailed: no bound up to 200 could be computed.
    """
    if silos < 1:
        raise ValueError("a person is in at least one silo")
    return epsilon_pld([dataclasses.replace(run, steps=run.steps * silos) for run in runs], delta=delta)


def group_privacy(*, epsilon: float, delta: float, records: int) -> tuple[float, float]:
    """Return what (epsilon, delta) for one record is for `records` of one person.

    Args:
        epsilon: above 0.
        delta: 0 to 1.
        records: m, at least 1.
    Returns:
        m * epsilon, and delta times the sum of exp(i * epsilon) for i below m, at most 1: with a delta of 1
        nothing is claimed.
    Raises:
        ValueError: an argument is out of range.
    Source: Vadhan 2017, The Complexity of Differential Privacy, Lemma 2.2 (with the geometric sum kept).
    """
    if not (0.0 < epsilon < math.inf and 0.0 <= delta <= 1.0):
        raise ValueError("epsilon must be above 0, and delta between 0 and 1")
    if not 1 <= records <= _LARGEST_GROUP:
        raise ValueError("a group has 1 to 10,000 records")
    return records * epsilon, min(1.0, delta * _geometric(epsilon, records))


def epsilon_of_group(runs: Sequence[GaussianRun], *, records: int, delta: float) -> float:
    """Price the schedule for a person with `records` records in one data set.

    An unsampled schedule is one Gaussian whose sensitivity is m times larger, priced as such. With sampling,
    the least m * epsilon is stated of all (epsilon, delta(epsilon)) of the schedule whose group delta is at
    most `delta`.

    Args:
        runs: the schedule for one record.
        records: m, at least 1.
        delta: 1e-10 to 0.1, for the group.
    Raises:
        ValueError: an argument is out of range.
        AccountingFailed: no bound up to 200 could be computed.
    Source: as `group_privacy`; the unsampled case: linearity of the sum.
    """
    if not 1 <= records <= _LARGEST_GROUP:
        raise ValueError("a group has 1 to 10,000 records")
    if records == 1:
        return epsilon_pld(runs, delta=delta)
    if unsampled_mean(runs) is not None:
        wider = [
            dataclasses.replace(run, noise_multiplier=math.nextafter(run.noise_multiplier / records, 0.0))
            for run in runs
        ]
        return epsilon_pld(wider, delta=delta)
    require_delta(delta)
    require_hope(runs, delta=delta)
    return _least_group_epsilon(runs, records=records, delta=delta)


def _least_group_epsilon(runs: Sequence[GaussianRun], *, records: int, delta: float) -> float:
    """Find the first single epsilon of a grid that holds, then halve down to 1e-4; what is stated was asked.

    Beyond some epsilon nothing holds again: the losses' truncated mass times exp(epsilon) is over delta.
    """
    with watched_library():
        losses = composed(runs, interval=CLAIM_INTERVAL)

        def holds(epsilon: float) -> bool:
            allowed = delta * (1.0 - SAMPLER_RESERVE) / _geometric(epsilon, records)
            return float(losses.get_delta_for_epsilon(epsilon)) <= allowed

        grid = [LARGEST_EPSILON / records * part / _GRID_POINTS for part in range(1, _GRID_POINTS + 1)]
        high = next((epsilon for epsilon in grid if holds(epsilon)), None)
        if high is None:
            raise AccountingFailed("no epsilon up to 200 holds for this group")
        low = high - grid[0]
        while high - low > CLAIM_INTERVAL:
            middle = (low + high) / 2.0
            low, high = (low, middle) if holds(middle) else (middle, high)
    return records * high


def _geometric(epsilon: float, records: int) -> float:
    """Return the sum of exp(i * epsilon) for i = 0 .. records - 1, infinity where it is too large."""
    if records * epsilon > 700.0:
        return math.inf
    return math.fsum(math.exp(number * epsilon) for number in range(records))
