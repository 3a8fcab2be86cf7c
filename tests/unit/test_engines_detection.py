"""Evidence about clients, and the ladder: few honest clients are odd, attackers are; steps can be undone."""

import math
from collections.abc import Iterator

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from engines.aggregation.detection import Evidence, Finding, Measure, gather, judge
from engines.aggregation.gram import gram, squared_distances
from engines.aggregation.ladder import (
    HEIGHTS,
    Observation,
    Origin,
    Reversal,
    Standing,
    Step,
    acts_on,
    climb,
)
from engines.aggregation.rows import Held
from engines.aggregation.rules import Setting, aggregate
from tests.unit.attacks import ATTACKS, FAULTY, Round, Vectors

ODD, ORDINARY = Observation(odd=True), Observation(odd=False)


def findings(updates: Vectors, *, faulty: int) -> list[Finding]:
    outcome, _ = aggregate(Held(updates), Setting(faulty=faulty))
    return judge(gather(Held(updates), outcome.values, squared_distances(gram(Held(updates)))))


def honest_rounds(clients: int, rounds: int, *, kind: str) -> Iterator[Vectors]:
    """Honest federations: alike; of other sizes and learning rates; near the end, where all is noise."""
    generator = np.random.default_rng(clients)
    for _ in range(rounds):
        common = generator.normal(size=50) * (0.05 if kind == "late" else 1.0)
        updates = common + generator.normal(size=(clients, 50)) * 1.4
        yield updates * np.exp(generator.normal(size=(clients, 1)) * (0.3 if kind == "sizes" else 0.0))


@pytest.mark.parametrize("kind", ["alike", "sizes", "late"])
@pytest.mark.parametrize(("clients", "faulty"), [(8, 2), (20, 4), (60, 10)])
def test_at_most_two_percent_of_honest_clients_are_found_odd_in_a_round(
    clients: int, faulty: int, kind: str
) -> None:
    """2 % is the honest rate that the ladder assumes. Measured: at most 0.7 %."""
    rounds = 3000 // clients
    odd = sum(
        bool(finding.odd)
        for updates in honest_rounds(clients, rounds, kind=kind)
        for finding in findings(updates, faulty=faulty)
    )
    assert odd <= 0.02 * rounds * clients


@pytest.mark.parametrize(
    "attack",
    ["sign_flip", "inner_product_2", "inner_product_10", "little_is_enough_1.5", "gaussian", "replacement"],
)
def test_hostile_clients_are_found_in_more_than_half_of_the_rounds(attack: str) -> None:
    """Half is the hostile rate that the ladder assumes."""
    generator, found = np.random.default_rng(1), 0
    for updates in honest_rounds(20, 20, kind="alike"):
        updates[:FAULTY] = ATTACKS[attack](Round(updates[FAULTY:], np.zeros(50), generator))
        result = findings(updates, faulty=FAULTY)
        found += sum(bool(finding.odd) for finding in result[:FAULTY])
        assert not any(finding.odd for finding in result[FAULTY:])
    assert found > 0.5 * 20 * FAULTY


def test_a_copy_is_a_twin_and_a_long_update_is_long() -> None:
    updates = next(honest_rounds(20, 1, kind="alike"))
    updates[3] = updates[7]
    updates[5] *= 8.0
    updates[9] *= -1.0
    result = findings(updates, faulty=4)
    assert Measure.TWIN in result[3].odd
    assert Measure.TWIN in result[7].odd
    assert {Measure.NORM, Measure.DISTANCE} <= set(result[5].odd)
    assert {number for number, finding in enumerate(result) if finding.odd} <= {3, 5, 7, 9}


def test_evidence_is_measured_as_it_says() -> None:
    updates = np.array([[3.0, 4.0], [6.0, 8.0], [0.0, 0.0]])
    centre = np.array([3.0, 4.0])
    first, second, zero = gather(Held(updates), centre, squared_distances(gram(Held(updates))))
    assert (first.norm_ratio, second.norm_ratio, zero.norm_ratio) == (1.0, 2.0, 0.0)
    assert (first.distance_ratio, second.distance_ratio) == (0.0, 1.0)
    assert first.cosine == pytest.approx(1.0)
    assert zero.cosine == 0.0
    assert first.nearest_ratio == pytest.approx(1.0)
    with pytest.raises(ValueError, match="evidence"):
        gather(Held(updates), centre[:1], np.zeros((3, 3)))


