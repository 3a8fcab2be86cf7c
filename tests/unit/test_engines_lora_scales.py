"""Ranks and alphas by module as PEFT reads them; pairs read from files; norms by r x r work."""

import math
from typing import Any

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from peft import LoraConfig, get_peft_model
from torch import Tensor, nn

from engines.lora.adapter import peft_config
from engines.lora.export import merged
from engines.lora.factors import Pair, dense, inner, norm, pairs_of, tensors_of
from engines.lora.patterns import LoraPattern
from engines.lora.scaling import LoraScale, factor_of, module_of
from tests.unit.lora_rounds import HEAD, MODULE, A, B, normal, off

PATTERNS: list[dict[str, Any]] = [
    {},
    {"rank_pattern": {"value": 2}},
    {"alpha_pattern": {"0.value": 3.0}},
    {"rank_pattern": {"1.query": 6, "value": 2}, "alpha_pattern": {"query": 5.0}},
]


class Block(nn.Module):
    """Two linear layers with names as in attention."""

    def __init__(self) -> None:
        super().__init__()
        self.query, self.value = nn.Linear(12, 16), nn.Linear(16, 12)

    def forward(self, states: Tensor) -> Tensor:
        out: Tensor = self.value(self.query(states))
        return out


@pytest.mark.parametrize("patterns", PATTERNS)
@pytest.mark.parametrize("rank_stabilized", [False, True])
def test_every_module_has_the_rank_and_scale_that_peft_gives_it(
    patterns: dict[str, Any], rank_stabilized: bool
) -> None:
    ours = LoraPattern(4, 8.0, **patterns, rank_stabilized=rank_stabilized)
    config = LoraConfig(
        r=4, lora_alpha=8.0, target_modules=["query", "value"], use_rslora=rank_stabilized, **patterns
    )
    model = get_peft_model(nn.Sequential(Block(), Block()), config)
    seen = 0
    for name, layer in model.named_modules():
        if hasattr(layer, "lora_A"):
            scale = ours.at(name)
            assert layer.scaling["default"] == pytest.approx(scale.factor, rel=1e-15)
            assert layer.lora_A["default"].weight.shape[0] == scale.rank
            seen += 1
    assert seen == 4


@pytest.mark.parametrize("patterns", PATTERNS)
def test_merged_weights_are_those_that_peft_merges(patterns: dict[str, Any]) -> None:
    config = LoraConfig(r=4, lora_alpha=8.0, target_modules=["query", "value"], use_rslora=True, **patterns)
    base = nn.Sequential(Block(), Block())
    before = {name: tensor.clone() for name, tensor in base.state_dict().items()}
    model = get_peft_model(base, config)
    sent: dict[str, Tensor] = {}
    for number, (name, parameter) in enumerate(sorted(model.named_parameters())):
        if ".lora_" in name:
            parameter.data.copy_(normal(*parameter.shape, seed=number))
            sent[name.replace(".default", "")] = parameter.data.clone()
    pairs = pairs_of(sent, LoraPattern(4, 8.0, **patterns, rank_stabilized=True))
    after = model.merge_and_unload().state_dict()
    assert len(pairs) == 4
    for module, pair in pairs.items():
        weight = f"{module.removeprefix('base_model.model.')}.weight"
        assert torch.allclose(merged(before[weight], pair)[0], after[weight], atol=1e-5)


def test_two_keys_that_say_different_things_of_a_module_are_refused() -> None:
    pattern = LoraPattern(4, 8.0, rank_pattern={"query": 2, "self.query": 3, "1.attention.self.query": 3})
    assert pattern.at("bert.other.query").rank == 2
    with pytest.raises(ValueError, match="different values"):
        pattern.at(MODULE)


def test_a_key_is_the_end_of_a_path_at_a_dot() -> None:
    pattern = LoraPattern(4, 8.0, rank_pattern={"query": 2})
    assert pattern.at("bert.subquery").rank == 4
    assert pattern.at("query").rank == 2


@pytest.mark.parametrize("key", ["", ".query", "que.*", "(a+)+$", "^query", "a b", "query."])
def test_a_key_that_is_more_than_a_path_is_refused(key: str) -> None:
    with pytest.raises(ValueError, match="path"):
        LoraPattern(4, 8.0, rank_pattern={key: 2})
    with pytest.raises(ValueError, match="path"):
        LoraPattern(4, 8.0, alpha_pattern={key: 2.0})


@pytest.mark.parametrize("value", [0.0, -1.0, math.nan, math.inf])
def test_an_alpha_or_rank_out_of_range_is_refused_in_a_pattern_too(value: float) -> None:
    with pytest.raises(ValueError, match="LoRA scale"):
        LoraPattern(4, 8.0, alpha_pattern={"query": value})
    with pytest.raises(ValueError, match="LoRA scale"):
        LoraPattern(4, value)
    with pytest.raises(ValueError, match="LoRA scale"):
        LoraPattern(4, 8.0, rank_pattern={"query": 0})


