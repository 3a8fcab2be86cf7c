"""Llama, BERT and GPT-2: exact gradients an example, round trips through PEFT, and what is refused."""

import json
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch
from opacus.grad_sample import GradSampleHooks
from peft import LoraConfig, PeftModel
from safetensors.torch import save_file
from tokenizers import Tokenizer
from tokenizers.models import WordLevel
from tokenizers.pre_tokenizers import Whitespace
from torch import Tensor
from transformers import (
    AutoModelForSequenceClassification,
    AutoModelForTokenClassification,
    AutoTokenizer,
    GPT2Config,
    GPT2Model,
    LlamaConfig,
    LlamaModel,
    PreTrainedModel,
    PreTrainedTokenizerFast,
)

from cli.templates import Shape, manifest_for
from client.errors import ClientError
from client.trainer import train_round
from engines.lora.adapter import peft_config
from engines.privacy.clipping import clip_per_sample
from modelling import adapters
from modelling.adapters import adapter_state, load_adapter, trained_parameters
from modelling.cache import CachedExamples
from modelling.errors import ModelRefused
from modelling.evaluation import logits_of
from modelling.gradients import per_example_gradients, per_example_hooks
from modelling.loss import per_example_loss
from modelling.spec import ModelSpec
from modelling.trained import TrainedPart
from tests.unit.tiny_model import (
    WORDS,
    manifest_of,
    shaken,
    texts_and_labels,
    trained_part_of,
    write_tiny_bert,
)

SPECIAL = ("[PAD]", "[UNK]")


def _write_decoder(folder: Path, model: Callable[[], PreTrainedModel]) -> Path:
    with torch.random.fork_rng():
        torch.manual_seed(0)
        model().save_pretrained(folder)
    vocabulary = {word: number for number, word in enumerate(SPECIAL + WORDS)}
    tokenizer = Tokenizer(WordLevel(vocabulary, unk_token="[UNK]"))
    tokenizer.pre_tokenizer = Whitespace()
    fast = PreTrainedTokenizerFast(
        tokenizer_object=tokenizer,
        pad_token="[PAD]",
        unk_token="[UNK]",
        model_input_names=["input_ids", "attention_mask"],
    )
    fast.save_pretrained(folder)
    return folder


def write_tiny_llama(folder: Path, *, key_value_heads: int) -> Path:
    config = LlamaConfig(
        vocab_size=len(SPECIAL) + len(WORDS),
        hidden_size=32,
        intermediate_size=48,
        num_hidden_layers=3,
        num_attention_heads=4,
        num_key_value_heads=key_value_heads,
        max_position_embeddings=32,
        initializer_range=0.2,
        pad_token_id=0,
    )
    return _write_decoder(folder, lambda: LlamaModel(config))


def write_tiny_gpt2(folder: Path) -> Path:
    config = GPT2Config(
        vocab_size=len(SPECIAL) + len(WORDS),
        n_embd=32,
        n_layer=3,
        n_head=4,
        n_positions=32,
        initializer_range=0.2,
        pad_token_id=0,
        bos_token_id=1,
        eos_token_id=1,
    )
    return _write_decoder(folder, lambda: GPT2Model(config))


@pytest.fixture(scope="module")
def bases(tmp_path_factory: pytest.TempPathFactory) -> dict[str, Path]:
    folder = tmp_path_factory.mktemp("bases")
    return {
        "llama": write_tiny_llama(folder / "llama", key_value_heads=4),
        "llama-gqa": write_tiny_llama(folder / "llama-gqa", key_value_heads=2),
        "gpt2": write_tiny_gpt2(folder / "gpt2"),
        "bert": write_tiny_bert(folder / "bert"),
    }


