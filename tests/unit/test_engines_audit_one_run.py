"""One-run audits: reference values, exact confidence under the worst mechanism, and honest choosing."""

import math

import numpy as np
import pytest
from scipy.stats import binom, norm

from engines.privacy.audit_one_run import (
    GuessCounts,
    GuessPlan,
    best_bounds,
    correct_guesses,
    epsilon_lower_bound,
    epsilon_lower_bound_if_gaussian,
    largest_reachable_bound,
    one_run_bound,
    p_value,
)
from engines.privacy.gaussian_curve import gaussian_epsilon

DELTA = 1e-5


@pytest.mark.parametrize(
    ("counts", "delta", "chance", "bound", "if_gaussian"),
    [  # canaries, guesses, right; computed with jax_privacy's auditing module and dp-accounting 0.6.0
        ((1000, 1000, 1000), 1e-5, 6.58862230687e-05, 5.782283, 12.334570),
        ((1000, 1000, 750), 1e-5, 0.0939862023961, 0.976367, 1.818896),
        ((1000, 100, 100), 1e-5, 0.000563308984096, 3.465376, 5.549028),
        ((1000, 100, 95), 1e-5, 0.000663914468353, 2.165176, 3.323300),
        ((100, 100, 100), 1e-5, 5.6330898432e-05, 3.490216, 8.216186),
        ((100, 100, 75), 0.0, 0.382721867255, 0.702214, None),
        ((5000, 500, 480), 1e-5, 0.00073046804522, 2.783021, 4.062678),
        ((1000, 100, 50), 1e-5, 0.99999974, 0.0, 0.0),
    ],
)
def test_the_published_methods_values_are_reproduced(
    counts: tuple[int, int, int], delta: float, chance: float, bound: float, if_gaussian: float | None
) -> None:
    canaries, guesses, correct = counts
    found = p_value(canaries=canaries, guesses=guesses, correct=correct, epsilon=1.0, delta=delta)
    assert found == pytest.approx(chance, rel=2e-9)
    lower = epsilon_lower_bound(canaries=canaries, guesses=guesses, correct=correct, delta=delta)
    assert lower == pytest.approx(bound, abs=1e-6)
    if if_gaussian is not None:
        lower = epsilon_lower_bound_if_gaussian(
            canaries=canaries, guesses=guesses, correct=correct, delta=delta
        )
        assert lower == pytest.approx(if_gaussian, abs=2e-6)


@pytest.mark.parametrize(("guesses", "correct", "epsilon", "delta"), [(12, 9, 0.4, 0.01), (7, 7, 2.0, 0.001)])
def test_the_p_value_is_its_formula_written_out(
    guesses: int, correct: int, epsilon: float, delta: float
) -> None:
    right = 1.0 / (1.0 + math.exp(-epsilon))

    def tail(least: int) -> float:
        return sum(
            math.comb(guesses, k) * right**k * (1 - right) ** (guesses - k)
            for k in range(max(least, 0), guesses + 1)
        )

    alpha = max((tail(correct - i) - tail(correct)) / i for i in range(1, 21))
    expected = tail(correct) + 2 * 20 * delta * alpha
    found = p_value(canaries=20, guesses=guesses, correct=correct, epsilon=epsilon, delta=delta)
    assert found == pytest.approx(min(1.0, expected), rel=1e-12)


@pytest.mark.parametrize("epsilon", [0.5, 1.0, 3.0])
def test_randomised_response_is_wrongly_refuted_at_most_once_in_twenty(epsilon: float) -> None:
    """The worst mechanism: every guess is right with the largest probability that epsilon allows."""
    right = 1.0 / (1.0 + math.exp(-epsilon))
    wrongly = sum(
        float(binom.pmf(correct, 100, right))
        for correct in range(101)
        if epsilon_lower_bound(canaries=100, guesses=100, correct=correct, delta=0.0) > epsilon
    )
    assert 0.01 < wrongly <= 0.05


@pytest.mark.parametrize("mean", [0.5, 1.0, 2.0])
def test_a_gaussian_is_wrongly_refuted_at_most_once_in_twenty(mean: float) -> None:
    """Independent canaries, each guessed by the sign of N(+-mu/2, 1)."""
    epsilon = gaussian_epsilon(mean, delta=DELTA)
    right = float(norm.cdf(mean / 2))
    wrongly = sum(
        float(binom.pmf(correct, 100, right))
        for correct in range(101)
        if epsilon_lower_bound_if_gaussian(canaries=100, guesses=100, correct=correct, delta=DELTA) > epsilon
    )
    assert wrongly <= 0.05


def test_the_bound_is_the_largest_epsilon_that_is_refuted() -> None:
    def chance(epsilon: float) -> float:
        return p_value(canaries=400, guesses=160, correct=140, epsilon=epsilon, delta=DELTA)

    bound = epsilon_lower_bound(canaries=400, guesses=160, correct=140, delta=DELTA)
    assert chance(bound) <= 0.05 < chance(bound + 1e-6)


def test_more_right_guesses_never_lower_a_bound() -> None:
    for bound in (epsilon_lower_bound, epsilon_lower_bound_if_gaussian):
        values = [
            bound(canaries=120, guesses=60, correct=correct, delta=DELTA) for correct in range(30, 61, 3)
        ]
        assert values == sorted(values)
        assert values[0] == 0.0 < values[-1]


def test_choosing_the_best_number_of_guesses_is_paid_for() -> None:
    plan = GuessPlan.standard(400)
    correct = (300, 180, 79)
    each = [
        epsilon_lower_bound(
            canaries=400, guesses=choice.total, correct=right, delta=DELTA, significance=0.05 / 3
        )
        for choice, right in zip(plan.choices, correct, strict=True)
    ]
    assert best_bounds(plan, correct, delta=DELTA).epsilon == max(each)
    assert max(each) < epsilon_lower_bound(canaries=400, guesses=80, correct=79, delta=DELTA)


