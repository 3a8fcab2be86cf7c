"""The noised step as a whole, and the Poisson sampler: each test is a bug once seen in another system."""

import math
from fractions import Fraction

import pytest
import torch
from torch import Tensor

from engines.privacy import mechanism
from engines.privacy.mechanism import noise_std_of, noised_sum, require_exact_sum
from engines.privacy.noise import NoiseStream, grid_for, integer_gaussian
from engines.privacy.sampling import poisson_subset

KEY = bytes(range(32))


def release(
    per_sample: list[Tensor], *, clip_norm: float = 1.0, noise_multiplier: float = 1.0
) -> list[Tensor]:
    return noised_sum(
        per_sample, clip_norm=clip_norm, noise_multiplier=noise_multiplier, stream=NoiseStream.from_key(KEY)
    )


def test_the_released_sum_is_the_clipped_sum_plus_the_streams_noise_to_the_last_grid_step() -> None:
    gradients = torch.randn(5, 40, generator=torch.Generator().manual_seed(3))
    norms = gradients.double().norm(dim=1, keepdim=True)
    clipped = gradients.double() * (1.0 / norms).clamp(max=1.0)
    std = noise_std_of(clip_norm=1.0, noise_multiplier=0.9345)
    grid = grid_for(std)
    noise = integer_gaussian(NoiseStream.from_key(KEY), 40, std_over_grid=std / grid).double() * grid
    released = release([gradients], noise_multiplier=0.9345)[0].double()
    expected = clipped.sum(dim=0) + noise
    assert bool(((released - expected).abs() <= 6 * grid + expected.abs() * 2.0**-24).all())


def test_released_values_lie_on_the_grid_even_as_float32() -> None:
    released = release([torch.randn(9, 500, generator=torch.Generator().manual_seed(4))])[0]
    multiples = released.double() / grid_for(noise_std_of(clip_norm=1.0, noise_multiplier=1.0))
    assert released.dtype == torch.float32
    assert torch.equal(multiples, multiples.round())


def test_an_empty_batch_gets_the_same_noise_as_a_batch_of_zeros() -> None:
    empty = release([torch.zeros(0, 30), torch.zeros(0, 2, 5)])
    zeros = release([torch.zeros(64, 30), torch.zeros(64, 2, 5)])
    assert all(torch.equal(one, other) for one, other in zip(empty, zeros, strict=True))
    assert float(empty[0].abs().min()) > 0


def test_a_sample_that_is_not_finite_releases_the_same_bits_as_a_zero_sample() -> None:
    rows = torch.randn(4, 20, generator=torch.Generator().manual_seed(5))
    broken, zeroed = rows.clone(), rows.clone()
    broken[2, 7] = math.nan
    zeroed[2] = 0.0
    assert torch.equal(release([broken])[0], release([zeroed])[0])


def test_the_order_of_samples_changes_no_bit() -> None:
    rows = torch.randn(64, 300, generator=torch.Generator().manual_seed(6))
    assert torch.equal(release([rows])[0], release([rows.flip(0)])[0])


def test_samples_worked_on_a_few_at_a_time_release_the_same_bits(monkeypatch: pytest.MonkeyPatch) -> None:
    generator = torch.Generator().manual_seed(8)
    gradients = [torch.randn(11, 3, 7, generator=generator), torch.randn(11, 5, generator=generator)]
    whole = release(gradients)
    monkeypatch.setattr(mechanism, "_BLOCK_ELEMENTS", 80)  # three rows of 26 at a time, then two
    assert all(torch.equal(one, other) for one, other in zip(whole, release(gradients), strict=True))


def test_tensors_with_different_numbers_of_samples_release_nothing() -> None:
    with pytest.raises(ValueError, match="different numbers"):
        release([torch.zeros(3, 2), torch.zeros(4, 2)])


def test_one_sample_of_enormous_norm_moves_the_sum_by_at_most_the_clip_norm() -> None:
    calm = torch.randn(8, 50, generator=torch.Generator().manual_seed(7))
    wild = torch.cat([calm, torch.full((1, 50), 1e6)])
    moved = (release([wild], clip_norm=0.5)[0].double() - release([calm], clip_norm=0.5)[0].double()).norm()
    assert float(moved) <= 0.5 + 1e-5  # the slack is the float32 cast of the two releases, not the mechanism


