"""Cohorts that are cut at a cap, and the one way to describe a schedule.

Reference values: dp-accounting 0.6.0 (TruncatedSubsampledGaussianDpEvent), measured 2026-11-25.
"""

import itertools
import math
from fractions import Fraction

import dp_accounting
import pytest
from dp_accounting.pld import PLDAccountant
from dp_accounting.rdp import RdpAccountant
from hypothesis import given
from hypothesis import strategies as st
from scipy import stats

from engines.privacy.accounting import (
    AccountingFailed,
    CappedPoisson,
    GaussianRun,
    Relation,
    epsilon_by_round,
    epsilon_pld,
    epsilon_rdp,
    gaussian_run,
    rdp_at_order,
    require_cap,
    smallest_cap,
)
from engines.privacy.loss_library import loss_of_step
from engines.privacy.pld import price as price_of

COARSE = 1e-3


def cohort(
    z: float, rate: float, steps: int, *, population: int, cap: int, relation: Relation = Relation.ZERO_OUT
) -> GaussianRun:
    return GaussianRun(
        noise_multiplier=z,
        sampling_rate=rate,
        steps=steps,
        relation=relation,
        capped=CappedPoisson(population=population, cap=cap),
    )


def _times_100(event: dp_accounting.DpEvent) -> dp_accounting.DpEvent:
    return dp_accounting.SelfComposedDpEvent(event, 100)


def _without_replacement(z: float) -> dp_accounting.DpEvent:
    return dp_accounting.SampledWithoutReplacementDpEvent(1000, 100, dp_accounting.GaussianDpEvent(z))


def coarse_price(*runs: GaussianRun) -> float:
    """The same price on a grid ten times as wide, ten times as fast."""
    return price_of(runs, delta=1e-5, interval=COARSE)


@pytest.mark.parametrize(
    ("cap", "relation", "epsilon"),
    [
        (150, Relation.ADD_REMOVE, 7.046919),
        (130, Relation.ADD_REMOVE, 7.797312),
        (150, Relation.REPLACE_ONE, 10.516495),
        (130, Relation.REPLACE_ONE, 10.834389),
        (110, Relation.ZERO_OUT, 16.672569),
        (110, Relation.REPLACE_ONE, 18.458043),
    ],
)
def test_a_cut_costs_what_the_library_says_under_every_relation(
    cap: int, relation: Relation, epsilon: float
) -> None:
    schedule = cohort(1.0, 0.1, 100, population=1000, cap=cap, relation=relation)
    assert epsilon_pld([schedule], delta=1e-5) == pytest.approx(epsilon, rel=1e-6)


def test_the_librarys_own_event_has_the_same_price() -> None:
    event = dp_accounting.TruncatedSubsampledGaussianDpEvent(202, 0.25, 82, 1.1292)
    relation = dp_accounting.NeighboringRelation.REPLACE_SPECIAL
    accountant = PLDAccountant(relation, value_discretization_interval=COARSE)
    accountant.compose(event, 30)
    ours = coarse_price(cohort(1.1292, 0.25, 30, population=202, cap=82))
    assert accountant.get_epsilon(1e-5) <= ours <= accountant.get_epsilon(1e-5) + 1e-6


def test_a_pool_that_outgrows_its_cap_would_cost_more_than_twice_as_much() -> None:
    def price(population: int) -> float:
        return coarse_price(cohort(1.1292, 0.25, 30, population=population, cap=82))

    assert price(202) == pytest.approx(8.0, abs=0.005)
    assert price(300) == pytest.approx(17.1, abs=0.05)


def test_a_smaller_pool_than_the_declared_one_is_never_dearer() -> None:
    """One step's delta at 41 epsilons: what was priced at the largest pool covers every smaller one."""
    grid = [0.2 * number for number in range(41)]
    deltas = [
        loss_of_step(1.1292, 0.25, Relation.ZERO_OUT, 1e-3, (population, 82)).get_delta_for_epsilon(grid)
        for population in (60, 83, 100, 140, 180, 190, 200, 201, 202)
    ]
    for smaller, larger in itertools.pairwise(deltas):
        assert all(low <= high + 1e-14 for low, high in zip(smaller, larger, strict=True))


