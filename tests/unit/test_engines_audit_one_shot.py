"""One-shot estimates from canaries' cosines: known nulls, known signals, and what each statistic sees."""

import hashlib
import math

import numpy as np
import pytest
from numpy.typing import NDArray

from engines.privacy.audit_canaries import Canaries
from engines.privacy.audit_one_shot import (
    Statistic,
    cosines,
    epsilon_of_estimate,
    estimate_from_all_iterates,
    estimate_from_final_iterate,
    largest_over_rounds,
)
from engines.privacy.gaussian_curve import gaussian_epsilon

DELTA = 1e-6
SECRET = bytes(range(32))


def noised_rounds(
    canaries: Canaries, *, taking_part: NDArray[np.int64], rounds: int, std: float, seed: int
) -> NDArray[np.float64]:
    """Sum each round's canaries and add continuous Gaussian noise; `taking_part` is -1 for none."""
    releases = np.random.default_rng(seed).normal(scale=std, size=(rounds, canaries.dimension))
    for index, at in enumerate(taking_part):
        if at >= 0:
            releases[at] += canaries.direction(index)
    return releases


def test_a_canarys_direction_has_norm_one() -> None:
    canaries = Canaries(SECRET, count=20, dimension=6_529)
    assert all(
        np.linalg.norm(direction.astype(np.float64)) == pytest.approx(1.0, abs=1e-6)
        for direction in canaries.directions()
    )


def test_the_canaries_of_a_secret_are_the_same_on_every_machine() -> None:
    canaries = Canaries(SECRET, count=40, dimension=100)
    drawn = canaries.coins().tobytes() + b"".join(np.sign(one).tobytes() for one in canaries.directions())
    assert (
        hashlib.sha256(drawn).hexdigest()
        == "ecec2a2373bfacebeb71c47c2b1cc6a0b55c544ac09b610ad871edf688f41796"
    )
    assert canaries.commitment == "b3de55b3174291f6fbd1f073f02df8894742a1f133129b07ce1d95a9a1613cd8"


def test_coins_are_fair_and_independent_of_directions_and_of_other_secrets() -> None:
    one = Canaries(SECRET, count=20_000, dimension=20_000)
    other = Canaries(bytes(32), count=20_000, dimension=20_000)
    coins = one.coins()
    for bits in (coins, coins == other.coins(), coins == (one.direction(0) > 0)):
        assert abs(float(bits.mean()) - 0.5) < 4 * 0.5 / math.sqrt(20_000)
    assert abs(float(np.mean((one.direction(0) > 0) == (one.direction(1) > 0))) - 0.5) < 0.015


def test_a_commitment_binds_the_secret_and_the_shape_and_fresh_canaries_differ() -> None:
    shapes = [(SECRET, 40, 100), (bytes(32), 40, 100), (SECRET, 41, 100), (SECRET, 40, 101)]
    bound = {Canaries(secret, count=m, dimension=d).commitment for secret, m, d in shapes}
    assert len(bound) == 4
    assert Canaries.fresh(40, 100).commitment != Canaries.fresh(40, 100).commitment


def test_canaries_of_no_use_are_refused() -> None:
    with pytest.raises(ValueError, match="32 bytes"):
        Canaries(b"short", count=40, dimension=100)
    with pytest.raises(ValueError, match="needs 20"):
        Canaries(SECRET, count=19, dimension=100)
    with pytest.raises(ValueError, match="no such canary"):
        Canaries(SECRET, count=40, dimension=100).direction(40)


def test_cosines_are_those_of_the_definition_whatever_the_scale() -> None:
    release = np.array([3.0, 4.0])
    assert cosines([[1.0, 0.0], [0.0, -1.0]], release) == pytest.approx([0.6, -0.8])
    assert cosines([[1.0, 0.0]], 1e-9 * release) == pytest.approx([0.6])


@pytest.mark.parametrize("shape", ["gaussian", "uneven"])
def test_canaries_that_were_out_have_mean_zero_and_variance_one_over_d(shape: str) -> None:
    """Also on a release of which a few coordinates are far larger than the others."""
    canaries = Canaries(SECRET, count=2_000, dimension=4_096)
    release = np.random.default_rng(3).standard_normal(4_096)
    if shape == "uneven":
        release *= np.where(np.arange(4_096) < 64, 20.0, 1.0)
    standardised = cosines(canaries.directions(), release) * math.sqrt(4_096)
    assert abs(float(standardised.mean())) < 4 / math.sqrt(2_000)
    assert float(standardised.var()) == pytest.approx(1.0, abs=4 * math.sqrt(2 / 2_000))


def test_a_run_that_ignores_its_canaries_is_estimated_at_nothing() -> None:
    canaries = Canaries(SECRET, count=400, dimension=4_096)
    release = np.random.default_rng(5).standard_normal(4_096)
    found = estimate_from_final_iterate(
        cosines(canaries.directions(), release), canaries.coins(), dimension=4_096, delta=DELTA
    )
    assert abs(found.mean) < 3 * found.mean_standard_error
    assert found.epsilon <= 3 * found.standard_error


