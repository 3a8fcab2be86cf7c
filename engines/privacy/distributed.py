"""The price of noise that clients add in shares under secure aggregation: Skellam and discrete Gaussian.

Each client clips to C, rotates, rounds to multiples of a granularity and adds an integer share of noise;
the server sees the sum alone. A multiplier z here is the standard deviation, over C, of the noise that the
HONEST SURVIVING shares are sure to add up to: shares are made for the floor of survivors less the assumed
colluders, so that dropouts never lower the noise. Every number is an upper bound on the Renyi divergence.
Sensitivity: one client's rounded vector against the zero vector (zero-out, and with it add/remove), twice
that under replace-one. No amplification belongs in a charge where server and members see the cohort; an
amplified number may only be shown, against recipients of the release alone.
"""

import dataclasses
import enum
import math
from collections.abc import Callable

import numpy as np

from engines.privacy.loss_library import AccountingFailed, Relation

ORDERS: tuple[int, ...] = (*range(2, 129), 256)
"""Integer Renyi orders: the subsampling bound holds at no others."""

ROUNDING_BIAS = math.exp(-0.5)
"""beta: rounding is repeated until the norm is one that comes with a probability of at least 1 - beta."""

_SMALLEST_EPSILON = 1e-9
_LOG_SLACK = 1e-11
"""More than float64 can lose in the logarithms of a sampled moment: those of factorials lose most, 1e-12."""


class NoiseShape(enum.StrEnum):
    """Which integer noise the shares have."""

    SKELLAM = "skellam"  # a sum of shares is again Skellam: exact for any number of survivors
    DISCRETE_GAUSSIAN = "discrete_gaussian"  # a sum of shares is only nearly discrete Gaussian


@dataclasses.dataclass(frozen=True, kw_only=True)
class DistributedNoise:
    """What one round's sum carries, whoever drops out within the floor."""

    shape: NoiseShape
    clip_norm: float
    """C, L2 bound on one client's vector before rounding, parameter units."""
    noise_multiplier: float
    """z: standard deviation of `shares` shares together, divided by C."""
    granularity: float
    """Distance of two neighbouring integers, parameter units."""
    dimension: int
    """Number of coordinates, padding included."""
    shares: int
    """Honest shares that are sure to be in the sum: the floor of survivors less the assumed colluders."""
    rounding_bias: float = ROUNDING_BIAS
    relation: Relation = Relation.ZERO_OUT

    def __post_init__(self) -> None:
        if not 1e-12 <= self.clip_norm <= 1e12:  # also false for NaN, as below
            raise ValueError("the clip norm must lie between 1e-12 and 1e12")
        if not 1e-3 <= self.noise_multiplier <= 1e6:
            raise ValueError("the noise multiplier must lie between 0.001 and 1,000,000")
        if not 1e-12 <= self.granularity / self.clip_norm <= 1e3:
            raise ValueError("the granularity must lie between 1e-12 and 1,000 clip norms")
        if not 1 <= self.dimension <= 2**40 or not 1 <= self.shares <= 10_000_000:
            raise ValueError("there must be 1 to 2**40 coordinates and 1 to 10,000,000 shares")
        if not 0.0 <= self.rounding_bias < 1.0:
            raise ValueError("the rounding's bias must be at least 0 and below 1")

    @property
    def share_std(self) -> float:
        """Standard deviation of one client's share, parameter units: z * C / sqrt(shares)."""
        return self.noise_multiplier * self.clip_norm / math.sqrt(self.shares)

    def sensitivity(self) -> tuple[float, float]:
        """Return how far one client moves the integer sum: L2 and L1, both in integers.

        The rounded vector is longer than C / granularity: conditional rounding keeps its norm to this
        bound, and rounding that is repeated never returns a longer one. An integer vector's L1 norm is at
        most the square of its L2 norm.
        Source: Kairouz, Liu and Steinke 2021, arXiv:2102.06387, Proposition 22 and section 4.3.
        """
        length, root = self.clip_norm / self.granularity, math.sqrt(self.dimension)
        rounded = length + root
        if self.rounding_bias > 0.0:
            spread = math.sqrt(-2.0 * math.log(self.rounding_bias)) * (length + root / 2.0)
            rounded = min(rounded, math.sqrt(length**2 + self.dimension / 4.0 + spread))
        sides = 2.0 if self.relation is Relation.REPLACE_ONE else 1.0
        return sides * rounded, sides * rounded * min(root, rounded)