def test_a_cap_that_no_cohort_exceeds_costs_nothing() -> None:
    plain = GaussianRun(noise_multiplier=1.0, sampling_rate=0.1, steps=100, relation=Relation.ZERO_OUT)
    whole = cohort(1.0, 0.1, 100, population=50, cap=50)
    assert epsilon_pld([whole], delta=1e-5) == epsilon_pld([plain], delta=1e-5)
    assert epsilon_rdp([whole], delta=1e-5) == epsilon_rdp([plain], delta=1e-5)


def test_a_cut_of_everybody_is_not_priced_as_everybody() -> None:
    """With rate 1 the sample is a fixed-size one: members displace each other in every step."""
    everybody = cohort(1.0, 1.0, 10, population=20, cap=20)
    half = cohort(1.0, 1.0, 10, population=20, cap=10)
    assert coarse_price(half) > 1.5 * coarse_price(everybody)


def test_there_is_no_renyi_price_for_a_cut() -> None:
    schedule = [cohort(1.1292, 0.25, 30, population=202, cap=82)]
    with pytest.raises(AccountingFailed, match="cut"):
        epsilon_rdp(schedule, delta=1e-5)
    with pytest.raises(AccountingFailed, match="cut"):
        rdp_at_order(schedule, order=4)


def test_rounds_of_cut_cohorts_are_priced_up_to_the_whole_run() -> None:
    whole = cohort(1.1292, 0.25, 30, population=202, cap=82)
    prices = epsilon_by_round(whole, rounds=2, delta=1e-5)
    assert 0.0 < prices[0] < prices[1]
    assert prices[-1] == epsilon_pld([whole], delta=1e-5)


def test_cut_and_uncut_rounds_compose() -> None:
    cut = cohort(1.1292, 0.25, 15, population=202, cap=82)
    uncut = GaussianRun(noise_multiplier=1.1292, sampling_rate=0.25, steps=15, relation=Relation.ZERO_OUT)
    assert coarse_price(cut, uncut) == pytest.approx(7.9995, abs=2e-3)


@pytest.mark.parametrize(
    ("population", "rate", "cap"),
    [(202, 0.25, 82), (1000, 0.1, 148), (3, 0.75, 3), (1, 1.0, 1), (500, 1.0, 500), (100, 0.5, 75)],
)
def test_the_smallest_cap_is_five_deviations_over_the_mean(population: int, rate: float, cap: int) -> None:
    assert smallest_cap(population, rate) == cap
    require_cap(population, rate, cap)
    with pytest.raises(ValueError, match=f"between {cap} and {population}"):
        require_cap(population, rate, cap - 1)
    with pytest.raises(ValueError, match="cap"):
        require_cap(population, rate, population + 1)


@given(st.integers(1, 10**9), st.floats(1e-9, 1.0))
def test_the_cap_rule_is_exact_for_every_population(population: int, rate: float) -> None:
    cap = smallest_cap(population, rate)
    mean = population * Fraction(rate)
    variance = mean * (1 - Fraction(rate))

    def enough(value: int) -> bool:
        return value >= mean and (value - mean) ** 2 >= 25 * variance

    assert 1 <= cap <= population
    assert enough(cap) or cap == population
    assert cap == 1 or not enough(cap - 1)


def test_the_cap_rule_keeps_cuts_rare() -> None:
    assert stats.binom.sf(82, 202, 0.25) < 1e-6
    assert stats.binom.sf(148, 1000, 0.1) < 1e-6


@pytest.mark.parametrize(("population", "cap"), [(0, 1), (10, 0), (10, 11), (-1, -1), (10**9 + 1, 5)])
def test_a_cap_that_makes_no_sense_is_refused(population: int, cap: int) -> None:
    with pytest.raises(ValueError, match="population"):
        CappedPoisson(population=population, cap=cap)


