"""A person in several silos, or with several records in one."""

import math

import pytest

from engines.privacy.accounting import AccountingFailed, GaussianRun, Relation, epsilon_pld
from engines.privacy.gaussian_curve import gaussian_epsilon
from engines.privacy.group import epsilon_in_silos, epsilon_of_group, group_privacy


def run(z: float, rate: float, steps: int) -> GaussianRun:
    return GaussianRun(noise_multiplier=z, sampling_rate=rate, steps=steps, relation=Relation.ZERO_OUT)


def test_a_person_in_k_silos_costs_k_times_the_steps_and_less_than_k_times_epsilon() -> None:
    one = epsilon_in_silos([run(2.0, 0.1, 50)], silos=1, delta=1e-5)
    three = epsilon_in_silos([run(2.0, 0.1, 50)], silos=3, delta=1e-5)
    assert one == epsilon_pld([run(2.0, 0.1, 50)], delta=1e-5)
    assert three == epsilon_pld([run(2.0, 0.1, 150)], delta=1e-5)
    assert one < three < 3 * one


def test_records_of_one_person_multiply_an_unsampled_sums_sensitivity() -> None:
    exact = gaussian_epsilon(3.0 * 2.0 / 8.0, delta=1e-5)
    assert exact <= epsilon_of_group([run(8.0, 1.0, 4)], records=3, delta=1e-5) <= exact + 1e-8


def test_the_groups_guarantee_is_the_lemma() -> None:
    assert group_privacy(epsilon=1.0, delta=1e-6, records=1) == (1.0, 1e-6)
    epsilon, delta = group_privacy(epsilon=0.5, delta=1e-6, records=3)
    assert epsilon == 1.5
    assert delta == pytest.approx(1e-6 * (1 + math.exp(0.5) + math.exp(1.0)), rel=1e-12)
    assert group_privacy(epsilon=10.0, delta=1e-5, records=100) == (1000.0, 1.0)


def test_a_sampled_group_is_priced_by_the_lemma_at_a_smaller_delta() -> None:
    schedule = [run(4.0, 0.1, 20)]
    found = epsilon_of_group(schedule, records=2, delta=1e-5)
    single = found / 2
    at = 1e-5 / (1 + math.exp(single))
    assert single == pytest.approx(epsilon_pld(schedule, delta=at), abs=2e-3)
    assert epsilon_pld(schedule, delta=at) <= single
    assert epsilon_of_group(schedule, records=1, delta=1e-5) == epsilon_pld(schedule, delta=1e-5)


def test_a_group_too_large_for_any_claim_is_refused() -> None:
    with pytest.raises(AccountingFailed):
        epsilon_of_group([run(1.0, 0.1, 100)], records=1000, delta=1e-5)


@pytest.mark.parametrize("number", [0, -1])
def test_groups_that_make_no_sense_are_refused(number: int) -> None:
    with pytest.raises(ValueError, match="silo"):
        epsilon_in_silos([run(1.0, 0.1, 1)], silos=number, delta=1e-5)
    with pytest.raises(ValueError, match="records"):
        epsilon_of_group([run(1.0, 0.1, 1)], records=number, delta=1e-5)
    with pytest.raises(ValueError, match="records"):
        group_privacy(epsilon=1.0, delta=1e-6, records=number)


@pytest.mark.parametrize(("epsilon", "delta"), [(0.0, 0.1), (math.nan, 0.1), (1.0, -0.1), (1.0, 1.5)])
def test_a_claim_that_makes_no_sense_has_no_group(epsilon: float, delta: float) -> None:
    with pytest.raises(ValueError, match="epsilon"):
        group_privacy(epsilon=epsilon, delta=delta, records=2)
