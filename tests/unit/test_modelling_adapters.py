import json
from pathlib import Path
from typing import Any

import pytest
import torch
from peft import PeftModel, get_peft_model_state_dict
from safetensors.torch import save_file
from transformers import AutoModelForSequenceClassification, AutoModelForTokenClassification, AutoTokenizer

from engines.lora.adapter import peft_config
from engines.lora.seeding import seeded_a
from modelling.adapters import (
    adapter_parameters,
    adapter_state,
    adapter_tensors,
    build_model,
    load_adapter,
    trained_parameters,
)
from modelling.errors import ModelRefused
from modelling.evaluation import logits_of
from modelling.spec import ModelSpec
from tests.unit.tiny_model import manifest_of, shaken, texts_and_labels, trained_part_of, write_tiny_bert

QUERY = "base_model.model.bert.encoder.layer.2.attention.self.query"


@pytest.fixture(scope="module")
def tiny(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return write_tiny_bert(tmp_path_factory.mktemp("tiny"))


def build(manifest: dict[str, Any], folder: Path) -> PeftModel:
    return build_model(ModelSpec.from_manifest(manifest), folder)


@pytest.mark.parametrize("method", ["ffa", "fedit"])
@pytest.mark.parametrize("pooling", ["mean", "model"])
def test_tensors_carry_the_names_that_peft_saves(tiny: Path, method: str, pooling: str) -> None:
    manifest = manifest_of(tiny, method=method, layers=[1, 2])
    manifest["task"]["pooling"] = pooling
    saved = get_peft_model_state_dict(build(manifest, tiny))
    listed = adapter_tensors(ModelSpec.from_manifest(manifest), tiny)
    assert [(part["name"], part["shape"]) for part in listed] == [
        (name, list(saved[name].shape)) for name in sorted(saved)
    ]


def test_under_ffa_all_but_the_a_factors_are_trained(tiny: Path) -> None:
    listed = adapter_tensors(ModelSpec.from_manifest(manifest_of(tiny)), tiny)
    assert {part["name"] for part in listed if not part["trained"]} == {
        part["name"] for part in listed if ".lora_A." in part["name"]
    }
    assert sum(part["trained"] for part in listed) == 4


def test_under_fedit_every_tensor_is_trained(tiny: Path) -> None:
    listed = adapter_tensors(ModelSpec.from_manifest(manifest_of(tiny, method="fedit")), tiny)
    assert all(part["trained"] for part in listed)
    assert len(listed) == 6


def test_a_fresh_adapter_has_the_seeded_a_and_is_zero_elsewhere(tiny: Path) -> None:
    state = adapter_state(build(manifest_of(tiny, seed=7), tiny), trained_only=False)
    name = f"{QUERY}.lora_A.weight"
    assert torch.equal(state[name], seeded_a(7, name, (4, 32)))
    assert not any(bool(tensor.any()) for name, tensor in state.items() if ".lora_A." not in name)


def test_only_the_adapter_is_trainable_and_it_is_float32(tiny: Path) -> None:
    model = build(manifest_of(tiny), tiny)
    trainable = [parameter for parameter in model.parameters() if parameter.requires_grad]
    assert len(trainable) == len(trained_parameters(model)) == 4
    assert {parameter.dtype for parameter in trainable} == {torch.float32}


def test_a_layer_that_the_model_lacks_is_refused(tiny: Path) -> None:
    with pytest.raises(ModelRefused) as refusal:
        build(manifest_of(tiny, layers=[3]), tiny)
    assert refusal.value.code == "adapter_mismatch"


@pytest.mark.parametrize(
    "change",
    [
        {"target_modules": ["q_proj"]},
        {"target_modules": ["query", "q_proj"]},
        {"modules_to_save": ["classifier", "lora_B"]},
    ],
)
def test_a_module_that_the_model_lacks_or_cannot_adapt_is_refused(tiny: Path, change: dict[str, Any]) -> None:
    with pytest.raises(ModelRefused) as refusal:
        build(manifest_of(tiny, **change), tiny)
    assert refusal.value.code == "adapter_mismatch"
    assert "\n" not in str(refusal.value)


def test_a_wrong_adapter_is_refused_and_changes_nothing(tiny: Path) -> None:
    model = build(manifest_of(tiny), tiny)
    before = adapter_state(model, trained_only=False)
    good = shaken(adapter_state(model, trained_only=True))
    first = next(iter(good))
    wrong: list[tuple[str, dict[str, torch.Tensor]]] = [
        ("adapter_mismatch", {name: tensor for name, tensor in good.items() if name != first}),
        ("adapter_mismatch", good | {"surplus": torch.zeros(1)}),
        ("adapter_mismatch", good | {first: good[first].T.contiguous()}),
        ("adapter_mismatch", good | {first: good[first].double()}),
        ("non_finite", good | {first: torch.full_like(good[first], float("nan"))}),
    ]
    for code, tensors in wrong:
        with pytest.raises(ModelRefused) as refusal:
            load_adapter(model, tensors)
        assert refusal.value.code == code
    assert all(torch.equal(tensor, before[name]) for name, tensor in adapter_parameters(model).items())


def test_what_is_loaded_is_what_is_read_back(tiny: Path) -> None:
    model = build(manifest_of(tiny), tiny)
    wanted = shaken(adapter_state(model, trained_only=False))
    load_adapter(model, wanted)
    read = adapter_state(model, trained_only=False)
    assert all(torch.equal(read[name], tensor) for name, tensor in wanted.items())


@pytest.mark.filterwarnings("ignore:`is_gradient_checkpointing` is deprecated")
@pytest.mark.parametrize("method", ["ffa", "fedit"])
@pytest.mark.parametrize("pooling", ["mean", "model"])
def test_a_release_loads_with_plain_peft_and_gives_the_same_logits(
    tiny: Path, tmp_path: Path, pooling: str, method: str
) -> None:
    manifest = manifest_of(tiny, method=method)
    manifest["task"]["pooling"] = pooling
    part, cache, adapter = trained_part_of(manifest, tiny)
    load_adapter(part.model, shaken(adapter))
    ours = logits_of(part, cache)
    save_file(adapter_state(part.model, trained_only=False), tmp_path / "adapter_model.safetensors")
    (tmp_path / "adapter_config.json").write_text(json.dumps(peft_config(manifest)))

    auto = AutoModelForTokenClassification if pooling == "mean" else AutoModelForSequenceClassification
    model = PeftModel.from_pretrained(auto.from_pretrained(tiny, num_labels=2), tmp_path).eval()
    texts = texts_and_labels(24)[0]
    batch = AutoTokenizer.from_pretrained(tiny)(texts, padding=True, return_tensors="pt")
    with torch.no_grad():
        logits = model(**batch).logits
    mask = batch["attention_mask"].unsqueeze(-1)
    theirs = (logits * mask).sum(1) / mask.sum(1) if pooling == "mean" else logits
    assert torch.allclose(ours, theirs, atol=1e-5)
    assert float(ours.std()) > 0.1