def test_a_handful_of_clients_has_no_outliers_and_equal_ones_neither() -> None:
    wild = [Evidence(10.0**n, 10.0**n, 0.0, 1.0) for n in range(4)]
    assert all(finding == Finding((), 0.0) for finding in judge(wild))
    assert not any(finding.odd for finding in findings(np.ones((9, 4)), faulty=2))
    alone = gather(Held(np.ones((1, 2))), np.ones(2), np.zeros((1, 1)))
    assert judge(alone)[0].odd == ()


def test_a_ladder_climbs_one_step_a_round_and_only_by_what_repeats() -> None:
    steps = [climb([ODD] * rounds, trust="local").step for rounds in range(6)]
    assert steps == [
        Step.OBSERVE,
        Step.DISCOUNT,
        Step.QUARANTINE,
        Step.QUARANTINE,
        Step.SUSPEND,
        Step.SUSPEND,
    ]
    assert climb([ODD, *[ORDINARY] * 4, ODD], trust="local").step is Step.DISCOUNT
    assert climb([ODD, *[ORDINARY] * 5], trust="local") == Standing(Step.OBSERVE, 0.0)


def test_a_discount_ends_by_itself_and_a_quarantine_does_not() -> None:
    assert climb([ODD, *[ORDINARY] * 50], trust="local").weight == 1.0
    assert climb([ODD], trust="local").weight == 0.5
    quarantined = climb([ODD, ODD, *[ORDINARY] * 50], trust="local")
    assert (quarantined.step, quarantined.suspicion, quarantined.weight) == (Step.QUARANTINE, 0.0, 0.0)


@pytest.mark.parametrize("to", list(Step))
def test_every_step_can_be_taken_back_with_a_reason(to: Step) -> None:
    suspended = [ODD] * 5
    assert climb([*suspended, Reversal(to, "a bug of ours")], trust="local") == Standing(to, 0.0)
    with pytest.raises(ValueError, match="reason"):
        Reversal(to, "  ")


def test_taking_back_never_lifts_a_client_up() -> None:
    assert climb([Reversal(Step.SUSPEND, "a slip of the hand")], trust="local").step is Step.OBSERVE


@given(st.lists(st.booleans(), max_size=40))
def test_an_odd_round_never_lowers_and_an_ordinary_one_never_raises(rounds: list[bool]) -> None:
    history, before = [], climb([], trust="local")
    for odd in rounds:
        history.append(Observation(odd=odd))
        after = climb(history, trust="local")
        assert (
            (after.step >= before.step and after.suspicion > before.suspicion)
            if odd
            else (after.step <= before.step and after.suspicion <= before.suspicion)
        )
        assert abs(after.step - before.step) <= 1
        before = after


def test_honest_clients_are_hardly_ever_suspended() -> None:
    """e^12 rounds on average at the assumed rate; here 400,000 rounds of 2,000 clients."""
    generator = np.random.default_rng(0)
    up, down = ODD.evidence, ORDINARY.evidence
    suspicion, suspended = np.zeros(2000), np.zeros(2000, dtype=bool)
    for _ in range(200):
        odd = generator.random(2000) < ODD.honest_rate
        suspicion = np.maximum(suspicion + np.where(odd, up, down), 0.0)
        suspended |= suspicion >= HEIGHTS[Step.SUSPEND]
    assert suspended.mean() <= 0.002


def test_a_group_that_was_odd_says_less_about_each_of_its_members() -> None:
    """Of four members one hostile one is enough, so an honest member shares in many odd rounds."""
    group = Observation(odd=True, honest_rate=0.3, hostile_rate=0.6)
    assert 0.0 < group.evidence < ODD.evidence
    assert climb([group] * 4, trust="local").step is Step.OBSERVE


@pytest.mark.parametrize("origin", list(Origin))
def test_central_noise_lets_only_admissible_findings_act(origin: Origin) -> None:
    history = [Observation(odd=True, origin=origin)] * 5
    for trust in ("central", "distributed"):
        acted = climb(history, trust=trust).step is Step.SUSPEND
        assert acted == acts_on(trust, origin) == (origin is not Origin.UPDATES)
    for trust in ("local", "none"):
        assert climb(history, trust=trust).step is Step.SUSPEND


@pytest.mark.parametrize(
    ("honest", "hostile"), [(0.5, 0.5), (0.6, 0.5), (0.0, 0.5), (0.1, 1.0), (math.nan, 0.5)]
)
def test_rates_that_say_nothing_are_refused(honest: float, hostile: float) -> None:
    with pytest.raises(ValueError, match="odd more often"):
        Observation(odd=True, honest_rate=honest, hostile_rate=hostile)
