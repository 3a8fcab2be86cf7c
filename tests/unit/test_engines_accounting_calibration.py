"""Of noise, steps and epsilon the one that is left open; given all three, they are verified.

Reference values: computed with dp-accounting 0.6.0, 2026-11-25.
"""

import math

import pytest

from engines.privacy.accounting import (
    CappedPoisson,
    GaussianRun,
    ImpossiblePlan,
    Relation,
    affordable_steps,
    calibrate_noise_multiplier,
    complete_plan,
    epsilon_pld,
)

CLIENTS = CappedPoisson(population=202, cap=82)


def run(
    noise_multiplier: float,
    sampling_rate: float,
    steps: int,
    relation: Relation = Relation.ZERO_OUT,
    capped: CappedPoisson | None = None,
) -> GaussianRun:
    return GaussianRun(
        noise_multiplier=noise_multiplier,
        sampling_rate=sampling_rate,
        steps=steps,
        relation=relation,
        capped=capped,
    )


@pytest.mark.parametrize(("target", "stored"), [(8.0, 0.9345), (3.0, 1.678)])
def test_the_demos_noise_is_found_and_its_recomputed_epsilon_is_at_most_the_target(
    target: float, stored: float
) -> None:
    found = calibrate_noise_multiplier(
        epsilon=target, delta=1e-5, sampling_rate=0.1231, steps=64, relation=Relation.ZERO_OUT
    )
    assert found == pytest.approx(stored, rel=1e-3)
    assert round(found, 4) == found
    assert epsilon_pld([run(found, 0.1231, 64)], delta=1e-5) <= target
    assert epsilon_pld([run(round(found - 0.0001, 4), 0.1231, 64)], delta=1e-5) > target


def test_client_level_noise_is_found_too() -> None:
    found = calibrate_noise_multiplier(
        epsilon=8.0, delta=1e-5, sampling_rate=0.25, steps=30, relation=Relation.ADD_REMOVE
    )
    assert found == 1.1292


def test_small_targets_are_calibrated_on_the_fine_grid() -> None:
    found = calibrate_noise_multiplier(
        epsilon=0.1, delta=1e-5, sampling_rate=0.01, steps=10, relation=Relation.ZERO_OUT
    )
    assert epsilon_pld([run(found, 0.01, 10)], delta=1e-5) <= 0.1
    assert epsilon_pld([run(round(found - 0.0001, 4), 0.01, 10)], delta=1e-5) > 0.1


def test_a_target_that_no_noise_reaches_is_an_impossible_plan() -> None:
    with pytest.raises(ImpossiblePlan, match="fewer steps"):
        calibrate_noise_multiplier(
            epsilon=0.01, delta=1e-10, sampling_rate=1.0, steps=1_000_000, relation=Relation.ZERO_OUT
        )


@pytest.mark.parametrize("epsilon", [0.0, -1.0, 201.0, math.nan, math.inf])
def test_a_target_that_makes_no_sense_is_refused(epsilon: float) -> None:
    with pytest.raises(ValueError, match="epsilon"):
        calibrate_noise_multiplier(
            epsilon=epsilon, delta=1e-5, sampling_rate=0.1, steps=10, relation=Relation.ZERO_OUT
        )


def test_the_clients_demo_keeps_its_noise_with_the_cap_of_its_cohort() -> None:
    found = calibrate_noise_multiplier(
        epsilon=8.0, delta=1e-5, sampling_rate=0.25, steps=30, relation=Relation.ZERO_OUT, capped=CLIENTS
    )
    assert found == 1.1292
    assert 7.99 < epsilon_pld([run(found, 0.25, 30, capped=CLIENTS)], delta=1e-5) <= 8.0


@pytest.mark.parametrize(
    ("noise_multiplier", "rate", "epsilon", "steps"), [(0.9345, 0.1231, 8.0, 64), (1.1292, 0.25, 8.0, 30)]
)
def test_the_steps_that_an_epsilon_affords_are_those_of_the_calibrated_plan(
    noise_multiplier: float, rate: float, epsilon: float, steps: int
) -> None:
    found = affordable_steps(
        epsilon=epsilon,
        delta=1e-5,
        noise_multiplier=noise_multiplier,
        sampling_rate=rate,
        relation=Relation.ZERO_OUT,
    )
    assert found == steps
    assert epsilon_pld([run(noise_multiplier, rate, steps + 1)], delta=1e-5) > epsilon