def test_too_many_canaries_for_the_dimension_lower_the_mean_by_the_stated_factor() -> None:
    canaries = Canaries(SECRET, count=1_000, dimension=2_048)
    coins = canaries.coins()
    taking_part = np.where(coins, 0, -1)
    releases = noised_rounds(canaries, taking_part=taking_part, rounds=1, std=0.5, seed=7)
    found = estimate_from_final_iterate(
        cosines(canaries.directions(), releases[0]), coins, dimension=2_048, delta=DELTA
    )
    inside = int(coins.sum())
    factor = 1 / math.sqrt(1 + inside / (0.25 * 2_048))
    assert found.mean == pytest.approx(2.0 * factor, abs=4 * found.mean_standard_error)
    assert found.mean < 2.0 - 4 * found.mean_standard_error


def test_all_iterates_see_more_of_a_canary_that_takes_part_once_than_the_final_iterate() -> None:
    """Eight rounds, each canary in one: mu = 4 against who sees every round, 4 / sqrt(8) afterwards."""
    canaries = Canaries(SECRET, count=300, dimension=16_384)
    coins = canaries.coins()
    taking_part = np.where(coins, np.arange(300) % 8, -1)
    releases = noised_rounds(canaries, taking_part=taking_part, rounds=8, std=0.25, seed=9)
    by_round = [cosines(canaries.directions(), release) for release in releases]
    every = estimate_from_all_iterates(largest_over_rounds(by_round), coins, delta=DELTA)
    final = estimate_from_final_iterate(
        cosines(canaries.directions(), releases.sum(axis=0)), coins, dimension=16_384, delta=DELTA
    )
    assert every.statistic is Statistic.ALL_ITERATES
    assert final.statistic is Statistic.FINAL_ITERATE
    assert final.epsilon + 3 * final.standard_error < every.epsilon
    assert every.epsilon <= gaussian_epsilon(4.0, delta=DELTA) + 3 * every.standard_error
    expected = gaussian_epsilon(4.0 / math.sqrt(8), delta=DELTA)
    assert final.epsilon == pytest.approx(expected, abs=3 * final.standard_error)


def test_an_estimate_follows_from_its_mean_by_the_closed_form() -> None:
    epsilon, error = epsilon_of_estimate(1.0, 0.05, delta=1e-5)
    assert epsilon == pytest.approx(4.377178095681225, rel=1e-9)
    assert error == pytest.approx(gaussian_epsilon(1.05, delta=1e-5) - epsilon, rel=1e-9)
    assert epsilon_of_estimate(-0.3, 0.05, delta=1e-5)[0] == 0.0
    with pytest.raises(ValueError, match="standard error"):
        epsilon_of_estimate(1.0, math.nan, delta=1e-5)


def test_the_standard_error_is_the_spread_over_repeated_runs() -> None:
    generator, coins = np.random.default_rng(11), np.arange(200) < 100
    scores = generator.normal(loc=np.where(coins, 1.5, 0.0), size=(400, 200)) / 100
    found = [estimate_from_final_iterate(row, coins, dimension=10_000, delta=DELTA) for row in scores]
    pooled = [estimate_from_all_iterates(row, coins, delta=DELTA) for row in scores]
    for estimates in (found, pooled):
        spread = float(np.std([one.mean for one in estimates]))
        assert spread == pytest.approx(np.mean([one.mean_standard_error for one in estimates]), rel=0.15)


def test_what_is_no_cosine_or_has_no_one_to_compare_is_refused() -> None:
    coins = np.array([True, True, False, False])
    with pytest.raises(ValueError, match="cosine"):
        estimate_from_final_iterate([0.1, math.nan, 0.0, 0.0], coins, dimension=9, delta=DELTA)
    with pytest.raises(ValueError, match="cosine"):
        estimate_from_final_iterate([0.1, 1.5, 0.0, 0.0], coins, dimension=9, delta=DELTA)
    with pytest.raises(ValueError, match="true or false"):
        estimate_from_final_iterate([0.1, 0.2], coins, dimension=9, delta=DELTA)
    with pytest.raises(ValueError, match="in"):
        estimate_from_final_iterate([0.1] * 4, ~(coins | True), dimension=9, delta=DELTA)
    with pytest.raises(ValueError, match="dimension"):
        estimate_from_final_iterate([0.1] * 4, coins, dimension=1, delta=DELTA)
    with pytest.raises(ValueError, match="out"):
        estimate_from_all_iterates([0.1] * 4, coins | True, delta=DELTA)
    with pytest.raises(ValueError, match="the same"):
        estimate_from_all_iterates([0.1] * 4, coins, delta=DELTA)
    with pytest.raises(ValueError, match="one row a round"):
        largest_over_rounds([0.1, 0.2])


@pytest.mark.parametrize("release", [[0.0, 0.0], [math.nan, 1.0], [[1.0, 2.0]]])
def test_a_release_that_has_no_direction_is_refused(release: list[float]) -> None:
    with pytest.raises(ValueError, match="release"):
        cosines([[1.0, 0.0]], release)


def test_a_direction_of_another_length_is_refused() -> None:
    with pytest.raises(ValueError, match="different lengths"):
        cosines([[1.0, 0.0, 0.0]], [1.0, 2.0])
