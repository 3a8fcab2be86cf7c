"""Distributed noise: published formulas against recorded values, exact divergences, and dropouts."""

import dataclasses
import math
from collections.abc import Callable

import numpy as np
import pytest
from dp_accounting import GaussianDpEvent, NeighboringRelation, PoissonSampledDpEvent
from dp_accounting.pld import privacy_loss_distribution
from dp_accounting.rdp import RdpAccountant
from numpy.typing import NDArray
from scipy.optimize import brentq
from scipy.special import ive, log_ndtr

from engines.privacy.distributed import (
    ORDERS,
    DistributedNoise,
    NoiseShape,
    bits_needed,
    divergence,
    epsilon,
    finest_granularity,
    honest_shares,
    realised_multiplier,
    subsampled,
    tail_stds_for,
)
from engines.privacy.loss_library import Relation

SKELLAM, GAUSSIAN = NoiseShape.SKELLAM, NoiseShape.DISCRETE_GAUSSIAN
DELTA = 1e-6


def noise_of(
    shape: NoiseShape = SKELLAM,
    *,
    noise_multiplier: float = 1.0,
    granularity: float = 1e-3,
    dimension: int = 65_536,
    shares: int = 100,
    relation: Relation = Relation.ZERO_OUT,
) -> DistributedNoise:
    return DistributedNoise(
        shape=shape,
        clip_norm=1.0,
        noise_multiplier=noise_multiplier,
        granularity=granularity,
        dimension=dimension,
        shares=shares,
        relation=relation,
    )


def converted(curve: Callable[[int], float], *, rounds: int = 1) -> float:
    return min(
        rounds * curve(order) + math.log1p(-1 / order) - math.log(DELTA * order) / (order - 1)
        for order in ORDERS
    )


def gaussian_epsilon(mean: float) -> float:
    """Solve delta(epsilon) of the Gaussian mechanism exactly: Balle and Wang 2018, arXiv:1805.06530."""
    return float(
        brentq(
            lambda epsilon: (
                math.exp(log_ndtr(mean / 2 - epsilon / mean))
                - math.exp(epsilon + log_ndtr(-mean / 2 - epsilon / mean))
                - DELTA
            ),
            1e-9,
            100.0,
            xtol=1e-12,
        )
    )


# d = 65,536, 100 clients, beta = exp(-1/2), C = 1, z = 1; computed apart from this code from the formulas
# of google-research/federated, distributed_dp/accounting_utils.py, with dp_accounting's conversion.
@pytest.mark.parametrize(
    ("granularity", "rounds", "length", "prices"),
    [
        (1e-4, 1, 1.000133, (5.223224021, 5.223224049)),
        (1e-3, 1, 1.008718, (5.274964661, 5.274967846)),
        (1e-2, 1, 1.631318, (9.177789993, 9.178654883)),
        (1e-3, 100, 1.008718, (1.696893042, 1.696893982)),  # at a rate of .01
    ],
)
def test_recorded_prices_are_met(
    granularity: float, rounds: int, length: float, prices: tuple[float, float]
) -> None:
    rate = 1.0 / rounds
    for shape, expected in zip((GAUSSIAN, SKELLAM), prices, strict=True):
        noise = noise_of(shape, granularity=granularity)
        assert noise.sensitivity()[0] * granularity == pytest.approx(length, abs=1e-6)
        assert epsilon(noise, rounds=rounds, delta=DELTA, rate=rate) == pytest.approx(expected, abs=1e-6)


@pytest.mark.parametrize(("rate", "rounds", "expected"), [(1.0, 1, 5.222428661), (0.01, 100, None)])
def test_both_prices_lie_over_the_continuous_gaussians(
    rate: float, rounds: int, expected: float | None
) -> None:
    continuous = converted(lambda order: subsampled(lambda at: at / 2.0, order, rate=rate), rounds=rounds)
    if expected is not None:
        assert continuous == pytest.approx(expected, abs=1e-6)
    for shape in NoiseShape:
        price = epsilon(noise_of(shape), rounds=rounds, delta=DELTA, rate=rate)
        assert continuous < price < 1.02 * continuous


