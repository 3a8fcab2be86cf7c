"""Canaries in a run's own rounds, beside clients and in drawn cohorts: faults are refuted, and only they."""

import math
import random

import numpy as np
import pytest
import torch
from numpy.typing import NDArray
from torch import Tensor

from engines.privacy import central
from engines.privacy.accounting import CappedPoisson, GaussianRun, Relation, epsilon_pld, smallest_cap
from engines.privacy.audit_canaries import Canaries
from engines.privacy.audit_in_rounds import OVER, contributions, round_scores, run_report, stream_parameters
from engines.privacy.audit_one_shot import estimate_from_sum_of_rounds
from engines.privacy.audit_report import AuditReport, first_contradiction
from engines.privacy.central import CentralPlan, CentralSum
from engines.privacy.gaussian_curve import gaussian_mean
from engines.privacy.noise import NoiseStream, integer_gaussian

DELTA, CLIP_NORM, DIVISOR = 1e-5, 0.5, 5.0
CLIENTS, CANARIES, DIMENSION, ROUNDS, RATE = 10, 200, 8192, 3, 0.5
PLACES = CLIENTS + CANARIES


def canaries_of(seed: int) -> Canaries:
    return Canaries(bytes([seed]) * 32, count=CANARIES, dimension=DIMENSION)


CLAIMS = {1.5: 3.273, 4.0: 0.905}
"""Epsilon of the rounds below by noise multiplier, from `engines.privacy.accounting.epsilon_pld`."""


def one_round(
    seed: int, number: int, *, multiplier: float, rate: float, canaries: Canaries
) -> NDArray[np.float64]:
    """A round of clients that all pull one way, and of canaries, drawn alike."""
    chance = random.Random(f"{seed}/{number}")
    cap = smallest_cap(PLACES, rate=rate)
    drawn = [place for place in range(PLACES) if chance.random() < rate]
    kept = drawn if len(drawn) <= cap else chance.sample(drawn, cap)
    plan = CentralPlan(clip_norm=CLIP_NORM, noise_multiplier=multiplier, divisor=DIVISOR, most_updates=cap)
    total = CentralSum({"update": (DIMENSION,)}, plan)
    for _client in [place for place in kept if place < CLIENTS]:
        total.add({"update": torch.ones(DIMENSION)})
    seated = [place - CLIENTS for place in kept if place >= CLIENTS]
    for row in contributions(canaries, seated, clip_norm=CLIP_NORM):
        total.add({"update": torch.from_numpy(row)})
    released = total.release(NoiseStream.from_key(bytes([seed, number]) * 16)).update
    return round_scores(canaries, released, divisor=DIVISOR, noise_std=plan.noise_std)


def audited(seed: int, *, multiplier: float, claimed: float, rate: float = RATE) -> AuditReport:
    canaries = canaries_of(seed)
    scores = [
        one_round(seed, number, multiplier=multiplier, rate=rate, canaries=canaries)
        for number in range(ROUNDS)
    ]
    return run_report(canaries, scores, claimed_epsilon=claimed, claimed_delta=DELTA)


@pytest.mark.parametrize(("multiplier", "seed"), [(1.5, 1), (4.0, 2), (4.0, 3)])
def test_a_right_run_is_not_refuted_and_its_report_holds(multiplier: float, seed: int) -> None:
    claimed = CLAIMS[multiplier]
    report = audited(seed, multiplier=multiplier, claimed=claimed)
    assert report.lower_bound <= claimed
    assert not report.refuted
    assert report.estimate <= claimed + 3 * report.estimate_standard_error
    assert (report.statistic, report.canaries) == ("sum_of_rounds", CANARIES)
    assert first_contradiction(report) is None


@pytest.mark.parametrize("seed", [1, 2])
@pytest.mark.parametrize("claimed", [1.0, 3.0])
def test_with_everyone_in_every_round_the_estimate_is_within_three_standard_errors_of_the_claim(
    claimed: float, seed: int
) -> None:
    multiplier = math.sqrt(ROUNDS) / gaussian_mean(epsilon=claimed, delta=DELTA)
    report = audited(seed, multiplier=multiplier, claimed=claimed, rate=1.0)
    assert not report.refuted
    assert report.estimate == pytest.approx(claimed, abs=3 * report.estimate_standard_error)


