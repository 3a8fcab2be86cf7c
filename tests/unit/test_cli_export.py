"""`dpfl release export`: what PEFT and transformers load has the release's logits, or states its error."""

from __future__ import annotations

import dataclasses
import hashlib
import io
import json
import logging
import re
import warnings
from collections.abc import Callable, Iterator
from datetime import UTC, datetime
from pathlib import Path
from typing import Any

import pytest
import torch
from click.testing import Result
from cryptography.hazmat.primitives.asymmetric.ed25519 import Ed25519PrivateKey
from peft import PeftModel
from safetensors.torch import load_file, save
from torch import Tensor
from transformers import AutoModelForSequenceClassification, AutoModelForTokenClassification, AutoTokenizer
from typer.testing import CliRunner

from app.core.canonical import canonical_bytes, canonical_sha256
from app.core.ids import new_id
from app.core.tokens import public_jwk, raw_public
from app.releases.certificate import Facts, build, sign
from app.releases.tensors import tensor_digests
from cli.main import app
from engines.lora.adapter import peft_config
from modelling.adapters import adapter_state, build_model
from modelling.spec import ModelSpec
from tests.recording import Answer, Heard, PlayedRun, RecordingServer, problem
from tests.unit.test_trainer_architectures import write_tiny_gpt2, write_tiny_llama
from tests.unit.tiny_model import manifest_of, shaken, write_tiny_bert

KEY = Ed25519PrivateKey.generate()
TOKENS = torch.tensor([[2, 4, 5, 6, 3], [2, 7, 8, 3, 3]])
TARGETS = {"bert": ["query", "value"], "llama": ["q_proj", "v_proj"], "gpt2": ["c_attn"]}
HEADS = {"bert": "classifier", "llama": "score", "gpt2": "score"}


@pytest.fixture(autouse=True)
def restored() -> Iterator[None]:
    """The commands silence this process's logs and warnings; others here want them back."""
    with warnings.catch_warnings():
        yield
    logging.disable(logging.NOTSET)


def dpfl(*words: str | Path, code: int = 0) -> Result:
    done = CliRunner().invoke(app, [str(word) for word in words])
    assert done.exit_code == code, done.output
    return done


@dataclasses.dataclass(frozen=True)
class Released:
    """A release as `dpfl release pull` leaves it, and the model that it is of."""

    folder: Path
    base: Path
    manifest: dict[str, Any]
    tensors: dict[str, Tensor]

    @property
    def auto_class(self) -> Any:
        mean = self.manifest["task"]["pooling"] == "mean"
        return AutoModelForTokenClassification if mean else AutoModelForSequenceClassification

    def base_model(self) -> Any:
        return self.auto_class.from_pretrained(self.base, num_labels=2)

    def in_peft(self, folder: Path) -> Any:
        return PeftModel.from_pretrained(self.base_model(), folder).eval()

    def export(self, form: str, to: Path, *words: str | Path, code: int = 0) -> Result:
        return dpfl("release", "export", self.folder, "--for", form, "--to", to, *words, code=code)


def logits(model: Any) -> Tensor:
    with torch.inference_mode():
        found: Tensor = model(input_ids=TOKENS, attention_mask=torch.ones_like(TOKENS)).logits
    return found


def certificate_of(manifest: dict[str, Any], adapter: bytes, config: dict[str, Any]) -> dict[str, Any]:
    facts = Facts(
        release_id=new_id(),
        run_id=new_id(),
        round_id=new_id(),
        number=2,
        adapter_sha256=hashlib.sha256(adapter).hexdigest(),
        tensors=tensor_digests(io.BytesIO(adapter)),
        adapter_config_sha256=canonical_sha256(config),
        previous=None,
        steps=manifest["rounds"] * manifest["training"]["local_steps"],
        manifest=manifest,
        manifest_sha256=canonical_sha256(manifest),
        price={"noise_multiplier": 2.0, "epsilon": 5.25, "delta": 1e-5, "accountant": "an accountant"},
        rounds_aggregated=[1, 2],
        clients=3,
        accounts=[],
        paid=[],
        ancestors=[],
        unclaimed_runs=0,
        canaries=0,
        audit=None,
        seals_at_deadline=True,
        issuer="https://issuer",
        issued_at=datetime(2026, 11, 1, tzinfo=UTC),
    )
    return sign(build(facts), lambda raw: ("k1", KEY.sign(raw)))