def test_the_exact_prices_beside_which_the_recorded_ones_stand() -> None:
    """dp_accounting 0.6.0: the sampled continuous Gaussian by RDP, a discrete Gaussian coordinate by PLD."""
    sampled = RdpAccountant(ORDERS, NeighboringRelation.REPLACE_SPECIAL)
    sampled.compose(PoissonSampledDpEvent(0.01, GaussianDpEvent(1.0)), 100)
    assert sampled.get_epsilon(DELTA) == pytest.approx(1.512668916, abs=1e-6)
    assert epsilon(noise_of(), rounds=100, delta=DELTA, rate=0.01) > 1.512668916
    coordinate = privacy_loss_distribution.from_discrete_gaussian_mechanism(sigma=10.0, sensitivity=10)
    assert coordinate.get_epsilon_for_delta(DELTA) == pytest.approx(4.885739309, abs=1e-6)
    assert gaussian_epsilon(1.0) == pytest.approx(4.886554117, abs=1e-8)


def test_the_sampling_bound_is_over_the_exact_divergence_of_the_sampled_gaussian() -> None:
    # dp_accounting, q = .1, z = 1, orders 2, 3, 4, 8
    exact = {2: 0.017036863236176605, 3: 0.03171230030337645, 4: 0.05867260696008056, 8: 1.3783614113481268}
    for order, value in exact.items():
        assert value <= subsampled(lambda at: at / 2.0, order, rate=0.1) <= 4.0 * value


def test_sampling_never_costs_more_than_everyone_and_rate_1_is_everyone() -> None:
    for order in (2, 8, 64, 256):
        assert subsampled(lambda at: at / 2.0, order, rate=1.0) == order / 2.0
        assert subsampled(lambda at: at / 2.0, order, rate=0.9) <= order / 2.0


@pytest.mark.parametrize(
    ("bits", "exponent", "expected"),
    [(16, 20, 10.500), (20, 20, 10.107), (24, 20, 10.1054), (16, 22, 11.673), (20, 22, 10.112)],
)
def test_recorded_prices_by_width_are_met(bits: int, exponent: int, expected: float) -> None:
    # C = 1, z = 4, 50 rounds, k = 4, 100 clients: computed apart from this code, central Gaussian 10.105
    for shape in NoiseShape:
        coarse = noise_of(shape, noise_multiplier=4.0, dimension=2**exponent)
        grid = finest_granularity(coarse, bits=bits, clients=100, tail_stds=4.0)
        noise = dataclasses.replace(coarse, granularity=grid)
        assert epsilon(noise, rounds=50, delta=DELTA) == pytest.approx(expected, abs=2e-3)


def log_skellam(values: NDArray[np.int64], variance: float) -> NDArray[np.float64]:
    """Log probabilities of Poisson(variance/2) - Poisson(variance/2)."""
    logarithms: NDArray[np.float64] = np.log(ive(np.abs(values), variance))
    return logarithms


@pytest.mark.parametrize("variance", [20.0, 100.0, 400.0])
@pytest.mark.parametrize("shift", [1, 4])
@pytest.mark.parametrize("order", [2, 8])
def test_the_exact_divergence_of_one_skellam_coordinate_is_under_the_bound(
    variance: float, shift: int, order: int
) -> None:
    values = np.arange(-150, 151)
    with np.errstate(divide="ignore"):  # far tails underflow to log 0 and are left out
        here, there = log_skellam(values, variance), log_skellam(values - shift, variance)
    seen = np.isfinite(here) & np.isfinite(there)
    exact = math.log(np.exp(order * there[seen] - (order - 1) * here[seen]).sum()) / (order - 1)
    bound = order * shift**2 / (2 * variance) + min(
        ((2 * order - 1) * shift**2 + 6 * shift) / (4 * variance**2), 3 * shift / (2 * variance)
    )
    noise = DistributedNoise(
        shape=SKELLAM,
        clip_norm=float(shift),
        noise_multiplier=math.sqrt(variance) / shift,
        granularity=1.0,
        dimension=1,
        shares=1,
    )
    assert 0.7 * order * shift**2 / (2 * variance) < exact <= bound
    assert exact <= divergence(noise, order)