@pytest.fixture(autouse=True)
def exact_arithmetic(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("DPFL_BF16", "off")


LLAMA_LINEAR = ["q_proj", "k_proj", "v_proj", "o_proj", "gate_proj", "up_proj", "down_proj"]
GPT2_LINEAR = ["c_attn", "attn.c_proj", "mlp.c_proj", "c_fc"]
BERT_LINEAR = ["query", "key", "value", "attention.output.dense", "intermediate.dense"]
MATRIX = [
    ("llama", ["q_proj", "v_proj"], "model", {}),
    ("llama", ["q_proj", "v_proj"], "mean", {"method": "fedit"}),
    ("llama", LLAMA_LINEAR, "model", {"layers": [0, 1, 2]}),
    ("llama-gqa", ["q_proj", "v_proj"], "model", {"layers": [1, 2]}),
    ("llama-gqa", LLAMA_LINEAR, "mean", {}),
    ("gpt2", ["c_attn"], "model", {}),
    ("gpt2", ["c_attn"], "mean", {"method": "fedit", "layers": [0, 1, 2]}),
    ("gpt2", GPT2_LINEAR, "model", {"layers": [1, 2]}),
    ("bert", ["query", "value"], "model", {"modules_to_save": ["classifier", "pooler"]}),
    ("bert", BERT_LINEAR, "model", {"layers": [0, 1, 2]}),
]


def plan_for(base: Path, targets: list[str], *, pooling: str, **lora: Any) -> dict[str, Any]:
    architecture = json.loads((base / "config.json").read_text())["model_type"]
    head = (
        "score"
        if architecture == "llama" or (architecture == "gpt2" and pooling == "model")
        else "classifier"
    )
    manifest = manifest_of(base, **({"target_modules": targets, "modules_to_save": [head]} | lora))
    manifest["base_model"]["architecture"] = architecture
    manifest["task"]["pooling"] = pooling
    return manifest


def ready(base: Path, targets: list[str], *, pooling: str, **lora: Any) -> tuple[TrainedPart, CachedExamples]:
    manifest = plan_for(base, targets, pooling=pooling, **lora)
    part, cache, adapter = trained_part_of(manifest, base, count=12)
    load_adapter(part.model, shaken(adapter))
    return part, cache


def one_by_one(part: TrainedPart, cache: CachedExamples) -> list[Tensor]:
    parameters = list(trained_parameters(part.model).values())
    rows = []
    for position in range(len(cache)):
        alone = cache.take(torch.tensor([position]))
        loss = per_example_loss(part(alone.hidden, alone.mask), alone.labels)[0]
        rows.append(torch.autograd.grad(loss, parameters))
    return [torch.stack(column) for column in zip(*rows, strict=True)]


@pytest.mark.parametrize(("name", "targets", "pooling", "lora"), MATRIX)
def test_gradients_equal_those_of_one_example_at_a_time(
    bases: dict[str, Path], name: str, targets: list[str], pooling: str, lora: dict[str, Any]
) -> None:
    part, cache = ready(bases[name], targets, pooling=pooling, **lora)
    wanted = one_by_one(part, cache)
    with per_example_hooks(part):
        found = per_example_gradients(part, cache)
    for ours, theirs in zip(found, wanted, strict=True):
        assert bool(theirs.any())
        assert float((ours - theirs).abs().max() / theirs.abs().max()) <= 1e-5


@pytest.mark.parametrize("name", ["llama-gqa", "gpt2"])
@pytest.mark.parametrize("pooling", ["mean", "model"])
def test_a_neighbour_of_any_length_changes_no_bit_of_anothers_gradient(
    bases: dict[str, Path], name: str, pooling: str
) -> None:
    targets = ["c_attn"] if name == "gpt2" else ["q_proj", "v_proj"]
    part, cache = ready(bases[name], targets, pooling=pooling)
    hidden, mask = cache.hidden.clone(), cache.mask.clone()
    hidden[5], mask[5] = float("nan"), 1
    mask[7] = 0
    mask[7, 0] = 1
    other = CachedExamples(hidden=hidden, mask=mask, labels=cache.labels)
    with per_example_hooks(part):
        before = per_example_gradients(part, cache)
        after = per_example_gradients(part, other)
    rest = [row for row in range(len(cache)) if row not in {5, 7}]
    assert all(torch.equal(one[rest], two[rest]) for one, two in zip(before, after, strict=True))
    assert not clip_per_sample(after, 1.0)[5].any()


@pytest.mark.parametrize("name", ["llama", "gpt2"])
def test_a_round_trains_and_an_empty_batch_adds_its_noise(bases: dict[str, Path], name: str) -> None:
    targets = ["c_attn"] if name == "gpt2" else LLAMA_LINEAR
    manifest = plan_for(bases[name], targets, pooling="model")
    part, cache, adapter = trained_part_of(manifest, bases[name], count=12)
    for examples in (cache, cache.take(torch.zeros(0, dtype=torch.int64))):
        delta = train_round(part, examples, adapter, manifest=manifest)
        assert set(delta) == set(adapter)
        assert all(bool(tensor.any()) and bool(tensor.isfinite().all()) for tensor in delta.values())


@pytest.mark.filterwarnings("ignore:`is_gradient_checkpointing` is deprecated")
@pytest.mark.parametrize("row", [MATRIX[number] for number in (0, 2, 4, 5, 6, 7)])
def test_a_release_loads_with_plain_peft_and_gives_the_same_logits(
    bases: dict[str, Path], tmp_path: Path, row: tuple[str, list[str], str, dict[str, Any]]
) -> None:
    name, targets, pooling, lora = row
    manifest = plan_for(bases[name], targets, pooling=pooling, **lora)
    part, cache, adapter = trained_part_of(manifest, bases[name], count=12)
    load_adapter(part.model, shaken(adapter))
    ours = logits_of(part, cache)
    save_file(adapter_state(part.model, trained_only=False), tmp_path / "adapter_model.safetensors")
    (tmp_path / "adapter_config.json").write_text(json.dumps(peft_config(manifest)))

    auto = AutoModelForTokenClassification if pooling == "mean" else AutoModelForSequenceClassification
    whole = auto.from_pretrained(bases[name], num_labels=2)
    model = PeftModel.from_pretrained(whole, tmp_path).eval()
    batch = AutoTokenizer.from_pretrained(bases[name])(
        texts_and_labels(12)[0], padding=True, return_tensors="pt"
    )
    with torch.no_grad():
        logits = model(**batch).logits
    mask = batch["attention_mask"].unsqueeze(-1)
    theirs = (logits * mask).sum(1) / mask.sum(1) if pooling == "mean" else logits
    assert torch.allclose(ours, theirs, atol=1e-5)
    assert float(ours.std()) > 0.05


@pytest.mark.parametrize("name", ["llama", "gpt2", "bert"])
def test_a_proposed_manifest_fits_its_base_model(bases: dict[str, Path], name: str) -> None:
    shape = Shape(labels=["ham", "spam"], text_fields=["body"], layers=[2], rank=4, method="ffa", seed=1)
    plan = manifest_for(str(bases[name]), shape, clients=2)
    assert plan["base_model"]["architecture"] == name
    assert plan["task"]["max_tokens"] == 32
    part, cache, adapter = trained_part_of(plan, bases[name], count=6)
    assert {tensor["name"] for tensor in plan["tensors"] if tensor["trained"]} == set(adapter)
    assert logits_of(part, cache).shape == (6, 2)


# --- what is refused, and why -----------------------------------------------------------------------


@pytest.mark.parametrize(
    ("name", "change"),
    [
        ("llama", {"target_modules": ["embed_tokens"]}),
        ("llama", {"target_modules": ["q_proj"], "modules_to_save": ["embed_tokens"]}),
        ("gpt2", {"target_modules": ["wte"]}),
        ("gpt2", {"target_modules": ["transformer.wpe", "c_attn"]}),
        ("llama", {"target_modules": ["q_proj"], "use_dora": True}),
    ],
)
def test_a_plan_whose_tensors_have_no_gradient_an_example_is_refused(
    bases: dict[str, Path], name: str, change: dict[str, Any]
) -> None:
    manifest = plan_for(bases[name], [], pooling="model", **change)
    with pytest.raises(ModelRefused, match="no per-example gradients") as refusal:
        ModelSpec.from_manifest(manifest)
    assert refusal.value.code == "unsupported_plan"


def test_a_target_that_is_in_a_layer_twice_is_refused(bases: dict[str, Path]) -> None:
    manifest = plan_for(bases["gpt2"], ["c_proj"], pooling="model")
    with pytest.raises(ModelRefused, match="twice"):
        trained_part_of(manifest, bases["gpt2"])


@pytest.fixture(params=["use_dora", "lora_dropout"])
def spoil(request: pytest.FixtureRequest, monkeypatch: pytest.MonkeyPatch) -> str:
    """Let PEFT build what a manifest cannot ask for."""
    member: str = request.param
    usual = adapters._lora_config

    def spoiling(spec: ModelSpec) -> LoraConfig:
        config = usual(spec)
        setattr(config, member, {"use_dora": True, "lora_dropout": 0.1}[member])
        return config

    monkeypatch.setattr(adapters, "_lora_config", spoiling)
    return member


def test_dora_and_dropout_are_refused_whatever_brought_them_in(bases: dict[str, Path], spoil: str) -> None:
    manifest = plan_for(bases["llama"], ["q_proj"], pooling="model")
    part, cache, adapter = trained_part_of(manifest, bases["llama"], count=12)
    with pytest.raises(ClientError) as refusal:
        train_round(part, cache, adapter, manifest=manifest)
    assert refusal.value.code == "unsupported_plan", spoil


@pytest.mark.parametrize("spoil", ["use_dora"], indirect=True)
def test_doras_magnitudes_get_no_gradient_an_example(bases: dict[str, Path], spoil: str) -> None:
    """Why it is refused: the hooks break on it, or leave a trained tensor without its rows."""
    part, cache = ready(bases["llama"], ["q_proj"], pooling="model")
    broken = (TypeError, NotImplementedError, ModelRefused)
    with pytest.raises(broken), per_example_hooks(part):
        per_example_gradients(part, cache)
    assert spoil == "use_dora"


def test_checkpointing_without_reentry_leaves_no_gradient_an_example(bases: dict[str, Path]) -> None:
    """Why it is refused: rows would be missing, and this is said instead of trained."""
    manifest = plan_for(bases["llama"], ["q_proj"], pooling="model")
    part, cache, adapter = trained_part_of(manifest, bases["llama"], count=12)
    body = part.model.get_base_model().model
    body.activation_checkpointing_enable({"use_reentrant": False})
    with pytest.raises(ModelRefused) as refusal, per_example_hooks(part):
        per_example_gradients(part, cache)
    assert refusal.value.code == "no_example_gradients"
    with pytest.raises(ClientError) as refused:
        train_round(part, cache, adapter, manifest=manifest)
    assert refused.value.code == "unsupported_plan"


def test_bfloat16_cannot_hold_a_clipping_bound() -> None:
    """Why bf16 trainables are refused: a clipped row stored in bfloat16 is longer than C."""
    clipped = clip_per_sample([torch.full((1, 3), 5.0)], 1.0)
    assert float(clipped.norm(dim=1).max()) <= 1.0
    assert float(clipped.to(torch.bfloat16).to(torch.float64).norm(dim=1).max()) > 1.001


def test_the_head_and_the_factors_share_one_bound(bases: dict[str, Path]) -> None:
    manifest = plan_for(bases["llama"], LLAMA_LINEAR, pooling="model")
    manifest["privacy"] |= {"clip_norm": 0.01, "noise_multiplier": 1e-6, "divisor": 1.0}
    manifest["privacy"]["examples"] = {"kind": "all"}
    manifest["training"] |= {"local_steps": 1, "learning_rate": 1.0}
    part, cache, adapter = trained_part_of(manifest, bases["llama"], count=12)
    delta = train_round(part, cache.take(torch.tensor([3])), shaken(adapter), manifest=manifest)
    whole = torch.cat([tensor.reshape(-1) for tensor in delta.values()])
    assert float(whole.norm()) == pytest.approx(0.01, rel=1e-3)
    assert sum(float(tensor.norm()) for tensor in delta.values()) > 0.01  # a bound a tensor would allow more


def test_the_hooks_of_the_library_alone_break_on_an_empty_batch(bases: dict[str, Path]) -> None:
    """Why an empty batch never enters the model."""
    part, cache = ready(bases["llama"], ["q_proj"], pooling="model")
    nobody = cache.take(torch.zeros(0, dtype=torch.int64))
    hooks = GradSampleHooks(part, loss_reduction="sum", strict=True)
    part.train()
    try:
        with pytest.raises((RuntimeError, ValueError, IndexError)):
            part(nobody.hidden, nobody.mask).sum().backward()
    finally:
        part.eval()
        hooks.cleanup()