def release_of(
    base: Path, folder: Path, *, kind: str = "bert", pooling: str = "mean", trust: str = "local", **lora: Any
) -> Released:
    manifest = manifest_of(base, trust=trust, target_modules=TARGETS[kind], layers=[1, 2], **lora)
    manifest["base_model"]["architecture"] = kind
    manifest["task"]["pooling"] = pooling
    manifest["lora"]["modules_to_save"] = [HEADS[kind]]
    manifest["rounds"] = 2
    manifest["privacy"]["noise_multiplier"] = manifest["privacy"]["noise_multiplier"] and 2.0
    tensors = shaken(adapter_state(build_model(ModelSpec.from_manifest(manifest), base), trained_only=False))
    adapter, config = save(tensors), peft_config(manifest)
    folder.mkdir()
    (folder / "adapter_model.safetensors").write_bytes(adapter)
    (folder / "adapter_config.json").write_bytes(canonical_bytes(config))
    (folder / "manifest.json").write_bytes(canonical_bytes(manifest))
    (folder / "certificate.json").write_text(json.dumps(certificate_of(manifest, adapter, config)))
    return Released(folder, base, manifest, tensors)


@pytest.fixture(scope="module")
def bases(tmp_path_factory: pytest.TempPathFactory) -> dict[str, Path]:
    folder = tmp_path_factory.mktemp("bases")
    return {
        "bert": write_tiny_bert(folder / "bert"),
        "llama": write_tiny_llama(folder / "llama", key_value_heads=2),
        "gpt2": write_tiny_gpt2(folder / "gpt2"),
    }


@pytest.fixture
def released(tmp_path: Path, bases: dict[str, Path]) -> Released:
    return release_of(bases["bert"], tmp_path / "release")


def test_the_peft_form_is_the_release_itself_and_still_verifies(released: Released, tmp_path: Path) -> None:
    to = tmp_path / "out" / "peft"
    released.export("peft", to)
    for name in ("adapter_model.safetensors", "adapter_config.json", "certificate.json"):
        assert (to / name).read_bytes() == (released.folder / name).read_bytes()
    assert torch.equal(logits(released.in_peft(to)), logits(released.in_peft(released.folder)))
    keys = tmp_path / "jwks.json"
    keys.write_text(json.dumps({"keys": [public_jwk("k1", raw_public(KEY))]}))
    shown = CliRunner().invoke(app, ["verify-release", str(to), "--key", str(keys)]).stdout
    assert "signature of https://issuer (key k1): holds" in shown
    assert "10 tensors: are the certified ones" in shown


def test_a_higher_rank_is_the_same_model(released: Released, tmp_path: Path) -> None:
    to = tmp_path / "peft"
    shown = released.export("peft", to, "--rank", "16").stdout
    assert "relative error 0" in shown
    config = json.loads((to / "adapter_config.json").read_text())
    assert (config["r"], config["lora_alpha"], config["modules_to_save"]) == (16, 16, ["classifier"])
    reference = logits(released.in_peft(released.folder))
    assert (logits(released.in_peft(to)) - reference).abs().max() <= 1e-5 * reference.abs().max()


def dense_changes(folder: Path) -> dict[str, Tensor]:
    """Every module's weight change, multiplied out in float64."""
    tensors, config = (
        load_file(folder / "adapter_model.safetensors"),
        json.loads((folder / "adapter_config.json").read_text()),
    )
    scale = config["lora_alpha"] / config["r"]
    return {
        name.partition(".lora_B.")[0]: scale
        * tensors[name].double()
        @ tensors[name.replace(".lora_B.", ".lora_A.")].double()
        for name in tensors
        if ".lora_B." in name
    }


