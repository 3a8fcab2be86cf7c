"""LoRA without PEFT: seeded factors, exact scaling, whole adapters, and PEFT's own format."""

import hashlib
import json
import math
from pathlib import Path
from typing import Any

import pytest
import torch
from peft import LoraConfig, PeftModel, get_peft_model
from safetensors.torch import save_file
from torch import Tensor
from transformers import BertConfig, BertForSequenceClassification

from engines.lora.adapter import full_adapter, initial_adapter, peft_config
from engines.lora.scaling import LoraScale
from engines.lora.seeding import seeded_a

A = "base_model.model.bert.encoder.layer.1.attention.self.query.lora_A.weight"
B = "base_model.model.bert.encoder.layer.1.attention.self.query.lora_B.weight"
BIAS = "base_model.model.classifier.bias"
HEAD = "base_model.model.classifier.weight"


def listed(*, a_trained: bool = False) -> list[dict[str, Any]]:
    return [
        {"name": A, "shape": [4, 16], "trained": a_trained},
        {"name": B, "shape": [16, 4], "trained": True},
        {"name": BIAS, "shape": [2], "trained": True},
        {"name": HEAD, "shape": [2, 16], "trained": True},
    ]


MANIFEST: dict[str, Any] = {
    "task": {"kind": "sequence_classification"},
    "base_model": {"name": "tiny"},
    "lora": {
        "method": "ffa",
        "rank": 4,
        "alpha": 8.0,
        "target_modules": ["query"],
        "layers": [1],
        "modules_to_save": ["classifier"],
        "seed": 1,
    },
}


def generator(seed: int) -> torch.Generator:
    return torch.Generator().manual_seed(seed)


def normal(*shape: int, seed: int) -> Tensor:
    return torch.randn(*shape, generator=generator(seed), dtype=torch.float64)


def test_a_seed_gives_the_same_factor_on_every_machine() -> None:
    factor = seeded_a(1, A, (8, 384))
    assert (factor.dtype, tuple(factor.shape)) == (torch.float32, (8, 384))
    assert (
        hashlib.sha256(factor.numpy().astype("<f4").tobytes()).hexdigest()
        == "8de9802290ae48a3ebc1bf2fe9c5791d62f408eb3f5c7508977555b834b86f9d"
    )


def test_a_factor_is_uniform_within_pefts_own_bound() -> None:
    """Kaiming uniform with a = sqrt 5: variance 1 / (3 k), no value beyond 1 / sqrt k."""
    factor = seeded_a(7, A, (64, 400)).double()
    assert float(factor.abs().max()) <= 1 / math.sqrt(400)
    assert float(factor.abs().max()) >= 0.999 / math.sqrt(400)
    assert float(factor.var()) == pytest.approx(1 / (3 * 400), rel=0.02)
    assert abs(float(factor.mean())) < 4 / math.sqrt(3 * 400 * factor.numel())


def test_other_seeds_and_other_names_give_independent_factors() -> None:
    factors = torch.stack([seeded_a(1, A, (8, 999)), seeded_a(2, A, (8, 999)), seeded_a(1, B, (8, 999))])
    correlations = torch.corrcoef(factors.reshape(3, -1).double()) - torch.eye(3, dtype=torch.float64)
    assert float(correlations.abs().max()) < 4 / math.sqrt(8 * 999)


def test_a_smaller_rank_is_the_top_of_a_larger_one() -> None:
    assert torch.equal(seeded_a(3, A, (4, 100)), seeded_a(3, A, (16, 100))[:4])


@pytest.mark.parametrize("seed", [-1, 2**63])
def test_a_seed_out_of_range_is_refused(seed: int) -> None:
    with pytest.raises(ValueError, match="seed"):
        seeded_a(seed, A, (1, 1))


@pytest.mark.parametrize("shape", [(4,), (0, 3), (3, 0), (1, 2, 3)])
def test_a_factor_that_is_no_matrix_is_refused(shape: tuple[int, ...]) -> None:
    with pytest.raises(ValueError, match="dimensions"):
        seeded_a(1, A, shape)


@pytest.mark.parametrize(("rank", "alpha"), [(0, 1.0), (1, 0.0), (1, math.nan), (1, math.inf), (1, -1.0)])
def test_a_scale_without_rank_or_alpha_is_refused(rank: int, alpha: float) -> None:
    with pytest.raises(ValueError, match="LoRA scale"):
        LoraScale(rank, alpha)


def test_the_first_adapter_changes_nothing_and_holds_the_seeded_factors() -> None:
    adapter = initial_adapter(listed(), 1)
    assert list(adapter) == [A, B, BIAS, HEAD]
    assert torch.equal(adapter[A], seeded_a(1, A, (4, 16)))
    assert all(float(adapter[name].abs().max()) == 0.0 for name in (B, BIAS, HEAD))
    assert all(tensor.dtype == torch.float32 for tensor in adapter.values())


