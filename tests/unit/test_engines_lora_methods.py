"""The table of methods: which trust, mode, ranks and rules each goes with, and what is offered instead."""

import itertools
from typing import Any

import pytest

from engines.lora.methods import METHODS, Combination, Mode, Trust, default_method, impossible

TRUSTS: tuple[Trust, ...] = ("local", "central", "distributed", "none")
MODES: tuple[Mode, ...] = ("plain", "secagg", "grouped_secagg")
RULES = ("mean", "krum", "geometric_median", "trimmed_mean", "median", "bulyan")
LINEAR = ("ffa", "fedsb", "rolora")


def combinations() -> list[Combination]:
    return [
        Combination(name, trust, mode, mixed_ranks=mixed, rule=rule, control_variates=variates)
        for name, trust, mode, mixed, rule, variates in itertools.product(
            METHODS, TRUSTS, MODES, (False, True), RULES, (False, True)
        )
    ]


def test_every_method_of_the_field_is_in_the_table() -> None:
    assert set(METHODS) == {
        "ffa",
        "rolora",
        "fedsb",
        "flexlora",
        "flora",
        "fedex",
        "fedit",
        "fedask",
        "fedsa",
    }
    assert {name for name, method in METHODS.items() if not method.is_exact} == {"fedit", "fedsa"}
    assert all(method.averages for method in METHODS.values())


@pytest.mark.parametrize("trust", ["central", "distributed"])
def test_where_noise_covers_a_sum_only_linear_methods_are_allowed(trust: Trust) -> None:
    for name in METHODS:
        refusal = impossible(Combination(name, trust))
        if name in LINEAR:
            assert refusal is None
        else:
            assert refusal is not None
            assert (refusal.code, refusal.alternatives) == ("lora_method_trust", LINEAR)


@pytest.mark.parametrize("trust", ["local", "none"])
def test_where_updates_are_seen_every_method_is_allowed(trust: Trust) -> None:
    assert [name for name in METHODS if impossible(Combination(name, trust)) is not None] == []


@pytest.mark.parametrize(
    ("wanted", "code", "alternatives"),
    [
        ({"method": "average"}, "lora_method_unknown", tuple(METHODS)),
        (
            {"method": "flexlora", "mode": "secagg"},
            "lora_method_secagg",
            ("ffa", "fedsb", "rolora", "fedask", "fedsa", "fedit"),
        ),
        ({"method": "flora", "mode": "grouped_secagg", "rule": "median"}, "lora_method_secagg", None),
        (
            {"method": "fedit", "mixed_ranks": True},
            "lora_method_mixed_ranks",
            ("ffa", "fedsb", "rolora", "flexlora", "fedask", "flora"),
        ),
        ({"method": "fedex", "mixed_ranks": True}, "lora_method_mixed_ranks", None),
        ({"method": "fedsa", "mixed_ranks": True}, "lora_method_mixed_ranks", None),
        (
            {"method": "flexlora", "rule": "trimmed_mean"},
            "lora_method_rule",
            ("ffa", "fedsb", "rolora", "fedsa", "fedit"),
        ),
        ({"method": "fedask", "rule": "krum"}, "lora_method_rule", None),
        (
            {"method": "rolora", "control_variates": True},
            "lora_method_control_variates",
            ("ffa", "fedsb"),
        ),
    ],
)
def test_an_impossible_combination_has_a_stable_code_and_names_what_is_possible(
    wanted: dict[str, Any], code: str, alternatives: tuple[str, ...] | None
) -> None:
    refusal = impossible(Combination(**({"trust": "local"} | wanted)))
    assert refusal is not None
    assert refusal.code == code
    assert alternatives is None or refusal.alternatives == alternatives


def test_rules_that_weigh_clients_work_on_products() -> None:
    for rule in ("mean", "krum", "multi_krum", "mda", "geometric_median"):
        assert impossible(Combination("flexlora", "local", rule=rule)) is None


def test_every_alternative_is_possible_in_the_same_combination() -> None:
    for wanted in combinations():
        refusal = impossible(wanted)
        if refusal is None:
            continue
        assert "ffa" in refusal.alternatives
        assert wanted.method not in refusal.alternatives
        for name in refusal.alternatives:
            other = Combination(
                name,
                wanted.trust,
                wanted.mode,
                mixed_ranks=wanted.mixed_ranks,
                rule=wanted.rule,
                control_variates=wanted.control_variates,
            )
            assert impossible(other) is None


def test_the_default_is_possible_under_every_trust_and_mode_with_mixed_ranks() -> None:
    for trust, mode in itertools.product(TRUSTS, MODES):
        name = default_method(trust=trust, mode=mode)
        assert impossible(Combination(name, trust, mode, mixed_ranks=True)) is None
    assert default_method(trust="none") == "flexlora"
    assert default_method(trust="central") == default_method(trust="none", mode="secagg") == "ffa"
