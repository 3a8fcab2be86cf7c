"""Every data rule: what it denies, that it denies what nobody declared, and what it lets pass."""

import json
import re
from dataclasses import replace
from decimal import Decimal
from typing import Any

import pytest

from app.policies.rules import EXAMPLE, Asked, Denial, Rule, Rules, denials
from app.policies.schemas import DataRulesIn
from app.runs.manifest import Use
from tests.contracts.sources import ROOT

ASKED = Asked(
    purpose="spam-filtering",
    data_categories=["email", "attachments"],
    jurisdictions=["DE", "US-CA"],
    processing_region="eu-west-1",
    trust="local",
    epsilon_in_period=Decimal("2.000000001"),
    smallest_cohort=3,
)
PERIOD = {"epsilon": 2.0, "days": 30}
DENIED: list[tuple[dict[str, Any], dict[str, Any], Denial]] = [
    ({"purposes": ["research"]}, {}, Denial(Rule.PURPOSE, ["spam-filtering"], ["research"])),
    ({"purposes": []}, {}, Denial(Rule.PURPOSE, ["spam-filtering"], [])),
    ({"purposes": ["research"]}, {"purpose": None}, Denial(Rule.PURPOSE, [None], ["research"])),
    (
        {"data_categories": ["email", "calendar"]},
        {},
        Denial(Rule.DATA_CATEGORY, ["attachments", "email"], ["calendar", "email"]),
    ),
    (
        {"data_categories": ["email"]},
        {"data_categories": [None]},
        Denial(Rule.DATA_CATEGORY, [None], ["email"]),
    ),
    ({"jurisdictions": ["DE"]}, {}, Denial(Rule.JURISDICTION, ["DE", "US-CA"], ["DE"])),
    (
        {"jurisdictions": ["DE", "US-NY"]},
        {"jurisdictions": ["US"]},
        Denial(Rule.JURISDICTION, ["US"], ["DE", "US-NY"]),
    ),
    (
        {"jurisdictions": ["DE"]},
        {"jurisdictions": ["DE", None]},
        Denial(Rule.JURISDICTION, ["DE", None], ["DE"]),
    ),
    (
        {"processing_regions": ["eu-central-1"]},
        {},
        Denial(Rule.PROCESSING_REGION, ["eu-west-1"], ["eu-central-1"]),
    ),
    (
        {"processing_regions": ["eu-west-1"]},
        {"processing_region": None},
        Denial(Rule.PROCESSING_REGION, [None], ["eu-west-1"]),
    ),
    ({"trusts": ["local"]}, {"trust": "central"}, Denial(Rule.TRUST, ["central"], ["local"])),
    ({"epsilon_per_period": PERIOD}, {}, Denial(Rule.EPSILON_PER_PERIOD, 2.000000001, 2.0)),
    (
        {"epsilon_per_period": PERIOD},
        {"epsilon_in_period": None},
        Denial(Rule.EPSILON_PER_PERIOD, None, 2.0),
    ),
    ({"smallest_cohort": 4}, {}, Denial(Rule.SMALLEST_COHORT, 3, 4)),
]
ALLOWED: list[tuple[dict[str, Any], dict[str, Any]]] = [
    ({}, {"purpose": None, "data_categories": [None], "jurisdictions": [None], "trust": "none"}),
    ({"purposes": ["spam-filtering"]}, {}),
    ({"data_categories": ["attachments", "calendar", "email"]}, {}),
    ({"jurisdictions": ["DE", "US"]}, {}),
    ({"jurisdictions": ["DE", "US-CA"]}, {}),
    ({"processing_regions": ["eu-west-1"]}, {}),
    ({"trusts": ["none", "local"]}, {}),
    ({"epsilon_per_period": PERIOD}, {"epsilon_in_period": Decimal("2")}),
    ({"smallest_cohort": 3}, {}),
]


@pytest.mark.parametrize(("rules", "changes", "expected"), DENIED)
def test_a_rule_denies_with_what_was_asked_and_what_it_would_allow(
    rules: dict[str, Any], changes: dict[str, Any], expected: Denial
) -> None:
    assert denials(Rules.model_validate(rules), replace(ASKED, **changes)) == [expected]


@pytest.mark.parametrize(("rules", "changes"), ALLOWED)
def test_what_no_rule_denies_is_allowed(rules: dict[str, Any], changes: dict[str, Any]) -> None:
    assert denials(Rules.model_validate(rules), replace(ASKED, **changes)) == []


def test_every_rule_that_denies_is_named() -> None:
    nothing = {
        "purposes": [],
        "data_categories": [],
        "jurisdictions": [],
        "processing_regions": [],
        "trusts": [],
        "epsilon_per_period": PERIOD,
        "smallest_cohort": 9,
    }
    assert nothing.keys() == Rules.model_fields.keys()
    assert [one.rule for one in denials(Rules.model_validate(nothing), ASKED)] == list(Rule)


def test_the_guides_rules_and_declaration_are_what_the_server_takes() -> None:
    text = (ROOT / "docs/guides/data-rules.md").read_text("utf-8")
    rules, use = (json.loads(block) for block in re.findall(r"```json\n(.*?)```", text, re.DOTALL))
    assert DataRulesIn.model_validate(rules).rules == Rules.model_validate(EXAMPLE)
    assert Use.model_validate(use["use"]).purpose in rules["rules"]["purposes"]
