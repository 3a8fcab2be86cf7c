"""Audit reports: they survive JSON, follow from their own members, and name what does not."""

import dataclasses
import json
import math
from typing import Any

import numpy as np
import pytest

from engines.privacy.audit_canaries import Canaries
from engines.privacy.audit_one_shot import Statistic
from engines.privacy.audit_report import AuditReport, audit_report, first_contradiction, report_from

CANARIES = Canaries(bytes(range(32)), count=200, dimension=2_500)


def report_of(
    *, mean: float = 0.8, claimed: float = 3.0, statistic: Statistic = Statistic.FINAL_ITERATE
) -> AuditReport:
    noise = np.random.default_rng(1).standard_normal(200)
    scores = (noise + mean * CANARIES.coins()) / 50
    return audit_report(CANARIES, scores, statistic=statistic, claimed_epsilon=claimed, claimed_delta=1e-6)


@pytest.mark.parametrize("statistic", list(Statistic))
def test_a_report_survives_json_and_follows_from_its_own_members(statistic: Statistic) -> None:
    report = report_of(statistic=statistic)
    read = report_from(json.loads(json.dumps(dataclasses.asdict(report))))
    assert read == report
    assert first_contradiction(read) is None


def test_a_bound_over_the_claim_refutes_it_and_a_bound_under_it_does_not() -> None:
    strong = report_of(mean=6.0, claimed=1.0)
    assert strong.lower_bound > 1.0
    assert strong.refuted
    assert strong.lower_bound <= strong.largest_reachable
    weak = report_of(mean=6.0, claimed=strong.largest_reachable + 1.0)
    assert weak.lower_bound == strong.lower_bound
    assert not weak.refuted


def test_the_gaussian_bound_alone_refutes_nothing() -> None:
    report = report_of(mean=6.0, claimed=1.0)
    between = (report.lower_bound + report.lower_bound_if_gaussian) / 2
    again = report_of(mean=6.0, claimed=between)
    assert again.lower_bound_if_gaussian > between > again.lower_bound
    assert not again.refuted


@pytest.mark.parametrize(
    ("member", "value"),
    [
        ("method", "another/1"),
        ("statistic", "best_of_both"),
        ("canaries_in", 1),
        ("commitment", "0" * 64),
        ("claimed_epsilon", 0.0),
        ("claimed_delta", 1.0),
        ("confidence", 0.99),
        ("correct_guesses", (201, 0, 0)),
        ("lower_bound", 2.9),
        ("lower_bound_if_gaussian", 0.0),
        ("largest_reachable", 9.0),
        ("estimated_mean", math.inf),
        ("estimate", 0.1),
        ("estimate_standard_error", 0.0),
        ("refuted", True),
    ],
)
def test_a_changed_member_is_named(member: str, value: Any) -> None:
    assert first_contradiction(dataclasses.replace(report_of(), **{member: value})) == member


@pytest.mark.parametrize("secret", ["", "not hex", "00" * 31])
def test_a_secret_that_is_none_is_named(secret: str) -> None:
    assert first_contradiction(dataclasses.replace(report_of(), secret=secret)) == "secret"


def test_another_secret_or_shape_does_not_open_the_commitment() -> None:
    for change in ({"secret": "00" * 32}, {"canaries": 220}, {"dimension": 2_501}):
        assert first_contradiction(dataclasses.replace(report_of(), **change)) == "commitment"


def test_other_right_guesses_than_the_bound_needs_are_found() -> None:
    report = report_of()
    fewer = tuple(right // 2 for right in report.correct_guesses)
    assert first_contradiction(dataclasses.replace(report, correct_guesses=fewer)) == "lower_bound"


@pytest.mark.parametrize(
    ("member", "value"),
    [
        ("refuted", 0),
        ("canaries", True),
        ("canaries", 200.0),
        ("lower_bound", "1.0"),
        ("lower_bound", math.nan),
        ("commitment", None),
        ("correct_guesses", [1.5]),
        ("correct_guesses", "123"),
    ],
)
def test_a_member_of_another_type_is_refused(member: str, value: Any) -> None:
    with pytest.raises(ValueError, match=member):
        report_from({**dataclasses.asdict(report_of()), member: value})


def test_a_missing_or_unknown_member_is_refused() -> None:
    members = dataclasses.asdict(report_of())
    with pytest.raises(ValueError, match="extra"):
        report_from({**members, "extra": 1})
    del members["refuted"]
    with pytest.raises(ValueError, match="refuted"):
        report_from(members)


@pytest.mark.parametrize("claimed", [0.0, -1.0, math.inf, math.nan])
def test_a_claim_that_is_no_number_above_zero_is_refused(claimed: float) -> None:
    with pytest.raises(ValueError, match="claimed epsilon"):
        report_of(claimed=claimed)
