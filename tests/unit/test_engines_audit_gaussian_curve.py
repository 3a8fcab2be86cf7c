"""The closed form of one Gaussian: 50-digit reference values, inverses and edges."""

import math

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from engines.privacy.gaussian_curve import gaussian_delta, gaussian_epsilon, gaussian_mean


@pytest.mark.parametrize(
    ("mean", "delta", "expected"),
    [  # computed with mpmath at 50 digits
        (1.0, 1e-5, 4.377178095681224627650116),
        (math.sqrt(10) / 4, 1e-6, 3.747217991426812703787449),
        (math.sqrt(50) / 5, 1e-5, 6.572970067030331503163979),
    ],
)
def test_epsilon_is_the_closed_form(mean: float, delta: float, expected: float) -> None:
    assert gaussian_epsilon(mean, delta=delta) == pytest.approx(expected, rel=1e-9)


@given(mean=st.floats(1e-3, 50.0), delta=st.floats(1e-10, 0.1))
@settings(max_examples=100, deadline=None)
def test_epsilon_mean_and_delta_invert_each_other(mean: float, delta: float) -> None:
    epsilon = gaussian_epsilon(mean, delta=delta)
    if epsilon > 0.0:
        assert gaussian_delta(mean, epsilon=epsilon) == pytest.approx(delta, rel=1e-6)
        assert gaussian_mean(epsilon=epsilon, delta=delta) == pytest.approx(mean, rel=1e-6)
    else:
        assert gaussian_delta(mean, epsilon=0.0) <= delta


def test_no_difference_costs_nothing() -> None:
    assert gaussian_delta(0.0, epsilon=0.0) == 0.0
    assert gaussian_epsilon(0.0, delta=1e-6) == 0.0


@pytest.mark.parametrize("mean", [-1.0, math.nan, math.inf])
def test_a_mean_that_is_no_distance_is_refused(mean: float) -> None:
    with pytest.raises(ValueError, match="mean difference"):
        gaussian_epsilon(mean, delta=1e-6)


@pytest.mark.parametrize("delta", [0.0, 1.0, math.nan])
def test_a_delta_outside_zero_to_one_is_refused(delta: float) -> None:
    with pytest.raises(ValueError, match="delta"):
        gaussian_epsilon(1.0, delta=delta)
    with pytest.raises(ValueError, match="delta"):
        gaussian_mean(epsilon=1.0, delta=delta)


@pytest.mark.parametrize("epsilon", [-0.1, math.nan, math.inf])
def test_an_epsilon_that_is_no_number_of_at_least_zero_is_refused(epsilon: float) -> None:
    with pytest.raises(ValueError, match="epsilon"):
        gaussian_delta(1.0, epsilon=epsilon)
    with pytest.raises(ValueError, match="epsilon"):
        gaussian_mean(epsilon=epsilon, delta=1e-6)
