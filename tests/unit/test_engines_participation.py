"""Mechanisms that are one Gaussian: prices against closed forms, sensitivities against brute force."""

import itertools
import math

import numpy as np
import pytest
from numpy.typing import NDArray

from engines.privacy.accounting import Relation, calibrate_noise_multiplier, epsilon_pld
from engines.privacy.gaussian_curve import gaussian_epsilon
from engines.privacy.participation import (
    matrix_mechanism,
    repeated_participation,
    strategy_sensitivity,
    tree_aggregation,
)


def by_patterns(strategy: NDArray[np.float64], participations: int, separation: int) -> float:
    """Try every pattern and every choice of signs: the sensitivity to contributions of one dimension."""
    rounds = strategy.shape[1]
    worst = 0.0
    for count in range(1, participations + 1):
        for pattern in itertools.combinations(range(rounds), count):
            if any(after - before < separation for before, after in itertools.pairwise(pattern)):
                continue
            for signs in itertools.product((-1.0, 1.0), repeat=count):
                moved = strategy[:, list(pattern)] @ np.array(signs)
                worst = max(worst, float(np.linalg.norm(moved)))
    return worst


@pytest.mark.parametrize(
    ("z", "steps", "height", "epsilon"),
    [(2.0, 64, 7, 6.740672956), (4.0, 100, 7, 3.070639997), (7.0, 2048, 12, 2.228702086)],
)
def test_a_tree_is_one_gaussian_of_its_height(z: float, steps: int, height: int, epsilon: float) -> None:
    tree = tree_aggregation(noise_multiplier=z, steps=steps, relation=Relation.ZERO_OUT)
    assert tree.steps == height
    assert epsilon_pld([tree], delta=1e-6) == pytest.approx(epsilon, abs=2e-9)


@pytest.mark.parametrize("steps", [1, 2, 3, 4, 7, 8, 1023, 1024])
def test_the_height_counts_the_nodes_that_one_leaf_enters(steps: int) -> None:
    tree = tree_aggregation(noise_multiplier=1.0, steps=steps, relation=Relation.ZERO_OUT)
    assert tree.steps == math.ceil(math.log2(steps + 1))


def test_participations_without_amplification_are_one_gaussian() -> None:
    repeated = repeated_participation(noise_multiplier=1.129, participations=30, relation=Relation.ZERO_OUT)
    epsilon = epsilon_pld([repeated], delta=1e-5)
    assert epsilon == pytest.approx(31.7, abs=0.06)
    kept_back = 1e-5 * (1 - 2.0**-20)  # for the noise sampler, at an epsilon this large
    assert epsilon == pytest.approx(gaussian_epsilon(math.sqrt(30) / 1.129, delta=kept_back), abs=1e-9)


def test_replace_one_doubles_the_mean_of_every_mechanism_once() -> None:
    exact = gaussian_epsilon(2.0 * math.sqrt(3.0) / 8.0, delta=1e-5)
    for schedule in (
        repeated_participation(noise_multiplier=8.0, participations=3, relation=Relation.REPLACE_ONE),
        tree_aggregation(noise_multiplier=8.0, steps=4, relation=Relation.REPLACE_ONE),
        matrix_mechanism(
            np.eye(3), noise_multiplier=8.0, participations=3, separation=1, relation=Relation.REPLACE_ONE
        ),
    ):
        assert exact <= epsilon_pld([schedule], delta=1e-5) <= exact + 1e-8


@pytest.mark.parametrize(("participations", "separation"), [(1, 1), (2, 1), (2, 3), (3, 2), (6, 1), (4, 5)])
def test_the_sensitivity_is_never_below_any_pattern(participations: int, separation: int) -> None:
    draws = np.random.default_rng(7)
    for strategy in (draws.standard_normal((6, 6)), np.tril(draws.standard_normal((6, 6))), np.eye(6)):
        bound = strategy_sensitivity(strategy, participations=participations, separation=separation)
        assert bound >= by_patterns(strategy, participations, separation)


def test_a_matrix_without_signs_meets_the_bound_where_it_is_tight() -> None:
    single = np.abs(np.random.default_rng(3).standard_normal((7, 7)))
    widest = float(np.linalg.norm(single, axis=0).max())
    assert strategy_sensitivity(single, participations=1, separation=1) == pytest.approx(widest, rel=1e-12)
    banded = np.tril(np.triu(np.ones((8, 8)), -1))
    assert strategy_sensitivity(banded, participations=3, separation=2) == pytest.approx(
        by_patterns(banded, 3, 2), rel=1e-12
    )


def test_prefix_sums_of_a_member_in_every_round_add_up() -> None:
    """C of ones: a member in round 1 of n alone moves n entries by 1, and in all rounds by 1, 2, ... n."""
    prefix = np.tril(np.ones((5, 5)))
    assert strategy_sensitivity(prefix, participations=1, separation=1) == pytest.approx(math.sqrt(5))
    assert strategy_sensitivity(prefix, participations=5, separation=1) == pytest.approx(math.sqrt(55))
    assert strategy_sensitivity(prefix, participations=9, separation=5) == pytest.approx(math.sqrt(5))


def test_calibration_of_one_gaussian_never_exceeds_its_target() -> None:
    z = calibrate_noise_multiplier(
        epsilon=8.0, delta=1e-5, sampling_rate=1.0, steps=30, relation=Relation.ZERO_OUT
    )
    assert gaussian_epsilon(math.sqrt(30) / z, delta=1e-5) <= 8.0
    assert gaussian_epsilon(math.sqrt(30) / (z - 1e-4), delta=1e-5) > 8.0


def test_add_remove_has_no_price_where_places_are_fixed() -> None:
    relation = Relation.ADD_REMOVE
    with pytest.raises(ValueError, match="add/remove"):
        repeated_participation(noise_multiplier=1.0, participations=1, relation=relation)
    with pytest.raises(ValueError, match="add/remove"):
        tree_aggregation(noise_multiplier=1.0, steps=1, relation=relation)
    with pytest.raises(ValueError, match="add/remove"):
        matrix_mechanism(np.eye(2), noise_multiplier=1.0, participations=1, separation=1, relation=relation)


@pytest.mark.parametrize(
    "strategy",
    [
        np.zeros((2, 2)),
        np.full((2, 2), np.nan),
        np.ones(3),
        np.ones((2, 2), dtype=np.float32),
        np.ones((2, 0)),
    ],
)
def test_a_strategy_that_makes_no_sense_is_refused(strategy: NDArray[np.float64]) -> None:
    with pytest.raises(ValueError, match="strategy"):
        strategy_sensitivity(strategy, participations=1, separation=1)


@pytest.mark.parametrize(("participations", "separation"), [(0, 1), (1, 0), (-1, 1)])
def test_a_pattern_that_makes_no_sense_is_refused(participations: int, separation: int) -> None:
    with pytest.raises(ValueError, match="participations"):
        strategy_sensitivity(np.eye(2), participations=participations, separation=separation)
