"""What clients train under each LoRA method: noise on all that they send, and a release that is the model."""

import json
from pathlib import Path
from typing import Any

import pytest
import torch
from peft import PeftModel
from safetensors.torch import load, save, save_file
from torch import Tensor
from transformers import AutoModelForTokenClassification, AutoTokenizer

from client.errors import ClientError
from client.trainer import train_round
from client.turns import Turn, at_rank, manifest_at, sent_shapes
from engines.aggregation.linear import weighted_mean
from engines.aggregation.rows import Streamed, Vectors
from engines.lora.adapter import peft_config
from engines.lora.factors import Pair
from engines.lora.methods import trains
from engines.lora.states import modules_in, parted, released, together
from modelling.adapters import load_adapter
from modelling.cache import CachedExamples
from modelling.evaluation import logits_of
from modelling.trained import TrainedPart
from tests.unit.tiny_model import manifest_of, texts_and_labels, trained_part_of, write_tiny_bert

METHODS = ("ffa", "fedsb", "rolora", "flexlora", "fedask", "flora", "fedex", "fedsa", "fedit")
TRAINING = [(method, number) for method in METHODS for number in (1, 2) if trains(method, number)]
_LAYER = "bert.encoder.layer.2.attention.self"
PATTERNS: dict[str, Any] = {
    "rank_pattern": {f"{_LAYER}.query": 6, f"{_LAYER}.value": 2},
    "alpha_pattern": {f"{_LAYER}.value": 3.0},
    "rank_stabilized": True,
}
"""One module over the run's rank and one under it, one with an alpha of its own."""
Ready = tuple[dict[str, Any], TrainedPart, CachedExamples, dict[str, Tensor]]


