import copy
from pathlib import Path
from typing import Any

import pytest

from modelling.errors import ModelRefused
from modelling.spec import ModelSpec

MANIFEST: dict[str, Any] = {
    "task": {
        "kind": "sequence_classification",
        "labels": ["ham", "spam"],
        "text_fields": ["subject", "body"],
        "label_field": "label",
        "max_tokens": 64,
        "pooling": "mean",
    },
    "base_model": {"name": "m", "locator": "package:m/n", "weights_sha256": "a" * 64, "architecture": "bert"},
    "lora": {
        "method": "ffa",
        "rank": 8,
        "alpha": 16.0,
        "target_modules": ["query", "value"],
        "layers": [5, 4],
        "modules_to_save": ["classifier"],
        "seed": 1,
    },
}


def test_a_spec_holds_the_manifests_values_with_layers_in_order() -> None:
    spec = ModelSpec.from_manifest(MANIFEST)
    assert (spec.lora.layers, spec.first_trained_layer) == ((4, 5), 4)
    assert spec.task.labels == ("ham", "spam")
    assert spec.base.locator == "package:m/n"


@pytest.mark.parametrize(
    ("section", "field", "value"),
    [
        ("task", "kind", "generation"),
        ("task", "labels", ["ham"]),
        ("task", "labels", ["ham", "ham"]),
        ("task", "pooling", "max"),
        ("task", "max_tokens", 1),
        ("task", "max_tokens", True),
        ("base_model", "weights_sha256", "A" * 64),
        ("base_model", "locator", ""),
        ("lora", "method", "dora"),
        ("lora", "use_dora", True),
        ("lora", "target_modules", ["word_embeddings"]),
        ("lora", "target_modules", ["wte"]),
        ("lora", "target_modules", []),
        ("lora", "modules_to_save", ["word_embeddings"]),
        ("lora", "modules_to_save", ["transformer.wpe"]),
        ("lora", "layers", []),
        ("lora", "layers", [5, 5]),
        ("lora", "layers", [-1]),
        ("lora", "rank", 0),
        ("lora", "alpha", 0.0),
        ("lora", "alpha", float("nan")),
        ("lora", "rank_pattern", {"(a+)+$": 2}),
        ("lora", "rank_pattern", {"layer.query": 0}),
        ("lora", "alpha_pattern", {"layer.query": float("inf")}),
        ("lora", "alpha_pattern", 4.0),
        ("lora", "modules_to_save", ["query"]),
        ("lora", "seed", -1),
    ],
)
def test_a_field_that_cannot_be_trained_is_refused_by_name(section: str, field: str, value: object) -> None:
    manifest = copy.deepcopy(MANIFEST)
    manifest[section][field] = value
    with pytest.raises(ModelRefused, match=rf"{section}\.") as refusal:
        ModelSpec.from_manifest(manifest)
    assert refusal.value.code == "unsupported_plan"


@pytest.mark.parametrize("section", ["task", "base_model", "lora"])
def test_a_missing_section_is_refused_by_name(section: str) -> None:
    manifest = {name: part for name, part in MANIFEST.items() if name != section}
    with pytest.raises(ModelRefused, match=section):
        ModelSpec.from_manifest(manifest)


def test_the_refusal_fits_on_one_line(tmp_path: Path) -> None:
    with pytest.raises(ModelRefused) as refusal:
        ModelSpec.from_manifest({"task": str(tmp_path)})
    assert "\n" not in str(refusal.value)
