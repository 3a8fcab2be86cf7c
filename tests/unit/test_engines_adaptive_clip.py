"""Adaptive clipping: sum and bits together cost exactly z of the plan; the faults of others are not ours."""

import math
from fractions import Fraction

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from scipy.optimize import brentq
from scipy.special import log_ndtr

from engines.privacy.adaptive_clip import AdaptiveClip, BitCount, joint_mean
from engines.privacy.noise import NoiseStream

KEY = bytes(range(32))
REFERENCES = [  # (z, sigma_b, z_delta), computed with 50 digits from the formula of Andrew et al., Theorem 1
    (1.0, 5.0, 1.005037815),
    (0.8, 1.6, 0.826236447),
    (1.0, 0.6, 1.809068067),
]


def plan_of(*, bit_std: float = 2.5, expected_cohort: float = 50.0, target: float = 0.5) -> AdaptiveClip:
    return AdaptiveClip(bit_std=bit_std, expected_cohort=expected_cohort, target=target)


def epsilon_of_mean(mean: float, *, delta: float = 1e-5) -> float:
    """Solve delta(epsilon) of the Gaussian mechanism with this mu: Balle and Wang 2018, arXiv:1805.06530."""

    def excess(epsilon: float) -> float:
        first = log_ndtr(mean / 2 - epsilon / mean)
        second = epsilon + log_ndtr(-mean / 2 - epsilon / mean)
        return float(math.exp(first) - math.exp(second) - delta)

    return float(brentq(excess, 1e-9, 100.0, xtol=1e-12))


@pytest.mark.parametrize(("multiplier", "bit_std", "expected"), REFERENCES)
def test_the_sums_multiplier_is_that_of_the_paper(multiplier: float, bit_std: float, expected: float) -> None:
    assert plan_of(bit_std=bit_std).sum_multiplier(multiplier) == pytest.approx(expected, abs=1e-9)


@pytest.mark.parametrize(("multiplier", "bit_std", "expected"), REFERENCES)
def test_the_joint_mechanism_has_the_plans_multiplier(
    multiplier: float, bit_std: float, expected: float
) -> None:
    mean = joint_mean(sum_multiplier=plan_of(bit_std=bit_std).sum_multiplier(multiplier), bit_std=bit_std)
    assert mean == pytest.approx(1.0 / multiplier, rel=1e-12)
    assert epsilon_of_mean(mean) == pytest.approx(epsilon_of_mean(1.0 / multiplier), abs=1e-9)


@settings(deadline=None)
@given(st.floats(1e-3, 1e4), st.floats(1e-6, 0.999999))
def test_in_exact_arithmetic_the_joint_mechanism_never_has_less_noise_than_the_plan(
    bit_std: float, part: float
) -> None:
    multiplier = 2.0 * bit_std * part
    left = Fraction(plan_of(bit_std=bit_std).sum_multiplier(multiplier))
    square = 1 / left**2 + 1 / (2 * Fraction(bit_std)) ** 2
    assert square <= 1 / Fraction(multiplier) ** 2
    assert float(square * Fraction(multiplier) ** 2) > 1.0 - 1e-12


@pytest.mark.parametrize("multiplier", [5.0, 5.1, 0.0, -1.0, math.nan])
def test_a_multiplier_not_below_twice_the_bits_noise_is_refused(multiplier: float) -> None:
    with pytest.raises(ValueError, match="twice the bit's noise"):
        plan_of(bit_std=2.5).sum_multiplier(multiplier)


# The faults of Opacus 1.6.0's AdaClipDPOptimizer, one by one.


@pytest.mark.parametrize(
    ("multiplier", "bit_std", "claimed", "real"),
    [(1.0, 5.0, 4.3772, 4.4528), (1.0, 0.6, 4.3772, 8.5260), (0.8, 1.6, 5.6796, 6.2865)],
)
def test_a_bit_of_0_or_1_would_cost_more_than_is_claimed(
    multiplier: float, bit_std: float, claimed: float, real: float
) -> None:
    left = plan_of(bit_std=bit_std).sum_multiplier(multiplier)
    with_a_raw_count = math.hypot(1.0 / left, 1.0 / bit_std)  # zeroing a client out moves a 0/1 count by 1
    assert epsilon_of_mean(1.0 / multiplier) == pytest.approx(claimed, abs=1e-4)
    assert epsilon_of_mean(with_a_raw_count) == pytest.approx(real, abs=1e-4)
    assert epsilon_of_mean(joint_mean(sum_multiplier=left, bit_std=bit_std)) == pytest.approx(
        claimed, abs=1e-4
    )


@pytest.mark.parametrize("within", [True, False])
def test_a_client_that_is_zeroed_out_moves_the_count_by_one_half_and_a_replaced_one_by_one(
    within: bool,
) -> None:
    def share(*bits: bool) -> float:
        count = BitCount(plan_of(expected_cohort=1.0))
        for bit in bits:
            count.add(within=bit)
        return count.release(NoiseStream.from_key(KEY))

    others = (True, False, True)
    assert abs(share(*others, within) - share(*others)) == 0.5
    assert abs(share(*others, True) - share(*others, False)) == 1.0