def test_a_rounds_state_leaves_frozen_factors_out_and_keeps_trained_ones() -> None:
    assert list(initial_adapter(listed(), 1, trained_only=True)) == [B, BIAS, HEAD]
    assert list(initial_adapter(listed(a_trained=True), 1, trained_only=True)) == [A, B, BIAS, HEAD]


def test_a_whole_adapter_is_the_trained_tensors_and_the_seeded_factors() -> None:
    trained = {B: torch.ones(16, 4), BIAS: torch.ones(2), HEAD: torch.ones(2, 16)}
    whole = full_adapter(trained, tensors=listed(), seed=1)
    assert list(whole) == [A, B, BIAS, HEAD]
    assert torch.equal(whole[A], seeded_a(1, A, (4, 16)))
    assert torch.equal(whole[B], trained[B])


@pytest.mark.parametrize(
    "change",
    [{B: None}, {A: torch.ones(4, 16)}, {B: torch.ones(4, 16)}, {B: torch.ones(16, 4, dtype=torch.float64)}],
)
def test_trained_tensors_that_are_not_the_manifests_are_refused(change: dict[str, Tensor | None]) -> None:
    trained: dict[str, Tensor | None] = {B: torch.ones(16, 4), BIAS: torch.ones(2), HEAD: torch.ones(2, 16)}
    given = {name: tensor for name, tensor in (trained | change).items() if tensor is not None}
    with pytest.raises(ValueError, match=r"trained tensors|expected float32"):
        full_adapter(given, tensors=listed(), seed=1)


# PEFT 0.21 still asks transformers 5.24 by an attribute's old name.
PEFT_ASKS_BY_AN_OLD_NAME = pytest.mark.filterwarnings(
    "ignore:.is_gradient_checkpointing. is deprecated:FutureWarning"
)


@pytest.fixture
def base() -> BertForSequenceClassification:
    torch.manual_seed(0)
    return BertForSequenceClassification(
        BertConfig(
            hidden_size=16,
            num_hidden_layers=2,
            num_attention_heads=2,
            intermediate_size=32,
            vocab_size=50,
            num_labels=2,
        )
    ).eval()


@PEFT_ASKS_BY_AN_OLD_NAME
def test_the_configuration_is_what_peft_itself_writes(
    base: BertForSequenceClassification, tmp_path: Path
) -> None:
    model = get_peft_model(
        base,
        LoraConfig(
            task_type="SEQ_CLS",
            r=4,
            lora_alpha=8.0,
            lora_dropout=0.0,
            target_modules=["query"],
            layers_to_transform=[1],
            modules_to_save=["classifier"],
        ),
    )
    model.save_pretrained(tmp_path)
    theirs = json.loads((tmp_path / "adapter_config.json").read_text())
    ours = peft_config(MANIFEST)
    named_by_us = {"base_model_name_or_path", "modules_to_save"}  # PEFT doubles the heads; it had no name
    assert {key: theirs[key] for key in set(ours) - named_by_us} == {
        key: ours[key] for key in set(ours) - named_by_us
    }
    assert set(ours["modules_to_save"]) <= set(theirs["modules_to_save"])
    unsaid = LoraConfig().to_dict()
    assert {key: theirs[key] for key in set(theirs) - set(ours)} == {
        key: unsaid[key] for key in set(theirs) - set(ours)
    }


@PEFT_ASKS_BY_AN_OLD_NAME
def test_peft_loads_an_adapter_made_without_peft(base: BertForSequenceClassification, tmp_path: Path) -> None:
    trained = {
        B: normal(16, 4, seed=1).float(),
        BIAS: normal(2, seed=2).float(),
        HEAD: normal(2, 16, seed=3).float(),
    }
    whole = full_adapter(trained, tensors=listed(), seed=1)
    save_file(whole, tmp_path / "adapter_model.safetensors")
    (tmp_path / "adapter_config.json").write_text(json.dumps(peft_config(MANIFEST)))
    model = PeftModel.from_pretrained(base, str(tmp_path)).eval()
    held = model.state_dict()
    for name, tensor in whole.items():
        inner = name.replace(".weight", ".default.weight") if ".lora_" in name else name
        inner = inner.replace("classifier.", "classifier.modules_to_save.default.")
        assert torch.equal(held[inner], tensor)


def test_a_task_without_a_peft_type_is_refused() -> None:
    with pytest.raises(ValueError, match="no adapter configuration"):
        peft_config(MANIFEST | {"task": {"kind": "image_generation"}})
