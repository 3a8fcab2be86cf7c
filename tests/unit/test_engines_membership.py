"""The best membership attack: against the exact curve of one Gaussian, and against an attack that is run."""

import numpy as np
import pytest
from numpy.typing import NDArray
from scipy.special import ndtr, ndtri

from engines.privacy.accounting import AccountingFailed, CappedPoisson, GaussianRun, Relation
from engines.privacy.membership import _by_losses, greatest_true_positive_rate


def run(
    z: float,
    rate: float,
    steps: int,
    relation: Relation = Relation.ZERO_OUT,
    cap: CappedPoisson | None = None,
) -> GaussianRun:
    return GaussianRun(noise_multiplier=z, sampling_rate=rate, steps=steps, relation=relation, capped=cap)


@pytest.mark.parametrize("rate", [1e-3, 0.01, 0.1])
def test_one_gaussian_has_its_exact_curve(rate: float) -> None:
    exact = float(ndtr(ndtri(rate) + 2.0))
    found = greatest_true_positive_rate([run(1.0, 1.0, 4)], false_positive_rate=rate)
    assert exact <= found <= exact + 1e-8
    doubled = greatest_true_positive_rate([run(2.0, 1.0, 4, Relation.REPLACE_ONE)], false_positive_rate=rate)
    assert doubled == found


@pytest.mark.parametrize("rate", [1e-3, 0.01, 0.1])
def test_the_bound_by_losses_meets_the_exact_curve_from_above(rate: float) -> None:
    exact = float(ndtr(ndtri(rate) + 1.0))
    assert exact <= _by_losses([run(1.0, 1.0, 1)], false_positive_rate=rate) <= exact * 1.001 + 1e-6


def test_no_attack_that_is_run_beats_the_bound() -> None:
    """The likelihood ratio of 8 sampled steps, which no test beats."""
    draws, z, q, steps, trials = np.random.default_rng(5), 1.0, 0.2, 8, 100_000

    def score(member: bool) -> NDArray[np.float64]:
        seen = z * draws.standard_normal((trials, steps))
        if member:
            seen += draws.random((trials, steps)) < q
        ratios: NDArray[np.float64] = np.log1p(q * np.expm1((seen - 0.5) / z**2)).sum(axis=1)
        return ratios

    threshold = np.quantile(score(member=False), 0.99)
    reached = float((score(member=True) > threshold).mean())
    bound = greatest_true_positive_rate([run(z, q, steps)], false_positive_rate=0.01)
    assert reached - 0.01 <= bound <= 2.0 * reached


def test_sampling_and_noise_lower_what_an_attack_reaches() -> None:
    whole, sampled, quiet = ([run(1.0, 1.0, 8)], [run(1.0, 0.2, 8)], [run(4.0, 0.2, 8)])
    rates = [greatest_true_positive_rate(schedule) for schedule in (whole, sampled, quiet)]
    assert rates == sorted(rates, reverse=True)
    assert 0.01 <= rates[-1] < rates[0] <= 1.0


@pytest.mark.parametrize("rate", [0.0, -0.1, 0.6, 1.0, float("nan")])
def test_a_rate_that_makes_no_sense_is_refused(rate: float) -> None:
    with pytest.raises(ValueError, match="false-positive"):
        greatest_true_positive_rate([run(1.0, 0.1, 1)], false_positive_rate=rate)


def test_a_schedule_without_a_price_has_no_bound_either() -> None:
    with pytest.raises(AccountingFailed):
        greatest_true_positive_rate([run(0.1, 0.5, 1000)])