@pytest.mark.parametrize("bias", [0.0, 0.2, math.exp(-0.5), 0.99])
@pytest.mark.parametrize("dimension", [1, 16, 1000])
def test_conditional_rounding_can_keep_to_the_rounded_norm(bias: float, dimension: int) -> None:
    noise = dataclasses.replace(noise_of(dimension=dimension, granularity=0.05), rounding_bias=bias)
    l2, l1 = noise.sensitivity()
    generator = np.random.default_rng(5)
    vector = generator.normal(size=dimension)
    vector *= 20.0 / np.linalg.norm(vector)
    rounded = np.floor(vector + generator.random((400, dimension)))
    kept = rounded[np.linalg.norm(rounded, axis=1) <= l2]
    assert len(kept) >= (1.0 - bias) * 400 * 0.8  # the chance is at least 1 - beta
    assert float(np.abs(kept).sum(axis=1).max()) <= l1 * (1 + 1e-12)


def test_replace_one_doubles_the_sensitivity_once() -> None:
    half = noise_of(relation=Relation.REPLACE_ONE, noise_multiplier=2.0, granularity=1e-4)
    assert half.sensitivity()[0] == 2.0 * noise_of(granularity=1e-4).sensitivity()[0]
    assert epsilon(half, rounds=1, delta=DELTA) == pytest.approx(
        epsilon(noise_of(granularity=1e-4), rounds=1, delta=DELTA), abs=1e-3
    )
    assert noise_of(relation=Relation.ADD_REMOVE).sensitivity() == noise_of().sensitivity()


def test_few_coarse_discrete_gaussian_shares_cost_more_than_skellam_ones() -> None:
    # each share is .4 integers wide: their sum is visibly no discrete Gaussian
    coarse = {"granularity": 0.25, "dimension": 16, "shares": 100}
    gaussian, skellam = (noise_of(shape, **coarse) for shape in (GAUSSIAN, SKELLAM))  # type: ignore[arg-type]
    assert divergence(gaussian, 2) > 1.5 * divergence(skellam, 2)


def test_shares_for_everyone_lose_noise_to_dropouts_and_shares_for_the_floor_do_not() -> None:
    # exact Gaussian, z = 1, delta 1e-6; 10 % of the clients drop out
    assert gaussian_epsilon(1.0) == pytest.approx(4.886554, abs=1e-6)
    assert gaussian_epsilon(1.0 / math.sqrt(0.9)) == pytest.approx(5.189037, abs=1e-6)
    realised = realised_multiplier(1.0, survivors=90, floor=90, colluders=0)
    assert gaussian_epsilon(1.0 / realised) <= gaussian_epsilon(1.0)
    # and in this module's own terms: 50 rounds at z = 4, shares for 100 of which 90 arrive
    lost = noise_of(noise_multiplier=4.0 * math.sqrt(0.9), granularity=1e-5)
    assert epsilon(lost, rounds=50, delta=DELTA) == pytest.approx(10.80, abs=5e-3)
    kept = noise_of(noise_multiplier=4.0, shares=90, granularity=1e-5)
    assert kept.share_std == pytest.approx(4.0 / math.sqrt(90), rel=1e-15)
    assert epsilon(kept, rounds=50, delta=DELTA) == pytest.approx(10.105, abs=1e-3)


