"""The gateway's table of robust rules says what the engines' does: the gateway cannot import it."""

import dataclasses
import itertools

import pytest

from app.rounds import suspicions
from app.runs import robust
from app.runs.manifest import Aggregation, RuleSettings, ServerOptimizer
from engines.aggregation import optimizers, selection
from engines.aggregation.detection import Measure
from engines.aggregation.permission import OnlyTheSum, Trust, require_allowed
from engines.aggregation.rules import DEFAULT_MIXING, DEFAULT_RULE, RULES, Mixing, Setting
from engines.privacy.sensitivity import NoUsefulBound
from workers.optimizing import EXTRAPOLATED

TRUSTS: tuple[Trust, ...] = ("local", "central", "distributed", "none")


def test_both_tables_have_the_same_rules_and_needs() -> None:
    assert {name: terms.need for name, terms in robust.RULES.items()} == {
        name: rule.need.text for name, rule in RULES.items()
    }
    assert {name: terms.central for name, terms in robust.RULES.items()} == {
        name: frozenset(map(str, rule.central)) for name, rule in RULES.items()
    }


@pytest.mark.parametrize("rule", sorted(RULES))
def test_both_tables_agree_on_n_against_f(rule: str) -> None:
    for n, f in itertools.product(range(60), range(30)):
        assert robust.RULES[rule].holds(n, f) == RULES[rule].need.holds(n, f), (n, f)


def test_the_gateway_refuses_what_the_engines_do_not_allow_and_nothing_else() -> None:
    for rule, mixing, trust in itertools.product(RULES, Mixing, TRUSTS):
        try:
            require_allowed(rule, mixing=mixing, trust=trust)
            allowed = True
        except (NoUsefulBound, OnlyTheSum):
            allowed = False
        assert robust.is_allowed(rule, mixing=str(mixing), trust=trust) == allowed, (rule, mixing, trust)


def test_every_setting_of_a_plan_is_one_of_the_engines() -> None:
    engines = {field.name for field in dataclasses.fields(Setting)}
    assert set(RuleSettings.model_fields) <= engines
    of_rules = {name for terms in robust.RULES.values() for name in terms.takes}
    assert of_rules.union(*robust.OF_MIXING.values()) == set(RuleSettings.model_fields)
    assert robust.MOST_REMOVED_BY_MDA == selection.MOST_REMOVED_BY_MDA


def test_measures_that_the_gateway_reads_in_evidence_are_the_engines() -> None:
    assert {suspicions.NORM, suspicions.TWIN} == {Measure.NORM, Measure.TWIN}


def test_mixings_optimizers_and_their_constants_are_the_engines() -> None:
    mixing = Aggregation.model_json_schema()["properties"]["mixing"]
    assert set(mixing["enum"]) == set(map(str, Mixing))
    schema = ServerOptimizer.model_json_schema()["properties"]
    assert set(schema["kind"]["enum"]) == set(map(str, optimizers.Optimizer)) - {"fedavg"} | {EXTRAPOLATED}
    usual = optimizers.Server(kind=optimizers.Optimizer.ADAM)
    for name in ("rate", "momentum", "decay", "adaptivity"):
        assert schema[name]["default"] == getattr(usual, name)


def test_the_default_of_a_new_plan_is_the_engines_default() -> None:
    found = robust.default_aggregation(trust="local", min_updates=8)
    assert (found.rule, found.mixing, found.faulty) == (DEFAULT_RULE, DEFAULT_MIXING, 2)