def divergence(noise: DistributedNoise, order: int) -> float:
    """Return an upper bound on one round's Renyi divergence, every client taking part.

    Args:
        noise: the round's noise.
        order: integer Renyi order, at least 2.
    Raises:
        ValueError: the order is below 2.
    Source: Skellam: Agarwal, Kairouz and Liu 2021, arXiv:2110.04995, Theorem 3.5. Discrete Gaussian:
        arXiv:2102.06387, Proposition 14 with the tau of Theorem 1.
    """
    if order < 2:
        raise ValueError("the order must be an integer of at least 2")
    l2, l1 = noise.sensitivity()
    deviation = noise.noise_multiplier * noise.clip_norm / noise.granularity
    if noise.shape is NoiseShape.SKELLAM:
        variance = deviation**2
        excess = ((2 * order - 1) * l2**2 + 6.0 * l1) / (4.0 * variance**2)
        return order * l2**2 / (2.0 * variance) + min(excess, 3.0 * l1 / (2.0 * variance))
    tau = _distance_of_summed_shares(deviation / math.sqrt(noise.shares), shares=noise.shares)
    far, wide = l2 / deviation, l1 / deviation
    return min(
        order / 2.0 * far**2 + tau * noise.dimension,
        order / 2.0 * (far**2 + 2.0 * wide * tau + tau**2 * noise.dimension),
        order / 2.0 * (far + math.sqrt(noise.dimension) * tau) ** 2,
    )


def _distance_of_summed_shares(share_deviation: float, *, shares: int) -> float:
    """Return tau: how far a sum of discrete Gaussians is from one, as a bound on log ratios.

    A sum with more shares than planned is this sum with independent noise on top: post-processing.
    """
    counted = np.arange(1, shares, dtype=np.float64)
    exponents = -2.0 * (math.pi * share_deviation) ** 2 * counted / (counted + 1.0)
    return 10.0 * float(np.exp(exponents).sum())


def subsampled(curve: Callable[[int], float], order: int, *, rate: float) -> float:
    """Return a bound on the divergence when each client takes part with probability `rate`, unseen.

    Args:
        curve: divergence of one round without sampling, by integer order.
        order: integer order, at least 2.
        rate: Poisson rate q, 0 < q <= 1.
    Raises:
        ValueError: the rate is out of range.
    Source: Zhu and Wang 2019, PMLR 97, Theorem 5: the general bound, with the factor 3 from order 3 on.
    """
    if not 0.0 < rate <= 1.0:
        raise ValueError("the sampling rate must be above 0 and at most 1")
    if rate == 1.0:
        return curve(order)
    stay, take = math.log1p(-rate), math.log(rate)
    terms = [(order - 1) * stay + math.log1p((order - 1) * rate)]
    for moment in range(2, order + 1):
        chosen = math.lgamma(order + 1) - math.lgamma(moment + 1) - math.lgamma(order - moment + 1)
        factor = 0.0 if moment == 2 else math.log(3.0)
        terms.append(factor + chosen + moment * take + (order - moment) * stay + (moment - 1) * curve(moment))
    largest = max(terms)
    total = largest + math.log(math.fsum(math.exp(term - largest) for term in terms)) + _LOG_SLACK
    return min(max(total, 0.0) / (order - 1), curve(order))