@pytest.fixture(scope="module")
def tiny(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return write_tiny_bert(tmp_path_factory.mktemp("tiny"))


@pytest.fixture(autouse=True)
def exact_arithmetic(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("DPFL_BF16", "off")


def ready(folder: Path, method: str, *, trust: str = "local", **lora: Any) -> Ready:
    """The model, and the state of round 1: what is sent in some round, and taken up by base weights."""
    manifest = manifest_of(folder, trust=trust, method=method, **lora)
    part, cache, adapter = trained_part_of(manifest, folder)
    listed = {one["name"] for one in manifest["tensors"] if one["trained"]}
    return manifest, part, cache, {name: one for name, one in adapter.items() if name in listed}


def base_of(manifest: dict[str, Any], *, rank: int = 3) -> dict[str, Pair]:
    generator = torch.Generator().manual_seed(5)
    return {
        module: Pair(
            0.2 * torch.randn(rows, rank, generator=generator),
            0.2 * torch.randn(rank, columns, generator=generator),
            1.0,
        )
        for module, (rows, columns) in modules_in(manifest["tensors"]).items()
    }


@pytest.mark.parametrize(("method", "number"), TRAINING)
def test_noise_of_the_planned_size_is_on_exactly_what_a_round_trains(
    tiny: Path, method: str, number: int
) -> None:
    """With nobody in any batch an update is noise alone: std z C lr / divisor in every coordinate."""
    manifest, part, cache, adapter = ready(tiny, method, rank=16)
    manifest["privacy"] |= {"noise_multiplier": 1.7, "clip_norm": 0.3, "divisor": 16}
    manifest["training"]["local_steps"] = 1
    nobody, turn = cache.take(torch.zeros(0, dtype=torch.int64)), Turn(number)
    change = train_round(part, nobody, adapter, manifest=manifest, turn=turn)
    if method == "fedask":  # whose messages are made of all that is trained
        sent = {one["name"]: tuple(one["shape"]) for one in manifest["tensors"]}
    else:
        sent = sent_shapes(manifest, turn)
    kept = {name for name in change if name not in sent}
    assert {name: tuple(one.shape) for name, one in change.items() if name in sent} == sent
    assert kept == ({name for name in change if ".lora_B." in name} if method == "fedsa" else set())
    assert (len(kept) == 2) == (method == "fedsa")
    planned = 1.7 * 0.3 * manifest["training"]["learning_rate"] / 16
    for one in change.values():
        assert float(one.double().square().mean().sqrt()) == pytest.approx(
            planned, rel=6.0 / one.numel() ** 0.5
        )


@pytest.mark.parametrize(("method", "number"), TRAINING)
def test_one_examples_whole_contribution_is_clipped_over_all_that_is_trained(
    tiny: Path, method: str, number: int
) -> None:
    """Almost without noise, one step of one example moves by at most C lr / divisor, and by that much."""
    manifest, part, cache, adapter = ready(tiny, method)
    manifest["privacy"] |= {
        "noise_multiplier": 1e-3,
        "clip_norm": 0.01,
        "divisor": 1,
        "examples": {"kind": "all"},
    }
    manifest["training"] |= {"local_steps": 1, "learning_rate": 1.0}
    change = train_round(part, cache.take(torch.tensor([0])), adapter, manifest=manifest, turn=Turn(number))
    length = float(torch.cat([one.reshape(-1) for one in change.values()]).double().norm())
    assert length == pytest.approx(0.01, rel=0.02)


@pytest.mark.filterwarnings("ignore:`is_gradient_checkpointing` is deprecated")
@pytest.mark.parametrize("patterns", [{}, PATTERNS], ids=["run", "module"])
@pytest.mark.parametrize("method", METHODS)
def test_after_private_steps_a_release_in_a_fresh_peft_model_gives_the_clients_logits(
    tiny: Path, tmp_path: Path, method: str, patterns: dict[str, Any]
) -> None:
    """Opacus and PEFT corrupt adapters together elsewhere (meta-pytorch/opacus 820)."""
    manifest, part, cache, adapter = ready(tiny, method, ranks=None, energy=None, **patterns)
    base = base_of(manifest) if method in {"flora", "fedex"} else {}
    state = together(adapter, base)
    for number in (1, 2):
        change = train_round(part, cache, state, manifest=manifest, turn=Turn(number))
        trained, base = parted(state)
        state = together({name: one + change.get(name, 0.0) for name, one in trained.items()}, base)
    trained, base = parted(state)
    part.base_weights.take_up(base)
    own = {
        one["name"]: torch.zeros(one["shape"])
        for one in manifest["tensors"]
        if method == "fedsa" and ".lora_B." in one["name"]
    }
    load_adapter(part.model, {**trained, **own})
    ours = logits_of(part, cache)
    files, ranks = released(state, tensors=manifest["tensors"], lora=manifest["lora"])
    save_file(files, tmp_path / "adapter_model.safetensors")
    (tmp_path / "adapter_config.json").write_text(json.dumps(peft_config(manifest, ranks)))
    plain = AutoModelForTokenClassification.from_pretrained(tiny, num_labels=2)
    model = PeftModel.from_pretrained(plain, tmp_path).eval()
    batch = AutoTokenizer.from_pretrained(tiny)(texts_and_labels(24)[0], padding=True, return_tensors="pt")
    with torch.no_grad():
        logits = model(**batch).logits
    mask = batch["attention_mask"].unsqueeze(-1)
    assert torch.allclose(ours, (logits * mask).sum(1) / mask.sum(1), atol=1e-5)
    assert float(ours.std()) > 1e-3


def test_base_weights_are_put_back_for_a_round_that_took_nothing_up(tiny: Path) -> None:
    """Profiles train in turn on one model: what one round adds is not there in the next."""
    manifest, part, cache, adapter = ready(tiny, "fedex", trust="none")
    first = train_round(part, cache, adapter, manifest=manifest, order_seed=1)
    merged = train_round(part, cache, together(adapter, base_of(manifest)), manifest=manifest, order_seed=1)
    again = train_round(part, cache, adapter, manifest=manifest, order_seed=1)
    assert all(torch.equal(again[name], one) for name, one in first.items())
    assert any(not torch.equal(merged[name], one) for name, one in first.items())


@pytest.mark.parametrize("method", ["ffa", "fedit", "flora"])
def test_base_factors_that_do_not_fit_are_refused(tiny: Path, method: str) -> None:
    manifest, part, cache, adapter = ready(tiny, method)
    module = next(iter(modules_in(manifest["tensors"])))
    wrong = {
        f"{module}.base_A.weight": torch.ones(2, 32 if method != "flora" else 31),
        f"{module}.base_B.weight": torch.ones(32, 2),
    }
    with pytest.raises(ClientError) as refused:
        train_round(part, cache, adapter | wrong, manifest=manifest)
    assert refused.value.code == "adapter_unusable"


@pytest.mark.parametrize("method", ["ffa", "fedsb", "rolora", "flexlora", "flora"])
def test_a_client_of_a_smaller_rank_has_the_first_corner_of_the_same_model(tiny: Path, method: str) -> None:
    """At half the rank with the same scale: what it leaves out are the last directions, and no others."""
    manifest, part, cache, adapter = ready(tiny, method, rank=4)
    generator = torch.Generator().manual_seed(8)
    state = {name: one + 0.3 * torch.randn(one.shape, generator=generator) for name, one in adapter.items()}
    for name, one in state.items():  # the last two directions say nothing
        if ".lora_B." in name:
            one[:, 2:] = 0.0
            if ".core." in name:
                one[2:] = 0.0
    load_adapter(part.model, state)
    whole = logits_of(part, cache)
    smaller = dict(manifest_at(manifest, 2))
    other, _cache, _adapter = trained_part_of(smaller, tiny)
    load_adapter(other.model, at_rank(state, 2))
    assert torch.allclose(logits_of(other, cache), whole, atol=1e-5)
    assert float(whole.std()) > 0.1


def test_an_adapter_in_bfloat16_goes_through_a_file_and_a_mean_unharmed() -> None:
    """FederatedAI/FATE 5639: no bfloat16 in NumPy; a mean of 1,000 ones stuck at 256 / 1,000 in bfloat16."""
    vectors = [load(save({"a": torch.ones(9, dtype=torch.bfloat16)}))["a"] for _client in range(1000)]
    assert vectors[0].dtype == torch.bfloat16
    mean = weighted_mean(Streamed(Vectors(vectors)))
    assert mean.tolist() == [1.0] * 9