def test_the_scale_is_alpha_over_r_or_over_its_root() -> None:
    assert LoraScale(16, 8.0).factor == 0.5
    assert LoraScale(16, 8.0, rank_stabilized=True).factor == 2.0


def test_the_configuration_carries_patterns_and_stabilized_ranks() -> None:
    lora = {
        "rank": 4,
        "alpha": 8.0,
        "layers": [1],
        "target_modules": ["query"],
        "modules_to_save": [],
        "rank_pattern": {"query": 2},
        "alpha_pattern": {"query": 3.0},
        "rank_stabilized": True,
    }
    written = peft_config(
        {"lora": lora, "task": {"kind": "sequence_classification"}, "base_model": {"name": "tiny"}}
    )
    assert written["rank_pattern"] == {"query": 2}
    assert written["alpha_pattern"] == {"query": 3.0}
    assert written["use_rslora"] is True


# Pairs


def test_a_file_s_factors_are_paired_by_name_even_where_the_shapes_could_be_exchanged() -> None:
    a, b = normal(4, 4, seed=1), normal(4, 4, seed=2)
    pairs = pairs_of({B: b, HEAD: torch.ones(2), A: a}, LoraScale(4, 8.0))
    assert list(pairs) == [MODULE]
    assert off(dense(pairs[MODULE]), 2.0 * b @ a) <= 1e-15
    assert (factor_of(A), factor_of(B), factor_of(HEAD)) == ("A", "B", None)
    with pytest.raises(ValueError, match="no LoRA factor"):
        module_of(HEAD)


@pytest.mark.parametrize(
    ("tensors", "match"),
    [
        ({A: torch.ones(4, 3)}, "missing"),
        ({B: torch.ones(3, 4)}, "missing"),
        ({A: torch.ones(2, 3), B: torch.ones(3, 2)}, "rank 2, not 4"),
        ({A: torch.ones(4, 3), B: torch.ones(3, 2)}, "no pair"),
        ({A: torch.ones(4, 3), B: torch.ones(3)}, "no pair"),
        ({A: torch.ones(4, 3), B: torch.ones(3, 4, dtype=torch.int64)}, "floating"),
        ({A: torch.ones(4, 3), B: torch.full((3, 4), math.nan)}, "finite"),
    ],
)
def test_factors_that_are_no_pair_are_refused(tensors: dict[str, Tensor], match: str) -> None:
    with pytest.raises(ValueError, match=match):
        pairs_of(tensors, LoraScale(4, 8.0))


def test_a_scale_that_is_not_finite_is_refused() -> None:
    with pytest.raises(ValueError, match="finite"):
        Pair(torch.ones(3, 2), torch.ones(2, 3), math.nan)


def test_a_pair_is_written_in_the_scale_that_the_file_will_say() -> None:
    """Invariant I9: another rank or rsLoRA, the same weight change."""
    pair = Pair(normal(7, 4, seed=1), normal(4, 9, seed=2), 3.0)
    for scale in (LoraScale(4, 8.0), LoraScale(4, 8.0, rank_stabilized=True)):
        file = tensors_of({MODULE: pair}, scale, dtype=torch.float64)
        assert list(file) == [A, B]
        assert off(dense(pairs_of(file, scale)[MODULE]), dense(pair)) <= 1e-15
    with pytest.raises(ValueError, match="rank 4, not 5"):
        tensors_of({MODULE: pair}, LoraScale(5, 8.0), dtype=torch.float64)


@given(
    ranks=st.tuples(st.integers(1, 6), st.integers(1, 6)),
    shape=st.tuples(st.integers(1, 12), st.integers(1, 12)),
    seed=st.integers(0, 1000),
)
@settings(max_examples=60, deadline=None)
def test_norms_and_inner_products_need_no_dense_product(
    ranks: tuple[int, int], shape: tuple[int, int], seed: int
) -> None:
    """Invariant I8."""
    one, other = (
        Pair(
            normal(shape[0], rank, seed=4 * seed + 2 * number),
            normal(rank, shape[1], seed=4 * seed + 2 * number + 1),
            0.5 + number,
        )
        for number, rank in enumerate(ranks)
    )
    sizes = float(dense(one).norm()), float(dense(other).norm())
    factors = [float(pair.b.norm() * pair.a.norm()) * pair.scale for pair in (one, other)]
    assert norm(one) == pytest.approx(sizes[0], rel=1e-7, abs=1e-7 * factors[0])
    wanted = float((dense(one) * dense(other)).sum())
    assert inner(one, other) == pytest.approx(wanted, abs=1e-13 * factors[0] * factors[1])


def test_pairs_of_other_shapes_have_no_inner_product() -> None:
    with pytest.raises(ValueError, match="inner product"):
        inner(Pair(torch.ones(3, 1), torch.ones(1, 3), 1.0), Pair(torch.ones(3, 1), torch.ones(1, 4), 1.0))
