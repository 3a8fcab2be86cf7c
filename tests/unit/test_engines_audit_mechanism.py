"""Audits of the product's own mechanisms: right code passes at 1, 3 and 10, planted faults are refuted."""

import math

import numpy as np
import pytest
import torch
from torch import Tensor

from engines.privacy import central, mechanism
from engines.privacy.audit_canaries import Canaries
from engines.privacy.audit_mechanism import canaries_alone
from engines.privacy.audit_one_shot import Statistic, cosines
from engines.privacy.audit_report import AuditReport, audit_report
from engines.privacy.central import CentralPlan
from engines.privacy.gaussian_curve import gaussian_epsilon, gaussian_mean
from engines.privacy.mechanism import noised_sum
from engines.privacy.noise import NoiseStream, integer_gaussian

DELTA = 1e-6
CANARIES, DIMENSION = 400, 16_384
SEEDS = range(1, 6)
CLIP_NORM = 0.5


def canaries_of(seed: int) -> Canaries:
    return Canaries(bytes([seed]) * 32, count=CANARIES, dimension=DIMENSION)


def stream_of(seed: int) -> NoiseStream:
    return NoiseStream.from_key(bytes([seed + 100]) * 32)


def audit_central(seed: int, *, claimed: float, norm: float = CLIP_NORM, rounds: int = 1) -> AuditReport:
    canaries = canaries_of(seed)
    plan = CentralPlan(
        clip_norm=CLIP_NORM,
        noise_multiplier=math.sqrt(rounds) / gaussian_mean(epsilon=claimed, delta=DELTA),
        divisor=CANARIES / 2,
        most_updates=CANARIES,
    )
    releases = canaries_alone(canaries, plan=plan, norm=norm, rounds=rounds, stream=stream_of(seed))
    change = np.sum(list(releases), axis=0)
    return audit_report(
        canaries,
        cosines(canaries.directions(), change),
        statistic=Statistic.FINAL_ITERATE,
        claimed_epsilon=claimed,
        claimed_delta=DELTA,
    )


def audit_training_step(seed: int, *, claimed: float, norm: float = CLIP_NORM) -> AuditReport:
    """A step of local training, with canaries as its records."""
    canaries = canaries_of(seed)
    inside = np.flatnonzero(canaries.coins())
    rows = torch.from_numpy(np.stack([canaries.direction(int(index)) for index in inside])) * norm
    (released,) = noised_sum(
        [rows],
        clip_norm=CLIP_NORM,
        noise_multiplier=1 / gaussian_mean(epsilon=claimed, delta=DELTA),
        stream=stream_of(seed),
    )
    return audit_report(
        canaries,
        cosines(canaries.directions(), released.numpy()),
        statistic=Statistic.FINAL_ITERATE,
        claimed_epsilon=claimed,
        claimed_delta=DELTA,
    )


@pytest.fixture
def a_tenth_of_the_noise(monkeypatch: pytest.MonkeyPatch) -> None:
    def too_little(stream: NoiseStream, size: int, *, std_over_grid: float) -> Tensor:
        return integer_gaussian(stream, size, std_over_grid=std_over_grid) // 10

    monkeypatch.setattr(central, "integer_gaussian", too_little)
    monkeypatch.setattr(mechanism, "integer_gaussian", too_little)


@pytest.fixture
def no_clipping(monkeypatch: pytest.MonkeyPatch) -> None:
    def as_it_is(rows: list[Tensor], _max_norm: float) -> Tensor:
        return torch.cat([row.reshape(row.shape[0], -1) for row in rows], dim=1).double()

    monkeypatch.setattr(central, "safe_scale", lambda norm, *, size, max_norm: 1.0)
    monkeypatch.setattr(mechanism, "clip_per_sample", as_it_is)


@pytest.mark.parametrize("seed", SEEDS)
@pytest.mark.parametrize("claimed", [1.001, 3.008, 10.002])
def test_the_right_mechanism_is_not_refuted_and_is_estimated_within_three_standard_errors(
    claimed: float, seed: int
) -> None:
    report = audit_central(seed, claimed=claimed)
    assert report.lower_bound <= claimed
    assert not report.refuted
    assert report.estimate == pytest.approx(claimed, abs=3 * report.estimate_standard_error)
    assert report.lower_bound_if_gaussian <= claimed  # one round of everyone is one Gaussian


