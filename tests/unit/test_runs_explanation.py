"""What an explanation says follows from manifest and price, and errs against the plan."""

from __future__ import annotations

import math
import re
import string
from statistics import NormalDist
from typing import Any
from uuid import uuid4

import pytest

from app.runs import explanation_texts as texts
from app.runs.explanation import Explanation, explain, greatest_true_positive_rate
from app.runs.explanation_page import POLICY, page
from app.runs.explanation_schemas import ExplanationOut
from app.runs.manifest import EXAMPLE, Manifest
from app.runs.models import Run
from app.runs.plans_router import prefers_page
from engines.privacy.gaussian_curve import gaussian_epsilon
from tests.central import CANARIES, CLIENTS, SEATED, central_manifest

PRICE: dict[str, Any] = {
    "noise_multiplier": 0.9345,
    "epsilon": 7.99904,
    "delta": 1e-5,
    "epsilon_by_silos": {},
    "clip_noise_multiplier": None,
    "accountant": "dp-accounting 0.6.0 PLD",
}
PERSON = {"id_field": "author", "records_cap": 5, "silos": 3}
OPEN = {"trust": "none", "clip_norm": None, "epsilon": None, "delta": None}


def local(**privacy: Any) -> dict[str, Any]:
    return EXAMPLE | {"privacy": EXAMPLE["privacy"] | privacy}


def explained(
    manifest: dict[str, Any], price: dict[str, Any] | None = PRICE, *, clients: int = 8
) -> tuple[Explanation, ExplanationOut]:
    found = explain(Manifest.model_validate(manifest), price, clients=clients)
    run = Run(id=uuid4(), name="a <run>", manifest=manifest, price=price)
    return found, ExplanationOut.of(run, found, locale="en")


@pytest.mark.parametrize("epsilon", [0.1, 1.0, 3.0, 4.7, 8.0, 12.0])
def test_the_bound_on_attacks_is_the_least_of_the_two_sides_of_an_epsilon(epsilon: float) -> None:
    rate = greatest_true_positive_rate(epsilon=epsilon, delta=1e-5)
    assert 0.01 <= rate <= 1.0
    assert rate <= 0.01 * math.exp(epsilon) + 1e-5
    # Where a test is as good as that, the roles of member and non-member may be exchanged as well.
    assert math.exp(epsilon) * (1.0 - rate) + 1e-5 >= 1.0 - 0.01 - 1e-9


def test_at_epsilon_five_the_bound_comes_from_those_that_are_cleared() -> None:
    # By hand: 1 - e^-5 (1 - 1e-5 - 0.01) = 1 - 0.006737947 * 0.98999.
    assert greatest_true_positive_rate(epsilon=5.0, delta=1e-5) == pytest.approx(0.9933295, abs=1e-7)


@pytest.mark.parametrize("mean", [0.5, 1.0, 2.0, 4.0])
def test_the_best_test_of_a_gaussian_is_within_the_bound_of_its_epsilon(mean: float) -> None:
    best = NormalDist().cdf(NormalDist().inv_cdf(0.01) + mean)
    for delta in (1e-8, 1e-5, 1e-3):
        epsilon = gaussian_epsilon(mean, delta=delta)
        assert best <= greatest_true_positive_rate(epsilon=epsilon, delta=delta)


def test_at_the_largest_epsilon_an_attack_may_find_everybody() -> None:
    assert greatest_true_positive_rate(epsilon=200.0, delta=1e-5) == 1.0


def test_at_epsilon_one_an_attack_finds_at_most_e_percent() -> None:
    assert greatest_true_positive_rate(epsilon=1.0, delta=0.0) == pytest.approx(0.0271828, abs=1e-7)


