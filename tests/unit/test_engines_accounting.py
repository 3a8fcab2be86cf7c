"""The accountants against published numbers, closed forms, each other, and input that makes no sense.

Reference values: dp-accounting 0.6.0 and prv-accountant 0.2.0, measured 2026-11-25; the closed form of the
Gaussian mechanism (Balle and Wang 2018, arXiv:1805.06530) with 50 digits of mpmath.
"""

import functools
import logging
import math

import dp_accounting
import pytest
from dp_accounting.pld import privacy_loss_distribution

from engines.privacy import accounting
from engines.privacy.accounting import (
    AccountingFailed,
    GaussianRun,
    Relation,
    epsilon_by_round,
    epsilon_pld,
    epsilon_rdp,
    rdp_at_order,
    renyi_ceiling,
)
from engines.privacy.loss_library import watched_library


def run(
    noise_multiplier: float, sampling_rate: float, steps: int, relation: Relation = Relation.ZERO_OUT
) -> GaussianRun:
    return GaussianRun(
        noise_multiplier=noise_multiplier, sampling_rate=sampling_rate, steps=steps, relation=relation
    )


MIXED = [run(1.0, 0.01, 500), run(1.2, 0.02, 300), run(1.5, 0.05, 200)]

REFERENCE = {  # runs, delta, RDP epsilon, PLD epsilon at 1e-4
    "A": ([run(1.0, 0.01, 1000)], 1e-5, 2.1013665254, 1.8282436456),
    "B": ([run(1.0, 0.1, 100)], 1e-5, 7.9038502236, 7.0466028772),
    "C": ([run(5.0, 1.0, 50)], 1e-5, 7.0773915782, 6.5729700711),
    "D": (MIXED, 1e-5, 3.4161197907, 3.1074023569),
    "E": ([run(0.5, 0.01, 1000)], 1e-5, 15.4721334182, 13.3608256903),
    "F": ([run(10.0, 0.001, 100)], 1e-5, 0.0040213500, 0.0021520047),
    "G": ([run(0.8, 0.05, 200)], 1e-6, 9.9052572483, 8.8656637095),
    "H": ([run(0.3, 0.1, 100)], 1e-5, 171.5193, 106.1758994),
    "I": ([run(0.7, 0.001, 100_000)], 1e-6, 4.5922298105, 4.1357381895),
    "J": ([run(1.0, 0.01, 1)], 1e-5, 0.9555491480, 0.1994504735),
}


@functools.cache
def claim(case: str) -> float:
    runs, delta, _, _ = REFERENCE[case]
    return epsilon_pld(runs, delta=delta)


@pytest.mark.parametrize("case", REFERENCE)
def test_both_accountants_give_the_reference_values(case: str) -> None:
    runs, delta, by_rdp, by_pld = REFERENCE[case]
    assert epsilon_rdp(runs, delta=delta) == pytest.approx(by_rdp, rel=1e-6)
    assert claim(case) == pytest.approx(by_pld, rel=1e-5)


TRUTH = {  # where the truth lies, by two libraries: the optimistic and the pessimistic bound at 1e-5 or finer
    "A": (1.8277366679988936, 1.8282367367211572),
    "B": (7.0461026, 7.046602621253423),
    "C": (6.572970067030331, 6.572970067030331),
    "D": (3.1023974014676496, 3.1073974409475396),
    "E": (13.3558259, 13.360824005399717),
    "F": (0.0019173359472370447, 0.0019692129153459493),
    "G": (8.864663214054014, 8.865663216982762),
    "J": (0.19944994736590801, 0.19945044783216762),
}


@pytest.mark.parametrize("case", TRUTH)
def test_the_claim_lies_where_two_libraries_say_that_the_truth_lies(case: str) -> None:
    lower, upper = TRUTH[case]
    within = {"abs": 2e-4} if case == "F" else {"rel": 1e-5}
    assert claim(case) == pytest.approx(upper, **within)
    assert claim(case) >= lower


@pytest.mark.parametrize(("case", "prv_lower"), [("B", 7.0458304), ("E", 13.3600366)])
def test_the_claim_is_above_a_third_accountants_lower_bound(case: str, prv_lower: float) -> None:
    assert claim(case) >= prv_lower