def test_the_share_is_divided_by_the_expected_cohort_whoever_came() -> None:
    def share(clients: int) -> float:
        count = BitCount(plan_of(expected_cohort=64.0))
        for _ in range(clients):
            count.add(within=True)
        return count.release(NoiseStream.from_key(KEY))

    assert share(20) - share(10) == 10 * 0.5 / 64.0


def test_an_empty_cohort_releases_noise_around_one_half() -> None:
    share = BitCount(plan_of()).release(NoiseStream.from_key(KEY))
    assert share != 0.5
    assert abs(share - 0.5) < 8 * 2.5 / 50.0


def test_the_bits_noise_comes_from_the_rounds_stream_and_not_from_torchs_generator() -> None:
    torch.manual_seed(1)
    first = BitCount(plan_of()).release(NoiseStream.from_key(KEY))
    torch.manual_seed(2)
    assert BitCount(plan_of()).release(NoiseStream.from_key(KEY)) == first
    assert BitCount(plan_of()).release(NoiseStream.from_key(bytes(32))) != first


def test_the_bits_noise_has_the_planned_width() -> None:
    stream = NoiseStream.from_key(KEY)
    plan = plan_of(bit_std=2.5, expected_cohort=1.0)
    noises = torch.tensor([BitCount(plan).release(stream) - 0.5 for _ in range(4_000)], dtype=torch.float64)
    assert float(noises.std()) == pytest.approx(2.5, rel=0.05)  # over four standard errors
    assert abs(float(noises.mean())) < 4 * 2.5 / math.sqrt(4_000)


@pytest.mark.parametrize("bit_std", [1e-3, 0.4, 0.6, 2.5, 1000.0, 2.0**20])
def test_the_noised_count_lies_on_its_grid(bit_std: float) -> None:
    plan = plan_of(bit_std=bit_std, expected_cohort=1.0)
    count = BitCount(plan)
    count.add(within=True)
    steps = (count.release(NoiseStream.from_key(KEY)) - 0.5) / count.grid
    assert steps == round(steps)
    assert (0.5 / count.grid) == round(0.5 / count.grid)


def test_a_count_is_released_once_and_takes_nothing_afterwards() -> None:
    count = BitCount(plan_of())
    count.release(NoiseStream.from_key(KEY))
    with pytest.raises(RuntimeError, match="released once"):
        count.release(NoiseStream.from_key(KEY))
    with pytest.raises(RuntimeError, match="no more clients"):
        count.add(within=True)


def test_the_clip_norm_moves_geometrically_and_rests_at_the_target() -> None:
    plan = plan_of()
    assert plan.next_clip_norm(2.0, share_within=0.5) == 2.0
    assert plan.next_clip_norm(2.0, share_within=1.0) == pytest.approx(2.0 * math.exp(-0.1), rel=1e-15)
    assert plan.next_clip_norm(2.0, share_within=0.0) == pytest.approx(2.0 * math.exp(0.1), rel=1e-15)


@pytest.mark.parametrize("share", [1e9, -1e9])
def test_the_clip_norm_stays_within_its_public_limits(share: float) -> None:
    assert plan_of().next_clip_norm(1.0, share_within=share) == (1e-6 if share > 0 else 1e6)


@pytest.mark.parametrize("target", [0.5, 0.9])
def test_the_clip_norm_finds_the_target_quantile_of_the_clients_norms(target: float) -> None:
    plan = plan_of(bit_std=2.5, expected_cohort=50.0, target=target)
    norms = torch.exp(torch.randn(50, generator=torch.Generator().manual_seed(6)) * 0.5).tolist()
    stream, clip_norm, seen = NoiseStream.from_key(KEY), 0.05, []
    for _ in range(300):
        count = BitCount(plan)
        for norm in norms:
            count.add(within=norm <= clip_norm)
        clip_norm = plan.next_clip_norm(clip_norm, share_within=count.release(stream))
        seen.append(clip_norm)
    within = sum(norm <= sum(seen[-100:]) / 100 for norm in norms) / 50
    assert abs(within - target) < 0.08


def test_a_share_that_is_not_finite_is_refused() -> None:
    with pytest.raises(ValueError, match="finite"):
        plan_of().next_clip_norm(1.0, share_within=math.nan)


@pytest.mark.parametrize(
    ("name", "value"),
    [
        ("bit_std", 0.0),
        ("bit_std", math.nan),
        ("bit_std", 2.0**21),
        ("expected_cohort", 0.0),
        ("target", 0.0),
        ("target", 1.0),
        ("learning_rate", 0.0),
        ("smallest_clip_norm", 1e7),
        ("largest_clip_norm", 1e13),
    ],
)
def test_constants_out_of_range_are_refused(name: str, value: float) -> None:
    with pytest.raises(ValueError, match=r"noise|cohort|quantile|rate|limits"):
        AdaptiveClip(**{"bit_std": 2.5, "expected_cohort": 50.0, name: value})