def test_a_bound_of_the_whole_schedule_is_preferred_and_named() -> None:
    found, shown = explained(local(), PRICE | {"attack_tpr_at_1_percent": 0.6143})
    assert found.attack is not None
    assert (found.attack.greatest_true_positive_rate, found.attack.computed_from) == (0.6143, "schedule")
    assert shown.attack is not None
    assert "at most 61.5 % of" in shown.attack.text
    weaker, _shown = explained(local())
    assert weaker.attack is not None
    assert weaker.attack.computed_from == "epsilon_and_delta"
    assert weaker.attack.greatest_true_positive_rate > 0.99


def test_a_stored_bound_never_makes_an_attack_look_better_than_epsilon_allows() -> None:
    found, _shown = explained(local(), PRICE | {"epsilon": 1.0, "attack_tpr_at_1_percent": 0.9})
    assert found.attack is not None
    assert found.attack.greatest_true_positive_rate == pytest.approx(0.0271928, abs=1e-7)


def test_noise_to_signal_of_a_step_and_of_the_whole_run() -> None:
    found, _shown = explained(local())
    parameters = 2 * 384 + 2 + 2 * 384 * 8
    assert found.noise is not None
    assert found.noise.parameters == parameters
    assert found.noise.single == pytest.approx(0.9345 * math.sqrt(parameters) / 64)
    assert found.noise.whole == pytest.approx(found.noise.single / math.sqrt(64 * 8))


def test_canaries_with_places_in_the_rounds_are_declared_where_sampling_and_composition_are() -> None:
    seated, _shown = explained(central_manifest(**SEATED), clients=CLIENTS)
    for told in (seated.paragraphs["composition"], seated.nist["sampling"]):
        assert [text.members for text in told if text.text == texts.CANARIES] == [{"canaries": CANARIES}]
    for other in (central_manifest(), local(audit={"canaries": 200})):
        assert not any(text.text == texts.CANARIES for text in explained(other)[0].paragraphs["composition"])


def test_under_central_the_signal_is_that_of_the_clients_that_are_drawn() -> None:
    found, _shown = explained(central_manifest(), clients=CLIENTS)
    assert found.noise is not None
    assert found.noise.single == pytest.approx(0.9345 * math.sqrt(16) / (0.5 * CLIENTS))
    assert found.noise.whole == pytest.approx(found.noise.single / math.sqrt(2))


def test_with_a_moving_clip_the_noise_is_that_of_the_sum() -> None:
    clip = {"quantile": 0.5, "learning_rate": 0.2, "bit_noise": 2.0}
    manifest = central_manifest(adaptive_clip=clip)
    found, _shown = explained(manifest, PRICE | {"clip_noise_multiplier": 1.869}, clients=CLIENTS)
    assert found.noise is not None
    assert found.noise.single == pytest.approx(1.869 * math.sqrt(16) / (0.5 * CLIENTS))


@pytest.mark.parametrize(("ratio", "warned"), [(0.99, False), (1.01, True)])
def test_where_the_noise_is_longer_than_the_signal_no_learning_is_expected(
    ratio: float, *, warned: bool
) -> None:
    manifest = central_manifest(cohort={"kind": "everyone"})
    price = PRICE | {"noise_multiplier": ratio * CLIENTS * math.sqrt(2) / 4.0, "epsilon": 1.0}
    found, _shown = explained(manifest, price, clients=CLIENTS)
    assert ("no_learning_expected" in found.warnings) is warned


def test_a_weak_promise_and_a_large_delta_are_said() -> None:
    found, _shown = explained(local(delta=1e-3), PRICE | {"delta": 1e-3})
    assert found.warnings == ["weak_promise", "delta_large"]
    found, _shown = explained(local(), PRICE | {"epsilon": 1.0})
    assert found.warnings == []


def test_a_person_in_several_data_sets_is_told_the_larger_epsilon_and_its_attack() -> None:
    price = PRICE | {"epsilon": 1.0, "epsilon_by_silos": {"1": 1.0, "3": 2.00001}}
    found, shown = explained(local(unit="person", person=PERSON), price)
    assert "For one person in 3 data sets: 2.0001." in point(shown, "epsilon")
    assert found.attack is not None
    assert found.attack.in_silos["3"] == greatest_true_positive_rate(epsilon=2.00001, delta=1e-5)
    assert "the field author, at most 5 of them" in shown.protected