def test_scores_that_know_nothing_are_held_against_a_claim_of_zero_at_most_once_in_twenty() -> None:
    """Without the correction for choosing the share is above 1 in 20: the test can fail."""
    plan, generator = GuessPlan.standard(200), np.random.default_rng(20)
    shown = uncorrected = 0
    for _ in range(3_000):
        scores, coins = generator.standard_normal(200), generator.random(200) < 0.5
        chances = [
            p_value(
                canaries=200,
                guesses=choice.total,
                correct=correct_guesses(scores, coins, counts=choice),
                epsilon=0.0,
                delta=1e-9,
            )
            for choice in plan.choices
        ]
        shown += min(chances) <= plan.significance_of_each
        uncorrected += min(chances) <= plan.significance
    assert shown / 3_000 <= 0.05 < uncorrected / 3_000


@pytest.mark.parametrize(("canaries", "about"), [(256, 4.4), (1000, 5.8)])
def test_no_bound_exceeds_the_logarithm_of_a_third_of_the_canaries(canaries: int, about: float) -> None:
    one_choice = GuessPlan(
        canaries=canaries, choices=(GuessCounts(included=canaries // 2, excluded=canaries // 2),)
    )
    reach = largest_reachable_bound(one_choice, delta=0.0)
    assert reach == pytest.approx(about, abs=0.05)
    assert reach == pytest.approx(math.log(canaries / 3), abs=0.01)
    three = GuessPlan.standard(canaries)
    assert largest_reachable_bound(three, delta=0.0) < reach
    assert largest_reachable_bound(one_choice, delta=DELTA) < reach


def test_perfect_scores_reach_the_largest_bound_and_reversed_ones_show_nothing() -> None:
    coins = np.arange(300) % 2 == 0
    plan = GuessPlan.standard(300)
    perfect = one_run_bound(coins.astype(float), coins, plan=plan, delta=DELTA)
    assert perfect.epsilon == largest_reachable_bound(plan, delta=DELTA)
    assert one_run_bound(-coins.astype(float), coins, plan=plan, delta=DELTA).epsilon == 0.0


def test_the_highest_scores_are_guessed_in_and_the_lowest_out() -> None:
    scores = [0.9, -0.8, 0.1, 0.7, -0.2]
    coins = np.array([True, False, True, False, True])
    assert correct_guesses(scores, coins, counts=GuessCounts(included=2, excluded=0)) == 1
    assert correct_guesses(scores, coins, counts=GuessCounts(included=0, excluded=2)) == 1
    assert correct_guesses(scores, coins, counts=GuessCounts(included=1, excluded=1)) == 2


def test_equal_scores_are_ordered_by_position_and_never_by_coin() -> None:
    counts = GuessCounts(included=2, excluded=2)
    assert correct_guesses([0.0] * 4, np.array([False, False, True, True]), counts=counts) == 4
    assert correct_guesses([0.0] * 4, np.array([True, True, False, False]), counts=counts) == 0


def test_scores_and_coins_that_cannot_be_audited_are_refused() -> None:
    counts, coins = GuessCounts(included=1, excluded=1), np.array([True, False, True])
    with pytest.raises(ValueError, match="not a finite"):
        correct_guesses([0.0, math.nan, 1.0], coins, counts=counts)
    with pytest.raises(ValueError, match="true or false"):
        correct_guesses([0.0, 0.5, 1.0], coins.astype(int), counts=counts)
    with pytest.raises(ValueError, match="true or false"):
        correct_guesses([0.0, 0.5], coins, counts=counts)
    with pytest.raises(ValueError, match="more guesses"):
        correct_guesses([0.0, 0.5, 1.0], coins, counts=GuessCounts(included=2, excluded=2))
    with pytest.raises(ValueError, match="another number"):
        one_run_bound([0.0, 0.5, 1.0], coins, plan=GuessPlan.standard(20), delta=DELTA)


def test_plans_and_counts_that_make_no_sense_are_refused() -> None:
    with pytest.raises(ValueError, match="guesses"):
        GuessCounts(included=0, excluded=0)
    with pytest.raises(ValueError, match="guesses"):
        GuessCounts(included=-1, excluded=3)
    with pytest.raises(ValueError, match="beyond its canaries"):
        GuessPlan(canaries=3, choices=(GuessCounts(included=2, excluded=2),))
    with pytest.raises(ValueError, match="beyond its canaries"):
        GuessPlan(canaries=3, choices=())
    with pytest.raises(ValueError, match="significance"):
        GuessPlan(canaries=3, choices=(GuessCounts(included=1, excluded=1),), significance=0.6)
    with pytest.raises(ValueError, match="at least 20"):
        GuessPlan.standard(19)
    with pytest.raises(ValueError, match="each choice"):
        best_bounds(GuessPlan.standard(20), (20,), delta=DELTA)
    with pytest.raises(ValueError, match="delta"):
        best_bounds(GuessPlan.standard(20), (20, 10, 4), delta=0.0)


@pytest.mark.parametrize(
    ("guesses", "correct", "epsilon", "delta"),
    [(0, 0, 1.0, 0.0), (11, 5, 1.0, 0.0), (5, 6, 1.0, 0.0), (5, 5, -1.0, 0.0), (5, 5, 1.0, 2.0)],
)
def test_impossible_counts_have_no_p_value(guesses: int, correct: int, epsilon: float, delta: float) -> None:
    with pytest.raises(ValueError, match=r"guesses|epsilon"):
        p_value(canaries=10, guesses=guesses, correct=correct, epsilon=epsilon, delta=delta)
