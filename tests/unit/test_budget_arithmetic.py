"""The ledger's integers: what is charged is rounded up, what is granted is rounded down."""

import math
from decimal import Decimal

import pytest
from hypothesis import given
from hypothesis import strategies as st

from app.budget import arithmetic

epsilons = st.floats(min_value=0, max_value=1e6, allow_nan=False)
deltas = st.floats(min_value=0, max_value=0.999, allow_nan=False)


@pytest.mark.parametrize("value", [math.nan, math.inf, -math.inf, -1.0, -1e-300])
def test_an_amount_that_is_no_finite_positive_number_is_refused(value: float) -> None:
    with pytest.raises(arithmetic.AmountInvalid):
        arithmetic.cost(value)
    with pytest.raises(arithmetic.AmountInvalid):
        arithmetic.delta_cost(value)


def test_an_amount_beyond_the_ledger_is_refused() -> None:
    with pytest.raises(arithmetic.AmountInvalid):
        arithmetic.cost(1e10)
    with pytest.raises(arithmetic.AmountInvalid):
        arithmetic.delta_cost(1.0)


def test_a_written_decimal_is_taken_as_it_was_written() -> None:
    assert arithmetic.cost(0.1) == arithmetic.ceiling(0.1) == 100_000_000
    assert arithmetic.delta_cost(1e-5) == arithmetic.delta_ceiling(1e-5) == 10**13
    assert 50 * arithmetic.cost(0.1) == arithmetic.ceiling(5.0)


def test_the_smallest_cost_is_never_free() -> None:
    assert arithmetic.cost(5e-324) == 1
    assert arithmetic.ceiling(5e-324) == 0
    assert arithmetic.delta_cost(1e-30) == 1


@given(epsilons)
def test_a_cost_never_falls_below_its_value_and_a_ceiling_never_rises_above(value: float) -> None:
    exact = Decimal(repr(value)) * 10**9
    assert arithmetic.ceiling(value) <= exact <= arithmetic.cost(value)
    assert arithmetic.cost(value) - arithmetic.ceiling(value) <= 1


@given(deltas)
def test_a_delta_is_rounded_the_same_way(value: float) -> None:
    exact = Decimal(repr(value)) * 10**18
    assert arithmetic.delta_ceiling(value) <= exact <= arithmetic.delta_cost(value)


@given(st.floats(1.5, 512), st.floats(0.5, 50), st.floats(1e-12, 1e-2))
def test_a_renyi_ceiling_lies_just_below_the_formula_in_floats(
    order: float, epsilon: float, delta: float
) -> None:
    formula = epsilon - math.log1p(-1 / order) + math.log(delta * order) / (order - 1)
    if formula <= 1e-6:
        with pytest.raises(arithmetic.CeilingNotPositive):
            arithmetic.renyi_ceiling(epsilon - 1e-6 if epsilon > 1e-6 else 0, delta, order=order)
        return
    amount = arithmetic.renyi_ceiling(epsilon, delta, order=order)
    assert amount <= (formula + 1e-11 * max(1, abs(formula))) * 1e9 + 1
    assert amount >= (formula - 1e-11 * max(1, abs(formula))) * 1e9 - 2


def test_a_renyi_ceiling_translates_back_to_no_more_than_was_granted() -> None:
    # By hand: 8 + 0.1335314 (-log1p(-1/8)) - 1.3476410 (log(8e-5)/7) = 6.7858904.
    amount = arithmetic.renyi_ceiling(8.0, 1e-5, order=8.0)
    assert amount == pytest.approx(6.7858904e9, rel=1e-7)
    assert Decimal("7.99999999") < arithmetic.renyi_epsilon(amount, 1e-5, order=8.0) <= 8


def test_an_order_that_leaves_nothing_is_refused_by_name() -> None:
    with pytest.raises(arithmetic.CeilingNotPositive):
        arithmetic.renyi_ceiling(1.0, 1e-5, order=2.0)


@pytest.mark.parametrize("order", [1.001, 1.5, 8.0, 256.0])
def test_no_price_at_an_order_is_below_the_least_charge(order: float) -> None:
    bounds = pytest.importorskip("engines.privacy.bounds")
    least = -math.log1p(-bounds.SAMPLER_RESERVE) / (order - 1.0)  # what engines.privacy.renyi adds
    assert 0.95 * arithmetic.LEAST_RENYI_CHARGE / (order - 1.0) < least
    assert least < arithmetic.LEAST_RENYI_CHARGE / (order - 1.0)


@pytest.mark.parametrize("order", [1.0, 0.5, math.inf, math.nan])
def test_an_order_not_above_one_is_refused(order: float) -> None:
    with pytest.raises(arithmetic.AmountInvalid):
        arithmetic.renyi_ceiling(8.0, 1e-5, order=order)


def test_what_is_spent_is_shown_rounded_up_and_what_is_left_rounded_down() -> None:
    assert arithmetic.shown_spent(7_999_000_001) == 7.9991
    assert arithmetic.shown_left(7_999_000_001) == 7.999
    assert arithmetic.shown_spent(0) == 0.0
    assert arithmetic.shown_left(99_999) == 0.0


@given(st.integers(0, 10**12), st.lists(st.integers(0, 2 * 10**11), min_size=1, max_size=40))
def test_shares_of_a_schedule_sum_to_it_and_never_run_behind(total: int, steps: list[int]) -> None:
    cumulative = [sum(steps[: n + 1]) for n in range(len(steps))]
    parts = arithmetic.shares(total, cumulative)
    assert sum(parts) == total
    assert all(part >= 0 for part in parts)
    for n in range(len(parts)):
        assert sum(parts[: n + 1]) >= min(total, cumulative[n])