def test_a_lower_rank_costs_what_the_card_says(tmp_path: Path, bases: dict[str, Path]) -> None:
    """By Eckart and Young, against a dense SVD: the root of the squares of the singular values cut."""
    released = release_of(bases["bert"], tmp_path / "release", rank=12)
    to = tmp_path / "peft"
    shown = released.export("peft", to, "--rank", "8").stdout
    cut, whole = 0.0, 0.0
    for change in dense_changes(released.folder).values():
        values = torch.linalg.svdvals(change)
        cut, whole = cut + float(values[8:].square().sum()), whole + float(values.square().sum())
    stated = float(re.search(r"relative error ([0-9.e-]+)", shown).group(1))  # type: ignore[union-attr]
    assert stated == pytest.approx((cut / whole) ** 0.5, rel=5e-3)
    assert stated > 0.01
    assert f"took {stated:.3g} of the change" in (to / "README.md").read_text().replace("\n", " ")
    assert load_file(to / "adapter_model.safetensors")[
        "base_model.model.bert.encoder.layer.2.attention.self.query.lora_A.weight"
    ].shape == (8, 32)


@pytest.mark.parametrize("kind", ["bert", "llama", "gpt2"])
def test_vllms_form_has_one_rank_and_no_head_and_says_what_it_lacks(
    tmp_path: Path, bases: dict[str, Path], kind: str
) -> None:
    pooling = "mean" if kind == "bert" else "model"
    released = release_of(bases[kind], tmp_path / "release", kind=kind, pooling=pooling)
    to = tmp_path / "vllm"
    shown = released.export("vllm", to).stdout
    config = json.loads((to / "adapter_config.json").read_text())
    assert (config["r"], config["lora_alpha"], config["modules_to_save"]) == (8, 8, None)
    assert (config["bias"], config["use_dora"], config["use_rslora"], config["rank_pattern"]) == (
        "none",
        False,
        False,
        {},
    )
    tensors = load_file(to / "adapter_model.safetensors")
    assert all(".lora_A.weight" in name or ".lora_B.weight" in name for name in tensors)
    heads = sorted(set(released.tensors) - set(tensors))
    assert heads
    for name in heads:
        assert name in shown
        assert name in (to / "README.md").read_text()
    before, after = dense_changes(released.folder), dense_changes(to)
    assert before.keys() == after.keys()
    for module in before:
        assert (after[module] - before[module]).norm() <= 1e-6 * before[module].norm()
    PeftModel.from_pretrained(released.base_model(), to)


@pytest.mark.parametrize(
    ("kind", "pooling"), [("bert", "mean"), ("bert", "model"), ("llama", "model"), ("gpt2", "model")]
)
def test_a_merged_model_gives_the_logits_of_base_and_adapter(
    tmp_path: Path, bases: dict[str, Path], kind: str, pooling: str
) -> None:
    released = release_of(bases[kind], tmp_path / "release", kind=kind, pooling=pooling)
    to = tmp_path / "merged"
    released.export("merged", to, "--base-model", bases[kind])
    model = released.auto_class.from_pretrained(to).eval()
    reference = logits(released.in_peft(released.folder))
    assert (logits(model) - reference).abs().max() <= 1e-5 * reference.abs().max()
    assert (logits(released.base_model().eval()) - reference).abs().max() > 0.01
    assert model.config.id2label == {0: "ham", 1: "spam"}
    assert AutoTokenizer.from_pretrained(to)("cheap money")["input_ids"]
    assert not (to / "adapter_config.json").exists()
    assert {path.stat().st_mode & 0o777 for path in to.iterdir()} == {0o644}