def test_a_draft_is_explained_without_numbers() -> None:
    found, shown = explained(local(), None)
    assert (shown.claimed, shown.attack, shown.noise_to_signal, shown.epsilon) == (False, None, None, None)
    assert found.warnings == ["not_priced"]
    assert "at most 8.0" in point(shown, "epsilon")


def test_without_a_mechanism_nothing_is_protected_from_anybody() -> None:
    price = dict.fromkeys(PRICE) | {"epsilon_by_silos": {}}
    found, shown = explained(local(**OPEN), price)
    assert (shown.claimed, found.warnings) == (False, ["no_privacy"])
    assert shown.protected.startswith("Nothing.")
    assert shown.from_whom == "From nobody."
    assert point(shown, "epsilon") == "None: nothing is claimed."


def test_a_secret_cohort_is_named_as_what_the_promise_rests_on() -> None:
    _found, drawn = explained(central_manifest(), clients=CLIENTS)
    _found, everyone = explained(central_manifest(cohort={"kind": "everyone"}), clients=CLIENTS)
    assert "do not learn which clients were drawn" in drawn.from_whom
    assert "do not learn which clients were drawn" not in everyone.from_whom
    assert "trusted" in drawn.from_whom
    assert "trusted" not in explained(local())[1].from_whom


@pytest.mark.parametrize("manifest", [local(), central_manifest(), local(unit="person", person=PERSON)])
def test_every_point_of_the_guideline_is_answered(manifest: dict[str, Any]) -> None:
    _found, shown = explained(manifest)
    assert [one.point for one in shown.nist_sp_800_226] == list(texts.NIST_TITLES)
    assert all(one.text and "{" not in one.text for one in shown.nist_sp_800_226)


def test_epsilon_is_shown_rounded_up_and_so_is_what_it_allows() -> None:
    _found, shown = explained(local())
    assert "7.9991 for the whole run" in point(shown, "epsilon")
    # e^7.99904 = 2978.096
    assert "more than 2980 times" in point(shown, "epsilon")


def test_the_page_holds_what_the_json_says_and_nothing_that_could_run() -> None:
    _found, shown = explained(local())
    html = page(shown)
    assert "a &lt;run&gt;" in html
    assert "<run>" not in html
    assert not re.search(r"<script|src=|href=|https?:", html)
    assert len(re.findall(r"<dt>", html)) == len(texts.NIST_TITLES)
    assert "@media print" in html
    assert "'unsafe-inline'" not in POLICY


def test_texts_name_only_places_that_are_filled() -> None:
    known = {
        "name",
        "steps",
        "percent",
        "single",
        "whole",
        "epsilon",
        "delta",
        "accountant",
        "factor",
        "rate",
    }
    known |= {"silos", "id_field", "records_cap", "clip_norm", "multiplier", "cap", "n_max", "canaries"}
    for value in vars(texts).values():
        for text in value.values() if isinstance(value, dict) else [value]:
            if isinstance(text, str) and not text.startswith("/"):
                assert {place for _a, place, _b, _c in string.Formatter().parse(text) if place} <= known


@pytest.mark.parametrize(
    ("accept", "html"),
    [
        (None, False),
        ("*/*", False),
        ("application/json", False),
        ("text/html", True),
        ("text/html,application/xhtml+xml,*/*;q=0.8", True),
        ("text/html;q=0.5, application/json", False),
        ("application/json;q=0.5, text/html;q=0.9", True),
        ("text/html;q=x", False),
    ],
)
def test_a_page_goes_to_who_prefers_one(accept: str | None, *, html: bool) -> None:
    assert prefers_page(accept) is html


def point(shown: ExplanationOut, name: str) -> str:
    return next(one.text for one in shown.nist_sp_800_226 if one.point == name)