def test_the_claims_of_these_tests_are_the_accountants() -> None:
    run = GaussianRun(
        noise_multiplier=4.0,
        sampling_rate=RATE,
        steps=ROUNDS,
        relation=Relation.ZERO_OUT,
        capped=CappedPoisson(population=PLACES, cap=smallest_cap(PLACES, rate=RATE)),
    )
    assert epsilon_pld([run], delta=DELTA) == pytest.approx(CLAIMS[4.0], abs=1e-3)


def test_a_tenth_of_the_noise_is_refuted(monkeypatch: pytest.MonkeyPatch) -> None:
    def too_little(stream: NoiseStream, size: int, *, std_over_grid: float) -> Tensor:
        return integer_gaussian(stream, size, std_over_grid=std_over_grid) // 10

    monkeypatch.setattr(central, "integer_gaussian", too_little)
    claimed = CLAIMS[4.0]
    report = audited(4, multiplier=4.0, claimed=claimed)
    assert report.refuted
    assert report.estimate > claimed + 3 * report.estimate_standard_error


def test_clipping_that_is_off_is_refuted_by_canaries_of_a_hundred_clip_norms(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    monkeypatch.setattr(central, "safe_scale", lambda norm, *, size, max_norm: 1.0)
    assert audited(5, multiplier=4.0, claimed=CLAIMS[4.0]).refuted


def test_a_canary_that_is_out_sends_zero_and_takes_a_place_like_one_that_is_in() -> None:
    canaries = canaries_of(6)
    coins = canaries.coins()
    inside, outside = int(np.flatnonzero(coins)[0]), int(np.flatnonzero(~coins)[0])
    sent = list(contributions(canaries, [inside, outside], clip_norm=CLIP_NORM))
    assert np.linalg.norm(sent[0]) == pytest.approx(OVER * CLIP_NORM, rel=1e-5)
    assert not sent[1].any()
    plan = CentralPlan(clip_norm=CLIP_NORM, noise_multiplier=1.0, divisor=1.0, most_updates=1)
    total = CentralSum({"update": (DIMENSION,)}, plan)
    total.add({"update": torch.from_numpy(sent[1])})
    with pytest.raises(ValueError, match="cohort is full"):
        total.add({"update": torch.from_numpy(sent[0])})


@pytest.mark.parametrize("drawn", [[CANARIES], [-1], [3, 3]])
def test_a_canary_that_there_is_not_or_twice_is_refused(drawn: list[int]) -> None:
    with pytest.raises(ValueError, match="or twice"):
        list(contributions(canaries_of(7), drawn, clip_norm=1.0))


def test_other_canaries_or_another_draw_never_get_the_same_noise() -> None:
    bound = [stream_parameters(canaries_of(seed), drawn) for seed in (1, 2) for drawn in ([1], [1, 2])]
    assert len({str(one) for one in bound}) == 4


def test_a_report_of_no_round_or_of_other_canaries_is_refused() -> None:
    with pytest.raises(ValueError, match="at least one round"):
        run_report(canaries_of(1), [], claimed_epsilon=1.0, claimed_delta=DELTA)
    with pytest.raises(ValueError, match="one of each"):
        run_report(canaries_of(1), [[0.0] * 19], claimed_epsilon=1.0, claimed_delta=DELTA)
    with pytest.raises(ValueError, match="different lengths"):
        round_scores(canaries_of(1), {"update": torch.zeros(3)}, divisor=1.0, noise_std=1.0)


def test_the_estimate_is_the_difference_of_means_in_the_spread_of_those_that_were_out() -> None:
    """Scores by hand: 4 above, spread 2 of those out, none of those in."""
    scores, coins = [4.0, 4.0, 2.0, 0.0, -2.0], np.array([True, True, False, False, False])
    found = estimate_from_sum_of_rounds(scores, coins, delta=DELTA)
    assert found.mean == pytest.approx(2.0)
    assert found.mean_standard_error == pytest.approx(math.sqrt(1 / 3 + 4 / 4))
    with pytest.raises(ValueError, match="score the same"):
        estimate_from_sum_of_rounds([1.0, 2.0, 0.0, 0.0], np.array([True, True, False, False]), delta=DELTA)
    with pytest.raises(ValueError, match="must have been out"):
        estimate_from_sum_of_rounds([1.0, 2.0, 0.0], np.array([True, True, False]), delta=DELTA)
    with pytest.raises(ValueError, match="finite"):
        estimate_from_sum_of_rounds(
            [1.0, math.inf, 0.0, 2.0], np.array([True, True, False, False]), delta=1e-5
        )