def epsilon(noise: DistributedNoise, *, rounds: int, delta: float, rate: float = 1.0) -> float:
    """Price rounds of distributed noise, by the best integer order.

    Args:
        noise: every round's noise.
        rounds: number of rounds that one client takes part in (rate 1), or of all rounds (rate below 1).
        delta: 1e-10 to 0.1, for all rounds together.
        rate: 1 for a charge; below 1 only against those who do not learn the cohort.
    Returns:
        An epsilon at `delta`, at least 1e-9, without what the shares' sampler costs.
    Raises:
        ValueError: an argument is out of range, or sampling is combined with replace-one.
        AccountingFailed: no order gives a finite number.
    Source: conversion of Canonne et al. 2020, arXiv:2004.00010, Proposition 12.
    """
    if rounds < 1 or not 1e-10 <= delta <= 0.1:
        raise ValueError("there must be at least one round, and a delta between 1e-10 and 0.1")
    if noise.relation is Relation.REPLACE_ONE and rate < 1.0:
        raise ValueError("no bound is known here for replace-one with sampling")
    by_order = {order: divergence(noise, order) for order in range(2, max(ORDERS) + 1)}
    found = min(
        rounds * subsampled(by_order.__getitem__, order, rate=rate)
        + math.log1p(-1.0 / order)
        - math.log(delta * order) / (order - 1)
        for order in ORDERS
    )
    if not math.isfinite(found):
        raise AccountingFailed("no Renyi order gives a price for this noise")
    return max(found * (1.0 + 1e-12), _SMALLEST_EPSILON)  # more than the roundings of the last few steps


def honest_shares(*, floor: int, colluders: int) -> int:
    """Return the shares that are sure to be in the sum and unknown to the adversary.

    Args:
        floor: survivors below which the round is aborted.
        colluders: clients assumed to tell the server their own noise.
    Raises:
        ValueError: the floor leaves no honest survivor.
    """
    if colluders < 0 or floor - colluders < 1:
        raise ValueError("the floor of survivors must leave at least one honest share")
    return floor - colluders


def realised_multiplier(noise_multiplier: float, *, survivors: int, floor: int, colluders: int) -> float:
    """Return the multiplier of a finished sum's whole noise: never less than the plan's.

    Its variance is survivors / (floor - colluders) times the plan's. The plan's is what is charged.

    Raises:
        ValueError: fewer survived than the floor (the round must be aborted), or no share is honest.
    """
    if survivors < floor:
        raise ValueError("fewer clients survived than the floor: the sum must not be opened")
    return noise_multiplier * math.sqrt(survivors / honest_shares(floor=floor, colluders=colluders))


def finest_granularity(noise: DistributedNoise, *, bits: int, clients: int, tail_stds: float) -> float:
    """Return the smallest granularity at which `tail_stds` deviations of the sum fit the modulus 2**bits.

    The sum is taken as sub-Gaussian with the variance of rotated vectors (flatness 1), of rounding and of
    every client's share. `noise.granularity` is not looked at.

    Args:
        noise: the noise; its share's deviation is what every client adds.
        bits: width of one entry, 1 to 64.
        clients: the most clients that may be in the sum.
        tail_stds: k, see `tail_stds_for`.
    Raises:
        ValueError: the width is too small for rounding alone, or an argument is out of range.
    Source: arXiv:2102.06387, sections 4.2 and 4.4.
    """
    if not 1 <= bits <= 64 or clients < 1 or not 0.0 < tail_stds < math.inf:
        raise ValueError("bits lie between 1 and 64, clients and tail are above 0")
    room = 2.0 ** (2 * bits) - clients * tail_stds**2
    if room <= 0.0:
        raise ValueError(f"{bits} bits cannot hold the sum of {clients} rounded vectors: use more bits")
    signal = (noise.clip_norm * clients) ** 2 / noise.dimension
    spread = math.sqrt(signal + noise.share_std**2 * clients)
    return 2.0 * tail_stds * spread / math.sqrt(room)


def bits_needed(noise: DistributedNoise, *, clients: int, tail_stds: float) -> int:
    """Return the fewest bits whose finest granularity is at most the noise's own.

    Raises:
        ValueError: 64 bits are too few, or an argument is out of range.
    """
    for bits in range(1, 65):
        if 2.0 ** (2 * bits) <= clients * tail_stds**2:
            continue
        if finest_granularity(noise, bits=bits, clients=clients, tail_stds=tail_stds) <= noise.granularity:
            return bits
    raise ValueError("no width up to 64 bits holds this sum: use a coarser granularity")


def tail_stds_for(probability: float, *, dimension: int) -> float:
    """Return k so that d sub-Gaussian coordinates all stay within k deviations, but for `probability`.

    Raises:
        ValueError: an argument is out of range.
    """
    if not 0.0 < probability < 1.0 or dimension < 1:
        raise ValueError("a probability lies between 0 and 1, a dimension is at least 1")
    return math.sqrt(2.0 * math.log(2.0 * dimension / probability))