@pytest.mark.parametrize(
    ("steps", "sigma", "delta", "exact"),
    [
        (1, 1.0, 1e-5, 4.377178095681224),
        (10, 4.0, 1e-6, 3.747217991426812),
        (50, 5.0, 1e-5, 6.572970067030331),
    ],
)
def test_without_sampling_the_price_is_the_closed_form_from_above(
    steps: int, sigma: float, delta: float, exact: float
) -> None:
    price = epsilon_pld([run(sigma, 1.0, steps)], delta=delta)
    assert exact <= price <= exact + 1e-9
    assert epsilon_rdp([run(sigma, 1.0, steps)], delta=delta) > exact


@pytest.mark.parametrize("relation", [Relation.ZERO_OUT, Relation.ADD_REMOVE])
def test_zero_out_and_add_remove_do_not_double(relation: Relation) -> None:
    whole, sampled = [run(1.0, 1.0, 1, relation)], [run(1.0, 0.1, 100, relation)]
    assert epsilon_rdp(whole, delta=1e-5) == pytest.approx(4.728507, abs=2e-6)
    assert epsilon_pld(whole, delta=1e-5) == pytest.approx(4.377178, abs=2e-6)
    assert epsilon_rdp(sampled, delta=1e-5) == pytest.approx(7.903850, abs=2e-6)
    assert epsilon_pld(sampled, delta=1e-5) == pytest.approx(7.046603, abs=2e-6)


def test_replace_one_doubles_the_sensitivity_exactly_once_in_both_accountants() -> None:
    once, wider = [run(1.0, 1.0, 1, Relation.REPLACE_ONE)], [run(2.0, 1.0, 1, Relation.REPLACE_ONE)]
    assert epsilon_pld(once, delta=1e-5) == pytest.approx(9.997256, abs=5e-7)
    assert epsilon_pld(wider, delta=1e-5) == pytest.approx(4.377178, abs=2e-6)
    assert epsilon_rdp(wider, delta=1e-5) == pytest.approx(4.728507, abs=2e-6)
    assert epsilon_rdp(once, delta=1e-5) == pytest.approx(
        epsilon_rdp([run(0.5, 1.0, 1)], delta=1e-5), rel=1e-12
    )
    sampled = [run(1.0, 0.1, 100, Relation.REPLACE_ONE)]
    assert epsilon_pld(sampled, delta=1e-5) == pytest.approx(10.516380, abs=3e-6)


def test_replace_one_with_sampling_has_no_rdp_price() -> None:
    sampled = [run(1.0, 0.1, 100, Relation.REPLACE_ONE)]
    with pytest.raises(AccountingFailed, match="replace-one"):
        epsilon_rdp(sampled, delta=1e-5)
    with pytest.raises(AccountingFailed, match="replace-one"):
        rdp_at_order(sampled, order=4)


def test_runs_of_different_relations_are_not_composed() -> None:
    mixed = [run(1.0, 0.1, 1), run(1.0, 0.1, 1, Relation.ADD_REMOVE)]
    for price in (epsilon_pld, epsilon_rdp):
        with pytest.raises(ValueError, match="one relation"):
            price(mixed, delta=1e-5)
        with pytest.raises(ValueError, match="at least one run"):
            price([], delta=1e-5)
    with pytest.raises(ValueError, match="at least one run"):
        rdp_at_order([], order=2)


def test_a_schedule_costs_the_same_however_it_is_cut_into_runs() -> None:
    cut = [run(1.0, 0.1, 40), run(1.0, 0.1, 60)]
    assert epsilon_pld(cut, delta=1e-5) == epsilon_pld([run(1.0, 0.1, 100)], delta=1e-5)


def test_the_demos_stored_noise_prices_under_eight_and_the_rounded_one_over() -> None:
    assert epsilon_pld([run(0.9345, 0.1231, 64)], delta=1e-5) == pytest.approx(7.9990, abs=5e-5)
    assert epsilon_pld([run(0.934, 0.1231, 64)], delta=1e-5) == pytest.approx(8.0071, abs=5e-5)
    assert epsilon_rdp([run(0.934, 0.1231, 64)], delta=1e-5) == pytest.approx(9.04, abs=5e-3)


def test_a_rate_derived_from_a_silos_size_would_have_cost_far_more() -> None:
    assert epsilon_pld([run(0.9345, 64 / 250, 64)], delta=1e-5) == pytest.approx(16.6, abs=0.06)
    assert epsilon_pld([run(0.9345, 64 / 100, 64)], delta=1e-5) == pytest.approx(43.7, abs=0.06)