def test_an_adapter_whose_modules_differ_in_rank_is_brought_to_one(
    released: Released, tmp_path: Path
) -> None:
    """PEFT reads `rank_pattern`, vLLM does not: the exported one needs none."""
    config = peft_config(released.manifest) | {
        "rank_pattern": {"2.attention.self.value": 2},
        "alpha_pattern": {"2.attention.self.value": 3.0},
    }
    tensors = dict(released.tensors)
    value = "base_model.model.bert.encoder.layer.2.attention.self.value"
    tensors[f"{value}.lora_A.weight"] = tensors[f"{value}.lora_A.weight"][:2].contiguous()
    tensors[f"{value}.lora_B.weight"] = tensors[f"{value}.lora_B.weight"][:, :2].contiguous()
    adapter = save(tensors)
    (released.folder / "adapter_model.safetensors").write_bytes(adapter)
    (released.folder / "adapter_config.json").write_bytes(canonical_bytes(config))
    certificate = certificate_of(released.manifest, adapter, config)
    (released.folder / "certificate.json").write_text(json.dumps(certificate))
    released.export("peft", tmp_path / "as it is")
    card = (tmp_path / "as it is" / "README.md").read_text()
    assert f"{config['r']}; of modules with their own 2 to 2" in card
    to = tmp_path / "peft"
    released.export("peft", to, "--rank", "8")
    reference = logits(released.in_peft(released.folder))
    assert (logits(released.in_peft(to)) - reference).abs().max() <= 1e-5 * reference.abs().max()


def changed_certificate(change: Callable[[dict[str, Any]], object]) -> Callable[[Released], None]:
    def apply(released: Released) -> None:
        path = released.folder / "certificate.json"
        certificate = json.loads(path.read_text())
        change(certificate)
        path.write_text(json.dumps(certificate))

    return apply


def flipped_adapter(released: Released) -> None:
    path = released.folder / "adapter_model.safetensors"
    path.write_bytes(path.read_bytes()[:-1] + b"\x00")


def intact(_released: Released) -> None:
    """Change nothing: the options are what is wrong."""


def without(name: str) -> Callable[[Released], None]:
    return lambda released: (released.folder / name).unlink()


WRONG: list[tuple[str, Callable[[Released], object], tuple[str, ...], str]] = [
    ("peft", flipped_adapter, (), "tensor_mismatch"),
    ("vllm", without("certificate.json"), (), "cannot_read"),
    ("vllm", without("adapter_config.json"), (), "cannot_read"),
    ("peft", changed_certificate(lambda one: one["release"].pop("clients")), (), "certificate_invalid"),
    ("peft", changed_certificate(lambda one: one["privacy"].pop("unit")), (), "certificate_invalid"),
    ("merged", without("manifest.json"), (), "no_manifest"),
    ("merged", changed_certificate(lambda one: one.update(manifest_sha256="0")), (), "manifest_mismatch"),
    ("merged", intact, (), "base_model_missing"),
    ("merged", intact, ("--base-model", "/no/such/folder"), "base_model_missing"),
    ("merged", intact, ("--base-model", "OTHER"), "base_model_mismatch"),
    ("merged", intact, ("--rank", "8"), "bad_options"),
    ("peft", intact, ("--base-model", "x"), "bad_options"),
    ("vllm", intact, ("--rank", "12"), "rank_refused"),
]


@pytest.mark.parametrize("number", range(len(WRONG)), ids=[code for *_rest, code in WRONG])
def test_what_cannot_be_exported_is_refused_and_nothing_is_left(
    released: Released, tmp_path: Path, number: int
) -> None:
    form, damage, words, code = WRONG[number]
    other = write_tiny_bert(tmp_path / "other", seed=1) if "OTHER" in words else tmp_path
    damage(released)
    to = tmp_path / "out" / "one"
    named = [str(other) if word == "OTHER" else word for word in words]
    done = released.export(form, to, *named, code=1)
    assert done.stderr.startswith(f"dpfl: [{code}] ")
    assert not to.exists()
    assert not to.parent.exists() or not list(to.parent.iterdir())


def test_a_folder_that_exists_is_not_touched(released: Released, tmp_path: Path) -> None:
    (tmp_path / "mine").mkdir()
    (tmp_path / "mine" / "file").write_text("mine")
    for to in (tmp_path / "mine", tmp_path / "mine" / "file"):
        assert "[output_exists]" in released.export("peft", to, code=1).stderr
    assert [path.name for path in (tmp_path / "mine").iterdir()] == ["file"]


@pytest.mark.parametrize("source", ["neither", "../x", "01976c5e"])
def test_what_is_neither_a_folder_nor_an_id_is_refused(tmp_path: Path, source: str) -> None:
    done = dpfl("release", "export", source, "--for", "peft", "--to", tmp_path / "x", code=1)
    assert "[no_release]" in done.stderr