@pytest.mark.parametrize("colluders", [0, 10])
def test_the_sums_variance_is_survivors_over_honest_floor_times_the_plans(colluders: int) -> None:
    for survivors in (90, 95, 100):
        realised = realised_multiplier(1.5, survivors=survivors, floor=90, colluders=colluders)
        assert realised**2 == pytest.approx(1.5**2 * survivors / (90 - colluders), rel=1e-14)
        # what is left when the colluders take their own shares away is still the plan's
        assert realised**2 * (survivors - colluders) / survivors >= 1.5**2 * (1 - 1e-14)


def test_a_sum_with_fewer_survivors_than_the_floor_is_refused() -> None:
    with pytest.raises(ValueError, match="floor"):
        realised_multiplier(1.0, survivors=89, floor=90, colluders=0)
    with pytest.raises(ValueError, match="honest"):
        honest_shares(floor=5, colluders=5)


@pytest.mark.parametrize("clients", [10, 100, 10_000])
def test_the_fewest_bits_hold_the_sum_and_one_less_does_not(clients: int) -> None:
    noise = noise_of(granularity=1e-4)
    k = tail_stds_for(2.0**-40, dimension=noise.dimension)
    bits = bits_needed(noise, clients=clients, tail_stds=k)

    def room(width: int) -> bool:
        # the published form: 2**b >= 2 k sqrt(rho/d (cn)**2 + (gamma**2/4 + sigma**2) n) / gamma
        variance = clients**2 / noise.dimension + (noise.granularity**2 / 4 + noise.share_std**2) * clients
        return 2.0**width >= 2 * k * math.sqrt(variance) / noise.granularity

    assert room(bits)
    assert not room(bits - 1)


def test_a_tail_of_2_to_the_minus_40_over_all_coordinates_is_kept_by_gaussian_noise() -> None:
    k = tail_stds_for(2.0**-40, dimension=65_536)
    assert 65_536 * 2.0 * math.exp(log_ndtr(-k)) <= 2.0**-40


def test_a_width_too_small_for_rounding_alone_is_refused() -> None:
    with pytest.raises(ValueError, match="more bits"):
        finest_granularity(noise_of(), bits=5, clients=100, tail_stds=4.0)
    with pytest.raises(ValueError, match="coarser"):
        bits_needed(noise_of(granularity=1e-12), clients=10_000_000, tail_stds=1e9)


@pytest.mark.parametrize(
    ("name", "value"),
    [
        ("clip_norm", 0.0),
        ("noise_multiplier", 0.0),
        ("noise_multiplier", math.nan),
        ("granularity", 0.0),
        ("dimension", 0),
        ("shares", 0),
        ("rounding_bias", 1.0),
    ],
)
def test_noise_out_of_range_is_refused(name: str, value: float) -> None:
    with pytest.raises(ValueError, match="must"):
        dataclasses.replace(noise_of(), **{name: value})  # type: ignore[arg-type]


def test_tails_and_widths_out_of_range_are_refused() -> None:
    with pytest.raises(ValueError, match="probability"):
        tail_stds_for(0.0, dimension=10)
    with pytest.raises(ValueError, match="bits lie"):
        finest_granularity(noise_of(), bits=65, clients=100, tail_stds=4.0)


def test_prices_that_have_no_bound_are_refused() -> None:
    replaced = noise_of(relation=Relation.REPLACE_ONE)
    with pytest.raises(ValueError, match="replace-one"):
        epsilon(replaced, rounds=1, delta=DELTA, rate=0.5)
    with pytest.raises(ValueError, match="delta"):
        epsilon(noise_of(), rounds=1, delta=0.0)
    with pytest.raises(ValueError, match="round"):
        epsilon(noise_of(), rounds=0, delta=DELTA)
    with pytest.raises(ValueError, match="rate"):
        epsilon(noise_of(), rounds=1, delta=DELTA, rate=0.0)
    with pytest.raises(ValueError, match="order"):
        divergence(noise_of(), 1)