def test_epsilon_by_round_never_falls_and_ends_at_the_price_of_the_whole_run() -> None:
    whole = run(0.9345, 0.1231, 64)
    prices = epsilon_by_round(whole, rounds=8, delta=1e-5)
    assert len(prices) == 8
    assert list(prices) == sorted(prices)
    assert prices[-1] == epsilon_pld([whole], delta=1e-5)
    assert prices[0] == epsilon_pld([run(0.9345, 0.1231, 8)], delta=1e-5)


def test_many_rounds_are_priced_at_64_of_them_and_never_below_their_own_price() -> None:
    whole = run(100.0, 1.0, 130)
    prices = epsilon_by_round(whole, rounds=130, delta=1e-5)
    assert len(prices) == 130
    assert len(set(prices)) == 64
    assert list(prices) == sorted(prices)
    assert prices[-1] == epsilon_pld([whole], delta=1e-5)
    for done in (1, 3, 64, 127):
        assert prices[done - 1] >= epsilon_pld([run(100.0, 1.0, done)], delta=1e-5)


@pytest.mark.parametrize("rounds", [0, -1, 7, 65])
def test_rounds_that_do_not_divide_the_steps_are_refused(rounds: int) -> None:
    with pytest.raises(ValueError, match="divide"):
        epsilon_by_round(run(1.0, 0.1, 64), rounds=rounds, delta=1e-5)


def reserve(order: float) -> float:
    """The share of delta that is kept back for the sampler, as a divergence of this order."""
    return -math.log1p(-(2.0**-20)) / (order - 1)


def test_rdp_without_sampling_is_the_closed_form_and_adds_up() -> None:
    expected = 3 * 5.0 / (2 * 2.0**2) + reserve(5.0)
    assert rdp_at_order([run(2.0, 1.0, 3)], order=5.0) == pytest.approx(expected, rel=1e-12)
    halves = [run(1.0, 0.1, 50), run(1.0, 0.1, 50)]
    assert rdp_at_order(halves, order=3.2) == pytest.approx(
        rdp_at_order([run(1.0, 0.1, 100)], order=3.2), rel=1e-12
    )


def test_rdp_of_order_two_is_the_known_formula() -> None:
    """Mironov et al. 2019: exp(D_2) = 1 + q**2 (exp(1/z**2) - 1) for one step."""
    expected = math.log1p(0.1231**2 * math.expm1(1 / 0.9345**2)) + reserve(2.0)
    assert rdp_at_order([run(0.9345, 0.1231, 1)], order=2) == pytest.approx(expected, rel=1e-12)


@pytest.mark.parametrize(
    ("rate", "order", "divergence"),
    [
        (0.01, 1.5, 0.00013236850293993048),
        (0.01, 2, 0.00017181342207455162),
        (0.01, 3, 0.0002646375745846693),
        (0.01, 4, 0.0003631540489107668),
        (0.01, 8, 0.000893643907606041),
        (0.01, 16, 3.087850783696245),
        (0.01, 32, 11.246275937048072),
        (0.01, 63, 26.820552875528232),
        (0.1, 2, 0.017036863236176605),
        (0.1, 3, 0.03171230030337645),
        (0.1, 4, 0.05867260696008056),
        (0.1, 8, 1.3783614113481268),
        (0.1, 16, 5.5439121709021215),
        (0.1, 32, 13.623137968522595),
    ],
)
def test_each_order_has_the_reference_divergence(rate: float, order: float, divergence: float) -> None:
    found = rdp_at_order([run(1.0, rate, 1)], order=order) - reserve(order)
    assert found == pytest.approx(divergence, rel=1e-9)


def test_an_order_whose_series_does_not_converge_is_refused() -> None:
    with pytest.raises(AccountingFailed, match=r"order 1\.1"):
        rdp_at_order([run(0.3, 0.1, 1)], order=1.1)


def test_no_price_is_ever_zero() -> None:
    """Noise of 1,000 C in one rare step: the library answers 0, which would never be charged."""
    assert epsilon_pld([run(1000.0, 0.01, 1)], delta=1e-5) == 1e-9
    assert epsilon_rdp([run(1000.0, 1e-6, 1)], delta=1e-5) == 1e-9