@pytest.mark.parametrize(("population", "rate"), [(0, 0.5), (10, 0.0), (10, 1.1), (10, math.nan)])
def test_a_cap_rule_of_nothing_is_refused(population: int, rate: float) -> None:
    with pytest.raises(ValueError, match=r"population|rate"):
        smallest_cap(population, rate)


@given(st.floats(1e-2, 1e6), st.floats(1e-2, 1e3))
def test_a_schedule_never_claims_more_noise_than_the_mechanism_adds(std: float, clip: float) -> None:
    if not 1e-3 <= std / clip <= 1e6:
        return
    described = gaussian_run(
        noise_std=std, clip_norm=clip, relation=Relation.ZERO_OUT, sampling_rate=0.5, steps=1
    )
    assert Fraction(described.noise_multiplier) * Fraction(clip) <= Fraction(std)
    assert described.noise_multiplier == pytest.approx(std / clip, rel=1e-15)


ONE = dp_accounting.GaussianDpEvent(1.0)
TRAP: list[tuple[dp_accounting.DpEvent, str, float | None, float | None]] = [
    # event, relation, the library's RDP epsilon and its PLD epsilon at delta 1e-5; None where it has none
    (ONE, "ADD_OR_REMOVE_ONE", 4.728507, 4.377178),
    (ONE, "REPLACE_SPECIAL", 4.728507, 4.377178),
    (ONE, "REPLACE_ONE", 4.728507, 9.997256),
    (dp_accounting.GaussianDpEvent(2.0), "REPLACE_ONE", 2.165716, 4.377178),
    (_times_100(dp_accounting.PoissonSampledDpEvent(0.1, ONE)), "ADD_OR_REMOVE_ONE", 7.903850, 7.046603),
    (_times_100(dp_accounting.PoissonSampledDpEvent(0.1, ONE)), "REPLACE_ONE", None, 10.516380),
    (_times_100(_without_replacement(1.0)), "REPLACE_ONE", 14.053750, None),
    (_times_100(_without_replacement(0.5)), "REPLACE_ONE", 83.936917, None),
    (dp_accounting.SingleEpochTreeAggregationDpEvent(2.0, 64), "REPLACE_SPECIAL", 6.542559, None),
]


@pytest.mark.parametrize(("event", "relation", "by_rdp", "by_pld"), TRAP)
def test_the_library_itself_doubles_in_one_accountant_and_not_in_the_other(
    event: dp_accounting.DpEvent, relation: str, by_rdp: float | None, by_pld: float | None
) -> None:
    """The trap that the two accountants here stand in front of."""
    neighbours = dp_accounting.NeighboringRelation[relation]
    found: list[float | None] = []
    for accountant in (RdpAccountant(neighboring_relation=neighbours), PLDAccountant(neighbours)):
        try:
            found.append(accountant.compose(event).get_epsilon(1e-5))
        except dp_accounting.UnsupportedEventError:
            found.append(None)
    assert found == [None if one is None else pytest.approx(one, abs=2e-6) for one in (by_rdp, by_pld)]


def test_the_relation_is_applied_by_the_accountants_and_not_by_the_description() -> None:
    for relation in Relation:
        described = gaussian_run(noise_std=0.5, clip_norm=0.5, relation=relation, sampling_rate=1.0, steps=1)
        assert described == GaussianRun(noise_multiplier=1.0, sampling_rate=1.0, steps=1, relation=relation)


@pytest.mark.parametrize(
    ("std", "clip"), [(0.0, 1.0), (1.0, 0.0), (-1.0, 1.0), (math.nan, 1.0), (1.0, math.inf)]
)
def test_noise_or_clips_that_make_no_sense_are_refused(std: float, clip: float) -> None:
    with pytest.raises(ValueError, match="above 0"):
        gaussian_run(noise_std=std, clip_norm=clip, relation=Relation.ZERO_OUT, sampling_rate=0.5, steps=1)
