"""Privacy-loss distributions of whole schedules: composition, and the epsilon at a delta.

Every number is an upper bound; what cannot be computed is refused, never priced at zero. The public face
is engines.privacy.accounting.
"""

import dataclasses
import math
from collections.abc import Sequence
from typing import Any

from engines.privacy.bounds import (
    LARGEST_EPSILON,
    SAMPLER_RESERVE,
    SMALL_RESERVE,
    Hopeless,
    merge,
    one_relation,
    pays_for_sampler,
    trusted,
)
from engines.privacy.gaussian_curve import gaussian_epsilon
from engines.privacy.gaussian_run import GaussianRun
from engines.privacy.loss_library import AccountingFailed, Relation, loss_of_step, watched_library
from engines.privacy.renyi import rdp_price

CLAIM_INTERVAL = 1e-4
"""Width of the privacy-loss grid for every epsilon that leaves this package."""
WIDE_UP_TO = 100_000
"""Steps over how many times wider a grid is: from more on, its own error adds up, and shows."""

_ROUNDING = 1e-11
"""Above the error of the closed form, relative to 1 + epsilon."""


def price(runs: Sequence[GaussianRun], *, delta: float, interval: float) -> float:
    """Return an epsilon that the whole schedule satisfies, in either direction of its relation.

    Without sampling and cuts the schedule is one Gaussian mechanism, whose closed form is used, rounded
    up; otherwise losses are composed on a grid of width `interval`. Delta is lowered first by what the
    noise sampler's distance from the ideal costs.

    Raises:
        AccountingFailed: no bound up to 200 could be computed.
    Source: Balle and Wang 2018, arXiv:1805.06530, Theorem 8; connect-the-dots, Doroshenko et al. 2022,
        arXiv:2207.04380, pessimistic estimate.
    """
    mean = unsampled_mean(runs)
    with watched_library():
        losses = composed(runs, interval=interval) if mean is None else None
        epsilon = math.inf
        for share in (SMALL_RESERVE, SAMPLER_RESERVE):
            usable = delta * (1.0 - share)
            if mean is not None:
                exact = gaussian_epsilon(mean, delta=usable)
                epsilon = exact + _ROUNDING * (1.0 + exact) if exact > 0.0 else 0.0
            elif losses is not None:
                epsilon = float(losses.get_epsilon_for_delta(usable))
            if pays_for_sampler(share, epsilon=epsilon, delta=delta):
                break
    return trusted(epsilon)


def composed(runs: Sequence[GaussianRun], *, interval: float) -> Any:
    """Return the library's privacy-loss distribution of the whole schedule; call inside watched_library."""
    relation = one_relation(runs)
    total = None
    for (multiplier, rate, cut), steps in merge(runs).items():
        # n Gaussian releases are one with the deviation divided by sqrt(n); with sampling they are not.
        if rate == 1.0 and cut is None:
            part = loss_of_step(multiplier / math.sqrt(steps), rate, relation, interval)
        else:
            capped = None if cut is None else (cut.population, cut.cap)
            part = loss_of_step(multiplier, rate, relation, interval, capped).self_compose(steps)
        total = part if total is None else total.compose(part)
    if total is None:
        raise AccountingFailed("there is nothing to price")
    return total


def unsampled_mean(runs: Sequence[GaussianRun]) -> float | None:
    """Return mu where the schedule is one Gaussian mechanism, else None. Replace-one is doubled here."""
    parts = merge(runs)
    if any(rate < 1.0 or cut is not None for _, rate, cut in parts):
        return None
    squared = math.fsum(steps / multiplier**2 for (multiplier, _, _), steps in parts.items())
    doubled = 2.0 if one_relation(runs) is Relation.REPLACE_ONE else 1.0
    return doubled * math.sqrt(squared)


def require_hope(runs: Sequence[GaussianRun], *, delta: float) -> None:
    """Refuse what would take minutes and gigabytes only to show an epsilon over 200."""
    # A member that displaces another moves the sum by twice as much.
    sensitivity = 2.0 if one_relation(runs) is Relation.REPLACE_ONE else 1.0
    widest = 2.0 * sensitivity if any(run.capped is not None for run in runs) else sensitivity
    mean = widest * math.sqrt(sum(run.steps / run.noise_multiplier**2 for run in runs))
    if mean * mean / 2.0 + 8.0 * mean <= LARGEST_EPSILON:  # even without sampling
        return
    if rdp_price(uncut(runs), delta=delta) > LARGEST_EPSILON:
        raise Hopeless("epsilon is over 200, which claims nothing: more noise or fewer steps")


def uncut(runs: Sequence[GaussianRun]) -> list[GaussianRun]:
    """Return schedules that RDP can price, close to `runs`: no cut, and half the noise for replace-one."""
    return [
        dataclasses.replace(
            run,
            noise_multiplier=max(
                run.noise_multiplier / (2.0 if run.relation is Relation.REPLACE_ONE else 1.0), 1e-3
            ),
            relation=Relation.ZERO_OUT,
            capped=None,
        )
        for run in runs
    ]


def keeps(run: GaussianRun, *, epsilon: float, delta: float, interval: float) -> bool:
    """Say whether a run stays within its target, priced on a grid of this width."""
    try:
        require_hope([run], delta=delta)
        return price([run], delta=delta, interval=interval) <= epsilon
    except Hopeless:
        return False