def test_plans_at_which_other_accountants_hang_or_crash_have_a_sound_price_or_none() -> None:
    """Opacus hangs on the first and prv-accountant raises on H; Opacus' orders end too early for the last."""
    with pytest.raises(AccountingFailed, match="over 200"):
        epsilon_pld([run(0.1, 0.01, 1000)], delta=1e-5)
    assert epsilon_rdp(REFERENCE["H"][0], delta=1e-5) > claim("H") > 106.1
    assert 0.0165 <= epsilon_pld([run(50.0, 0.01, 1000)], delta=1e-5) <= 0.0265


def test_a_plan_without_privacy_is_refused_at_once() -> None:
    for hopeless in (run(0.1, 0.5, 1_000), run(0.001, 0.01, 1), run(0.05, 1.0, 1, Relation.REPLACE_ONE)):
        with pytest.raises(AccountingFailed, match="over 200"):
            epsilon_pld([hopeless], delta=1e-5)


@pytest.mark.parametrize("answer", [math.nan, -0.5, math.inf])
def test_an_answer_that_is_no_epsilon_is_a_failure(monkeypatch: pytest.MonkeyPatch, answer: float) -> None:
    monkeypatch.setattr(
        privacy_loss_distribution.PrivacyLossDistribution, "get_epsilon_for_delta", lambda *_: answer
    )
    with pytest.raises(AccountingFailed):
        epsilon_pld([run(1.0, 0.1, 10)], delta=1e-5)


def test_whatever_the_library_raises_is_a_failure_and_never_a_price(monkeypatch: pytest.MonkeyPatch) -> None:
    def broken(*_: object, **__: object) -> None:
        raise RuntimeError("Discrete mean differs")

    monkeypatch.setattr(privacy_loss_distribution, "from_gaussian_mechanism", broken)
    with pytest.raises(AccountingFailed, match="could not price"):
        epsilon_pld([run(1.0, 0.1357, 10)], delta=1e-5)


def test_a_divergence_below_zero_is_a_failure(monkeypatch: pytest.MonkeyPatch) -> None:
    """The library would log a warning and call such an epsilon zero."""

    def negative(self: dp_accounting.rdp.RdpAccountant, *_: object) -> None:
        self._rdp = self._rdp - 1.0

    monkeypatch.setattr(dp_accounting.rdp.RdpAccountant, "compose", negative)
    with pytest.raises(AccountingFailed, match="no divergence"):
        epsilon_rdp([run(1.0, 0.1, 10)], delta=1e-5)


def test_a_warning_of_the_library_is_a_refusal() -> None:
    with pytest.raises(AccountingFailed, match="numerical instability"), watched_library():
        dp_accounting.rdp.compute_epsilon([2.0], [-1.0], 1e-5)


def test_a_warning_is_a_refusal_in_a_program_that_has_silenced_its_logs() -> None:
    logging.disable(logging.CRITICAL)  # as the client's commands do, lest a library tell of a text
    try:
        with pytest.raises(AccountingFailed, match="numerical instability"), watched_library():
            dp_accounting.rdp.compute_epsilon([2.0], [-1.0], 1e-5)
        assert logging.root.manager.disable == logging.CRITICAL
    finally:
        logging.disable(logging.NOTSET)


@pytest.mark.parametrize("name", ["absl", ""])
def test_a_warning_is_a_refusal_in_a_program_that_raised_its_loggers(name: str) -> None:
    logger = logging.getLogger(name)
    before = logger.level
    logger.setLevel(logging.CRITICAL)
    logger.disabled = True
    try:
        with pytest.raises(AccountingFailed, match="numerical instability"), watched_library():
            dp_accounting.rdp.compute_epsilon([2.0], [-1.0], 1e-5)
        assert (logger.level, logger.disabled) == (logging.CRITICAL, True)
    finally:
        logger.setLevel(before)
        logger.disabled = False


def test_orders_left_out_make_no_noise_in_the_log(caplog: pytest.LogCaptureFixture) -> None:
    with caplog.at_level(logging.WARNING):
        epsilon_rdp([run(0.3, 0.1, 100)], delta=1e-5)
    assert caplog.records == []