@pytest.mark.parametrize("relation", Relation)
def test_one_step_more_than_is_affordable_is_over_for_every_relation(relation: Relation) -> None:
    found = affordable_steps(
        epsilon=3.0, delta=1e-6, noise_multiplier=4.0, sampling_rate=1.0, relation=relation
    )
    assert found == (1 if relation is Relation.REPLACE_ONE else 6)
    assert epsilon_pld([run(4.0, 1.0, found, relation)], delta=1e-6) <= 3.0
    assert epsilon_pld([run(4.0, 1.0, found + 1, relation)], delta=1e-6) > 3.0


def test_a_cut_and_replace_one_are_searched_too_though_rdp_has_no_price_for_them() -> None:
    cut = CappedPoisson(population=1000, cap=148)
    found = affordable_steps(
        epsilon=2.0,
        delta=1e-5,
        noise_multiplier=4.0,
        sampling_rate=0.1,
        relation=Relation.REPLACE_ONE,
        capped=cut,
    )
    for steps, holds in ((found, True), (found + 1, False)):
        price = epsilon_pld([run(4.0, 0.1, steps, Relation.REPLACE_ONE, cut)], delta=1e-5)
        assert (price <= 2.0) is holds


def test_an_epsilon_that_not_one_step_keeps_affords_none() -> None:
    plan = {"delta": 1e-5, "noise_multiplier": 1.0, "sampling_rate": 0.01, "relation": Relation.ZERO_OUT}
    assert affordable_steps(epsilon=0.1, **plan) == 0  # type: ignore[arg-type]  # a dictionary's values
    with pytest.raises(ImpossiblePlan, match="one step"):
        complete_plan(epsilon=0.1, steps=None, **plan)  # type: ignore[arg-type]  # a dictionary's values


def test_more_steps_than_can_be_priced_are_not_promised() -> None:
    assert (
        affordable_steps(
            epsilon=8.0, delta=1e-5, noise_multiplier=1e6, sampling_rate=1.0, relation=Relation.ZERO_OUT
        )
        == 10_000_000
    )


@pytest.mark.parametrize("left_open", ["noise_multiplier", "steps", "epsilon"])
def test_any_one_of_noise_steps_and_epsilon_is_computed_from_the_others(left_open: str) -> None:
    whole = {"noise_multiplier": 0.9345, "steps": 64, "epsilon": 8.0}
    plan = complete_plan(
        **(whole | {left_open: None}),  # type: ignore[arg-type]  # a dictionary's values
        delta=1e-5,
        sampling_rate=0.1231,
        relation=Relation.ZERO_OUT,
    )
    assert (plan.run.noise_multiplier, plan.run.steps) == (0.9345, 64)
    assert plan.epsilon == epsilon_pld([plan.run], delta=1e-5) == pytest.approx(7.9990, abs=5e-5)


def test_a_plan_that_names_all_three_is_verified() -> None:
    shared = {"delta": 1e-5, "sampling_rate": 0.1231, "relation": Relation.ZERO_OUT}
    kept = complete_plan(noise_multiplier=0.9345, steps=64, epsilon=8.0, **shared)  # type: ignore[arg-type]  # a dictionary's values
    assert kept.epsilon <= 8.0
    with pytest.raises(ImpossiblePlan, match=r"8\.0071"):
        complete_plan(noise_multiplier=0.934, steps=64, epsilon=8.0, **shared)  # type: ignore[arg-type]  # as above


def test_a_plan_that_leaves_two_open_is_refused() -> None:
    with pytest.raises(ValueError, match="at most one"):
        complete_plan(
            noise_multiplier=None,
            steps=None,
            epsilon=8.0,
            delta=1e-5,
            sampling_rate=0.1,
            relation=Relation.ZERO_OUT,
        )