@pytest.mark.parametrize("clip_norm", [0.1, 1.0, 10.0])
def test_the_noise_is_linear_in_the_clip_norm_and_not_divided_by_the_batch(clip_norm: float) -> None:
    released = release([torch.zeros(64, 40_000)], clip_norm=clip_norm, noise_multiplier=0.9345)[0]
    assert float(released.double().std()) == pytest.approx(0.9345 * clip_norm, rel=0.02)


def test_tensors_of_equal_shape_and_successive_steps_get_independent_noise() -> None:
    stream = NoiseStream.from_key(KEY)
    zeros = [torch.zeros(0, 20_000), torch.zeros(0, 20_000)]
    steps = [noised_sum(zeros, clip_norm=1.0, noise_multiplier=1.0, stream=stream) for _ in range(2)]
    draws = torch.stack([draw for step in steps for draw in step]).double()
    correlations = torch.corrcoef(draws) - torch.eye(4, dtype=torch.float64)
    assert float(correlations.abs().max()) < 4 / math.sqrt(20_000)


def test_released_tensors_have_the_shapes_of_the_parameters() -> None:
    released = release([torch.zeros(3, 2, 5), torch.zeros(3), torch.zeros(3, 4)])
    assert [tuple(tensor.shape) for tensor in released] == [(2, 5), (), (4,)]


@pytest.mark.parametrize("noise_multiplier", [0.0, -1.0, math.nan, math.inf, 1e-7, 1e7])
def test_a_step_without_ordinary_noise_is_refused(noise_multiplier: float) -> None:
    with pytest.raises(ValueError, match="noise multiplier"):
        release([torch.zeros(1, 1)], noise_multiplier=noise_multiplier)


def test_a_sum_that_could_leave_int64_is_refused_and_one_just_under_is_not() -> None:
    contributions = 2**38 - 1  # times 2**25 steps of the grid each, just under 2**63
    arguments = {"clip_norm": 1.0, "grid": 2.0**-25, "std_over_grid": 2.0**24}
    with pytest.raises(ValueError, match="over 2\\*\\*63"):
        require_exact_sum(contributions=contributions + 1, **arguments)
    require_exact_sum(contributions=contributions - 8, **arguments)
    with pytest.raises(ValueError, match="over 2\\*\\*63"):
        require_exact_sum(contributions=contributions, **arguments)  # the noise alone takes it over


def test_the_noise_is_never_below_the_product_of_multiplier_and_clip_norm() -> None:
    for clip_norm in (0.1, 0.3, 1.0, 7.7):
        exact = Fraction(0.9345) * Fraction(clip_norm)
        assert Fraction(noise_std_of(clip_norm=clip_norm, noise_multiplier=0.9345)) >= exact


def test_poisson_sampling_includes_each_record_with_the_declared_rate_and_independently() -> None:
    """A fixed key. Count ~ Binomial(n, q); inclusions of two records are uncorrelated."""
    stream, rounds, population, rate = NoiseStream.from_key(KEY), 4_000, 40, 0.1231
    included = torch.zeros(rounds, population, dtype=torch.float64)
    for row in included:
        row[poisson_subset(stream, population, rate=rate)] = 1.0
    deviation = math.sqrt(rate * (1 - rate) / rounds)
    assert float((included.mean(dim=0) - rate).abs().max()) < 4.5 * deviation
    sizes = included.sum(dim=1)
    assert float(sizes.var()) == pytest.approx(population * rate * (1 - rate), rel=0.1)
    correlations = torch.corrcoef(included.T) - torch.eye(population, dtype=torch.float64)
    assert float(correlations.abs().max()) < 5 / math.sqrt(rounds)


def test_the_demos_rate_is_met_exactly_by_64_bit_words() -> None:
    scaled = math.ldexp(0.1231, 64)
    assert scaled == math.floor(scaled)


def test_a_rate_of_one_takes_everybody_and_an_empty_population_gives_nobody() -> None:
    stream = NoiseStream.fresh()
    assert poisson_subset(stream, 5, rate=1.0).tolist() == [0, 1, 2, 3, 4]
    assert poisson_subset(stream, 0, rate=0.5).tolist() == []


@pytest.mark.parametrize("rate", [0.0, -0.1, 1.1, math.nan])
def test_a_rate_that_is_no_probability_is_refused(rate: float) -> None:
    with pytest.raises(ValueError, match="sampling rate"):
        poisson_subset(NoiseStream.fresh(), 3, rate=rate)


def test_a_negative_population_is_refused() -> None:
    with pytest.raises(ValueError, match="population"):
        poisson_subset(NoiseStream.fresh(), -1, rate=0.5)