@pytest.mark.parametrize(
    ("change", "complaint"),
    [
        ({"noise_multiplier": 0.0}, "noise multiplier"),
        ({"noise_multiplier": -1.0}, "noise multiplier"),
        ({"noise_multiplier": math.nan}, "noise multiplier"),
        ({"noise_multiplier": math.inf}, "noise multiplier"),
        ({"sampling_rate": 0.0}, "sampling rate"),
        ({"sampling_rate": 1.0000001}, "sampling rate"),
        ({"sampling_rate": math.nan}, "sampling rate"),
        ({"steps": 0}, "steps"),
        ({"steps": 10_000_001}, "steps"),
    ],
)
def test_a_run_that_makes_no_sense_is_refused(change: dict[str, float], complaint: str) -> None:
    sound: dict[str, float] = {"noise_multiplier": 1.0, "sampling_rate": 0.1, "steps": 10}
    with pytest.raises(ValueError, match=complaint):
        GaussianRun(**(sound | change), relation=Relation.ZERO_OUT)  # type: ignore[arg-type]  # wrong on purpose


@pytest.mark.parametrize("delta", [0.0, -1e-5, 1.0, 0.5, 1e-11, math.nan])
def test_a_delta_that_makes_no_sense_is_refused(delta: float) -> None:
    for price in (epsilon_pld, epsilon_rdp):
        with pytest.raises(ValueError, match="delta"):
            price([run(1.0, 0.1, 10)], delta=delta)


@pytest.mark.parametrize("order", [1.0, 0.5, -2.0, math.nan, math.inf, 10_001.0])
def test_an_order_that_makes_no_sense_is_refused(order: float) -> None:
    with pytest.raises(ValueError, match="order"):
        rdp_at_order([run(1.0, 0.1, 10)], order=order)
    with pytest.raises(ValueError, match="order"):
        renyi_ceiling(epsilon=8.0, delta=1e-5, order=order)


CEILINGS = [  # epsilon, delta, order, ceiling (mpmath, 40 digits), the same in nano-RDP rounded down
    (8.0, 1e-5, 4.0, 4.912138371168334993687388, 4_912_138_371),
    (8.0, 1e-5, 3.2, 3.670250424366616729359333, 3_670_250_424),
    (8.0, 1e-5, 8.0, 6.785890832154466552883735, 6_785_890_832),
    (3.0, 1e-5, 8.0, 1.785890832154466552883735, 1_785_890_832),
    (3.0, 1e-5, 16.0, 2.481849404955541359511522, 2_481_849_404),
    (1.0, 1e-5, 32.0, 0.772161938244564111705261, 772_161_938),
    (1.0, 1e-6, 64.0, 0.862468555783993913133287, 862_468_555),
    (10.0, 1e-9, 6.0, 6.396020283250283395141829, 6_396_020_283),
    (0.5, 1e-5, 64.0, 0.399017525514000350113792, 399_017_525),
]


@pytest.mark.parametrize(("epsilon", "delta", "order", "ceiling", "nano"), CEILINGS)
def test_the_ceiling_of_a_renyi_account_is_the_reference_value(
    epsilon: float, delta: float, order: float, ceiling: float, nano: int
) -> None:
    """eps - log1p(-1/a) + log(delta a)/(a - 1)."""
    found = renyi_ceiling(epsilon=epsilon, delta=delta, order=order)
    assert found == pytest.approx(ceiling, rel=1e-13)
    assert math.floor(found * 10**9) == nano


def test_spending_the_whole_ceiling_converts_back_to_epsilon() -> None:
    ceiling = renyi_ceiling(epsilon=8.0, delta=1e-5, order=4.0)
    epsilon, _ = dp_accounting.rdp.compute_epsilon([4.0], [ceiling], 1e-5)
    assert epsilon == pytest.approx(8.0, rel=1e-12)


def test_an_account_filled_to_its_ceiling_keeps_its_epsilon_at_the_reduced_delta() -> None:
    """One charge pays for the sampler of all: what is left of delta covers it."""
    ceiling = renyi_ceiling(epsilon=8.0, delta=1e-5, order=4.0)
    epsilon, _ = dp_accounting.rdp.compute_epsilon([4.0], [ceiling - reserve(4.0)], 1e-5 * (1 - 2.0**-20))
    assert epsilon <= 8.0 + 1e-12


def test_an_order_that_leaves_nothing_to_spend_is_refused() -> None:
    with pytest.raises(ValueError, match="higher"):
        renyi_ceiling(epsilon=1.0, delta=1e-5, order=2.0)


def test_the_accountants_name_carries_its_version() -> None:
    assert accounting.ACCOUNTANT == "dp-accounting 0.6.0 PLD"