@pytest.mark.usefixtures("a_tenth_of_the_noise")
@pytest.mark.parametrize("seed", SEEDS)
@pytest.mark.parametrize("claimed", [1.0, 3.0])
def test_a_tenth_of_the_noise_is_refuted(claimed: float, seed: int) -> None:
    report = audit_central(seed, claimed=claimed)
    assert report.lower_bound > claimed
    assert report.refuted
    assert report.estimate > claimed + 3 * report.estimate_standard_error


@pytest.mark.usefixtures("no_clipping")
@pytest.mark.parametrize("seed", SEEDS)
@pytest.mark.parametrize("claimed", [1.0, 3.0])
def test_clipping_that_is_off_is_refuted_by_canaries_of_a_hundred_clip_norms(
    claimed: float, seed: int
) -> None:
    report = audit_central(seed, claimed=claimed, norm=100 * CLIP_NORM)
    assert report.lower_bound > claimed
    assert report.refuted


@pytest.mark.parametrize("seed", SEEDS)
def test_canaries_of_a_hundred_clip_norms_do_not_refute_a_mechanism_that_clips(seed: int) -> None:
    report = audit_central(seed, claimed=3.0, norm=100 * CLIP_NORM)
    assert not report.refuted
    assert report.estimate == pytest.approx(3.0, abs=3 * report.estimate_standard_error)


def test_sixteen_rounds_of_the_same_canaries_are_estimated_as_their_composition() -> None:
    report = audit_central(1, claimed=gaussian_epsilon(2.0, delta=DELTA), rounds=16)
    assert not report.refuted
    assert report.estimate == pytest.approx(report.claimed_epsilon, abs=3 * report.estimate_standard_error)


def test_noise_in_the_first_round_alone_shows_in_the_estimate(monkeypatch: pytest.MonkeyPatch) -> None:
    """Sixteen rounds with the noise of one: mu is four times the claim's. The bound is weaker than that."""
    calls = []

    def only_once(stream: NoiseStream, size: int, *, std_over_grid: float) -> Tensor:
        calls.append(size)
        noise = integer_gaussian(stream, size, std_over_grid=std_over_grid)
        return noise if len(calls) == 1 else torch.zeros_like(noise)

    monkeypatch.setattr(central, "integer_gaussian", only_once)
    report = audit_central(1, claimed=1.0, rounds=16)
    assert len(calls) == 16
    assert report.estimate > report.claimed_epsilon + 3 * report.estimate_standard_error


@pytest.mark.parametrize("seed", SEEDS)
@pytest.mark.parametrize("claimed", [1.0, 3.0, 10.0])
def test_the_right_training_step_is_not_refuted(claimed: float, seed: int) -> None:
    report = audit_training_step(seed, claimed=claimed)
    assert not report.refuted
    assert report.estimate == pytest.approx(claimed, abs=3 * report.estimate_standard_error)


@pytest.mark.usefixtures("a_tenth_of_the_noise")
@pytest.mark.parametrize("seed", SEEDS)
@pytest.mark.parametrize("claimed", [1.0, 3.0])
def test_a_training_step_with_a_tenth_of_its_noise_is_refuted(claimed: float, seed: int) -> None:
    assert audit_training_step(seed, claimed=claimed).lower_bound > claimed


@pytest.mark.usefixtures("no_clipping")
@pytest.mark.parametrize("seed", SEEDS)
@pytest.mark.parametrize("claimed", [1.0, 3.0])
def test_a_training_step_that_does_not_clip_is_refuted(claimed: float, seed: int) -> None:
    assert audit_training_step(seed, claimed=claimed, norm=100 * CLIP_NORM).lower_bound > claimed


def test_an_audit_of_no_round_or_of_a_cohort_that_is_too_small_is_refused() -> None:
    canaries = canaries_of(1)
    plan = CentralPlan(clip_norm=1.0, noise_multiplier=1.0, divisor=1.0, most_updates=10)
    with pytest.raises(ValueError, match="at least one round"):
        list(canaries_alone(canaries, plan=plan, norm=1.0, rounds=0, stream=stream_of(1)))
    with pytest.raises(ValueError, match="cohort is full"):
        list(canaries_alone(canaries, plan=plan, norm=1.0, rounds=1, stream=stream_of(1)))
