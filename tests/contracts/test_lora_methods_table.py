"""The gateway's table of LoRA methods says what the engines' does: the gateway cannot import it."""

import itertools

import pytest

from app.runs import methods, sending
from app.runs.steps import VARIATE_METHODS
from app.runs.training import Lora
from engines.lora import methods as engines
from engines.lora.ranks import Capability, NoRankFits, largest_rank
from modelling.spec import METHODS as TRAINED_BY_CLIENTS
from tests.builders import tiny_manifest

TRUSTS: tuple[engines.Trust, ...] = ("local", "central", "distributed", "none")
MODES: tuple[engines.Mode, ...] = ("plain", "secagg", "grouped_secagg")
RULES = ("mean", "trimmed_mean", "krum", "multi_krum", "mda", "geometric_median", "median", "dnc")
BESIDE = ((), ("server_optimizer",), ("canaries",), ("buffered",), ("server_optimizer", "buffered"))
NAMES = (
    "base_model.model.layer.0.query.lora_A.weight",
    "base_model.model.layer.0.query.lora_B.weight",
    "base_model.model.layer.0.query.lora_B.basis.weight",
    "base_model.model.layer.0.query.lora_B.core.weight",
    "base_model.model.classifier.weight",
)


def test_the_gateway_refuses_what_the_engines_do_not_allow_and_names_the_same_alternatives() -> None:
    assert tuple(methods.METHODS) == tuple(engines.METHODS)
    for name, trust, mode, mixed, rule, mixing, beside in itertools.product(
        engines.METHODS, TRUSTS, MODES, (False, True), RULES, ("none", "buckets"), BESIDE
    ):
        wanted = {"mixed_ranks": mixed, "rule": rule, "mixing": mixing} | dict.fromkeys(beside, True)
        theirs = engines.impossible(engines.Combination(name, trust, mode, **wanted))  # type: ignore[arg-type]
        ours = methods.impossible(methods.Wanted(name, trust, mode, **wanted))  # type: ignore[arg-type]
        assert ours == (None if theirs is None else (theirs.code, theirs.alternatives)), (name, trust, wanted)


def test_control_variates_go_with_the_methods_that_the_engines_allow_them_for() -> None:
    assert {name for name, terms in engines.METHODS.items() if terms.control_variates} == {*VARIATE_METHODS}


def test_a_manifest_can_name_every_method_and_clients_train_all_of_them() -> None:
    assert set(Lora.model_json_schema()["properties"]["method"]["enum"]) == set(engines.METHODS)
    assert set(TRAINED_BY_CLIENTS) == set(engines.METHODS)


@pytest.mark.parametrize("method", sorted(engines.METHODS))
def test_both_sides_agree_on_what_is_sent_and_at_which_shape(method: str) -> None:
    for name, number in itertools.product(NAMES, (1, 2, 3)):
        shared = methods.is_trained(method, name) and methods.is_sent(method, name, number=number)
        frozen = (method == "ffa" and ".lora_A." in name) or (
            method == "fedsb" and (".lora_A." in name or ".basis." in name)
        )
        assert shared == (not frozen and engines.is_sent(method, name, number=number)), (name, number)
        for rank in (1, 3, 8):
            assert methods.at_rank(name, (8, 8), rank) == engines.shape_at_rank(name, (8, 8), rank)


@pytest.mark.parametrize(("width", "clients"), [(None, 2), (None, 500), (6, 3), (4096, 3)])
def test_both_sides_agree_on_how_large_a_sketch_is(width: int | None, clients: int) -> None:
    plan = tiny_manifest(
        lora={"method": "fedask", "rank": 4, "sketch_width": width}, quorum={"max_updates": clients}
    )
    plan["tensors"] = [
        {"name": name, "shape": shape, "trained": True}
        for name, shape in zip(NAMES, ([4, 30], [50, 4]), strict=False)
    ]
    sizes = engines.sketched_shapes(plan)
    assert sizes == sending.sketched_shapes(plan)
    kept = min(width or 4 * clients, 30)
    assert sizes == {NAMES[0]: (kept, 30), NAMES[1]: (50, kept)}
    assert sending.TWO_TURNS == engines.TWO_TURNS


@pytest.mark.parametrize("method", ["flexlora", "fedask"])
@pytest.mark.parametrize(
    ("memory", "speed"), [(1e5, 1e4), (2e4, 1e4), (1e5, 3.0), (1e9, 1e9), (900.0, 1e9), (1e9, 0.01)]
)
def test_the_gateway_gives_the_rank_that_the_engines_formula_gives(
    memory: float, speed: float, method: str
) -> None:
    """On an adapter without a head, which the engines' formula leaves out."""
    width = 5 if method == "fedask" else None
    plan = tiny_manifest(
        privacy={"trust": "none"},
        lora={"method": method, "rank": 4, "ranks": [1, 2, 4], "sketch_width": width},
    )
    plan["round_deadline_s"] = 10.0
    plan["tensors"] = [
        {"name": NAMES[0], "shape": [4, 30], "trained": True},
        {"name": NAMES[1], "shape": [50, 4], "trained": True},
    ]
    declared = {"memory_bytes": memory, "upload_bytes_per_s": speed}
    try:
        able = Capability(memory, speed, 10.0)
        fit = largest_rank(able, method, shapes=[(50, 30)], ranks=(1, 2, 4), sketch_width=width)
        expected = fit.rank
    except NoRankFits:
        expected = None
    assert methods.rank_for(plan, declared) == expected
