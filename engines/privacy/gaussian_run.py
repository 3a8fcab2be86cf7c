"""What is priced: releases of a clipped sum with Gaussian noise, and who may be in them.

A noise multiplier is always the noise's standard deviation on the SUM over the clip norm C. The relation
decides the sensitivity, C or 2C; it is applied once, inside the accountants, never here. No price is
computed here.
"""

import dataclasses
import math
from fractions import Fraction

from engines.privacy.loss_library import Relation

LARGEST_STEPS = 10_000_000
_LARGEST_POPULATION = 1_000_000_000
_DEVIATIONS = 5
"""Standard deviations of a cohort's size between its mean and the cap: a cut is then rare."""


@dataclasses.dataclass(frozen=True, kw_only=True)
class CappedPoisson:
    """A Poisson cohort of which a uniform random subset of `cap` is kept where more were drawn."""

    population: int
    """N_max: the most members that a cohort may be drawn from; the price holds for fewer too."""
    cap: int
    """The most that are kept, 1 to `population`; equal to it, nothing is ever cut."""

    def __post_init__(self) -> None:
        if not 1 <= self.population <= _LARGEST_POPULATION:
            raise ValueError("the population must lie between 1 and 1,000,000,000")
        if not 1 <= self.cap <= self.population:
            raise ValueError("the cap must lie between 1 and the population")


@dataclasses.dataclass(frozen=True, kw_only=True)
class GaussianRun:
    """`steps` releases of a Poisson-sampled, clipped sum with Gaussian noise."""

    noise_multiplier: float
    """Standard deviation of the noise on the sum, divided by the clip norm C."""
    sampling_rate: float
    """Probability q that a record (or client, where that is the unit) takes part in a step, 0 < q <= 1."""
    steps: int
    relation: Relation
    capped: CappedPoisson | None = None
    """How a cohort that was drawn too large is cut. Members then displace each other, which costs."""

    def __post_init__(self) -> None:
        if not 1e-3 <= self.noise_multiplier <= 1e6:  # false for NaN, as below
            raise ValueError("the noise multiplier must lie between 0.001 and 1,000,000")
        if not 1e-9 <= self.sampling_rate <= 1.0:
            raise ValueError("the sampling rate must lie between 1e-9 and 1")
        if not 1 <= self.steps <= LARGEST_STEPS:
            raise ValueError("the number of steps must lie between 1 and 10,000,000")


def gaussian_run(
    *,
    noise_std: float,
    clip_norm: float,
    relation: Relation,
    sampling_rate: float,
    steps: int,
    capped: CappedPoisson | None = None,
) -> GaussianRun:
    """Describe a schedule by what the mechanism does; both accountants take the result.

    Args:
        noise_std: standard deviation of the noise on the SUM, in the units of the clip norm.
        clip_norm: C > 0, the largest L2 norm of one contribution; not doubled for replace-one.
        relation: neighbouring relation of the claim; it doubles C in the accountants where it has to.
        sampling_rate: probability of the unit to be in a step; 1 for all.
        steps: number of releases.
        capped: the cut of a Poisson cohort, if there is one.
    Returns:
        The schedule with noise_std / clip_norm, rounded down.
    Raises:
        ValueError: an argument is out of range.
    """
    if not (0.0 < noise_std < math.inf and 0.0 < clip_norm < math.inf):
        raise ValueError("the noise and the clip norm must be above 0 and finite")
    multiplier = noise_std / clip_norm
    if math.isfinite(multiplier) and Fraction(multiplier) * Fraction(clip_norm) > Fraction(noise_std):
        multiplier = math.nextafter(multiplier, 0.0)
    return GaussianRun(
        noise_multiplier=multiplier,
        sampling_rate=sampling_rate,
        steps=steps,
        relation=relation,
        capped=capped,
    )


def smallest_cap(population: int, rate: float) -> int:
    """Return the smallest cap that a cohort of this rate may have: five standard deviations over its mean.

    Args:
        population: N_max, at least 1.
        rate: Poisson rate q, above 0 and at most 1.
    Returns:
        ceil(N_max q + 5 sqrt(N_max q (1 - q))), and at most the population, where nothing is ever cut.
    Raises:
        ValueError: an argument is out of range.
    """
    if not 1 <= population <= _LARGEST_POPULATION:
        raise ValueError("the population must lie between 1 and 1,000,000,000")
    if not 0.0 < rate <= 1.0:
        raise ValueError("the sampling rate must be above 0 and at most 1")
    mean = population * Fraction(rate)
    squared = _DEVIATIONS**2 * mean * (1 - Fraction(rate))
    cap = max(1, math.floor(mean + math.isqrt(math.floor(squared))))
    while (cap - mean) ** 2 < squared or cap < mean:  # exact, so that no rounding moves the rule
        cap += 1
    return min(cap, population)


def require_cap(population: int, rate: float, cap: int) -> None:
    """Refuse a cap under which cohorts would be cut often, or which nothing could reach.

    Raises:
        ValueError: the cap is below `smallest_cap` or above the population; the text names the limits.
    """
    smallest = smallest_cap(population, rate)
    if not smallest <= cap <= population:
        raise ValueError(f"the cap must lie between {smallest} and {population}")