def test_a_card_says_what_the_certificate_says(released: Released, tmp_path: Path) -> None:
    to = tmp_path / "peft"
    released.export("peft", to)
    card, certificate = (to / "README.md").read_text(), json.loads((to / "certificate.json").read_text())
    privacy = certificate["privacy"]
    for row in (
        "| epsilon | `5.25` |",
        "| delta | `1e-05` |",
        "| unit | `example` |",
        "| trust | `local` |",
        "| method | `ffa` |",
        "| rank | `4` |",
        f"| SHA-256 | `{released.manifest['base_model']['weights_sha256']}` |",
        f"| SHA-256 | `{certificate['release']['adapter_sha256']}` |",
    ):
        assert row in card
    for text in (privacy["unit_means"], privacy["basis"], *privacy["not_claimed"]):
        assert text in card
    assert "This card states no licence." in card
    assert "averaged over the tokens" in card


def test_a_card_of_a_run_without_a_mechanism_claims_nothing(tmp_path: Path, bases: dict[str, Path]) -> None:
    released = release_of(bases["bert"], tmp_path / "release", trust="none")
    released.export("vllm", tmp_path / "vllm")
    card = (tmp_path / "vllm" / "README.md").read_text()
    assert "**Nothing is claimed.**" in card
    assert "epsilon" not in card.partition("## Check it")[0]


def test_what_a_server_wrote_is_text_in_the_card_and_never_markup(released: Released, tmp_path: Path) -> None:
    def hostile(certificate: dict[str, Any]) -> None:
        certificate["issuer"] = "https://x`|\n# Forged"
        certificate["privacy"]["basis"] = "<script>a</script> [b](http://c) ![d](e)\n# Forged"

    changed_certificate(hostile)(released)
    released.export("peft", tmp_path / "peft")
    card = (tmp_path / "peft" / "README.md").read_text()
    assert "<script>" not in card
    assert "[b](" not in card.replace("\\[b\\](", "")
    assert not re.search(r"^# Forged", card, re.MULTILINE)


def test_a_release_is_exported_by_its_id(released: Released, tmp_path: Path) -> None:
    certificate = json.loads((released.folder / "certificate.json").read_text())
    shown, adapter = certificate["release"], (released.folder / "adapter_model.safetensors").read_bytes()
    one = {
        "id": shown["id"],
        "run_id": shown["run_id"],
        "number": 2,
        "adapter_sha256": shown["adapter_sha256"],
        "size_bytes": len(adapter),
        "privacy_claimed": True,
        "epsilon": 5.25,
        "delta": 1e-5,
        "rolled_back_at": "2026-11-25T12:00:00Z",
        "rollback_reason": "it calls every newsletter spam",
    }
    path = f"/v1/releases/{shown['id']}"
    parts = {
        f"{path}/adapter": "adapter_model.safetensors",
        f"{path}/config": "adapter_config.json",
        f"{path}/certificate": "certificate.json",
        f"/v1/runs/{shown['run_id']}/manifest": "manifest.json",
    }

    def script(heard: Heard) -> Answer | None:
        asked = heard.path.partition("?")[0]
        if asked == path:
            return Answer(payload=one)
        if asked in parts:
            return Answer(content=(released.folder / parts[asked]).read_bytes())
        return problem(404, "not_found")

    with RecordingServer(PlayedRun({}, b"")) as server:
        server.script = script
        key = tmp_path / "key"
        key.write_text(json.dumps({"url": server.url, "api_key": "k"}))
        words = ("--to", tmp_path / "merged", "--key-file", key, "--base-model", released.base)
        done = dpfl("release", "export", shown["id"], "--for", "merged", *words)
    assert "rolled back at 2026-11-25T12:00:00+00:00: it calls every newsletter spam" in done.stderr
    model = AutoModelForTokenClassification.from_pretrained(tmp_path / "merged").eval()
    reference = logits(released.in_peft(released.folder))
    assert (logits(model) - reference).abs().max() <= 1e-5 * reference.abs().max()
