"""What a manifest says about the model: the task, the base model and the shape of the adapter.

Plain values only. Whoever builds or trains a model takes a `ModelSpec`, never the manifest itself.
"""

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

from engines.lora.patterns import LoraPattern
from modelling.errors import ModelRefused

METHODS = ("ffa", "fedsb", "rolora", "flexlora", "fedask", "flora", "fedex", "fedsa", "fedit")
"""What can be trained here."""
POOLINGS = ("mean", "model")


@dataclass(frozen=True)
class TaskSpec:
    """What is learned from which fields of a record."""

    labels: tuple[str, ...]
    text_fields: tuple[str, ...]
    label_field: str
    max_tokens: int
    """Length to which every text is cut or padded, special tokens included."""
    pooling: str
    """`mean`: a token classifier whose logits are averaged over the text; `model`: the architecture's own
    sequence classification head."""


@dataclass(frozen=True)
class BaseModelSpec:
    """The frozen model below the adapter, named by the digest of its weights."""

    name: str
    locator: str
    weights_sha256: str
    architecture: str


@dataclass(frozen=True)
class LoraSpec:
    """The shape of the adapter."""

    method: str
    rank: int
    alpha: float
    rank_stabilized: bool
    """rsLoRA: the scale is alpha / sqrt(rank)."""
    rank_pattern: Mapping[str, int]
    """Ranks of single modules, by whole path."""
    alpha_pattern: Mapping[str, float]
    target_modules: tuple[str, ...]
    layers: tuple[int, ...]
    modules_to_save: tuple[str, ...]
    seed: int
    """Public seed of the lora_A factors; never used for sampling or noise."""


@dataclass(frozen=True)
class ModelSpec:
    """All that is needed to build the model a run trains."""

    task: TaskSpec
    base: BaseModelSpec
    lora: LoraSpec

    @classmethod
    def from_manifest(cls, manifest: Mapping[str, Any]) -> "ModelSpec":
        """Read the model's part of a manifest.

        Raises:
            ModelRefused: `unsupported_plan`, naming the field, when a field is absent, of another type or
                out of range, or asks for what cannot be trained under differential privacy here.
        """
        task, base, lora = (_section(manifest, name) for name in ("task", "base_model", "lora"))
        spec = cls(task=_task(task), base=_base(base), lora=_lora(lora))
        if spec.lora.modules_to_save and set(spec.lora.modules_to_save) & set(spec.lora.target_modules):
            raise _refused("lora.modules_to_save", "names a module that is also a target of LoRA")
        return spec

    @property
    def first_trained_layer(self) -> int:
        """Index of the lowest layer that carries an adapter; everything below is frozen."""
        return self.lora.layers[0]


def _task(section: Mapping[str, Any]) -> TaskSpec:
    if section.get("kind") != "sequence_classification":
        raise _refused("task.kind", "must be sequence_classification")
    labels = _texts(section, "task", "labels", least=2)
    pooling = _text(section, "task", "pooling")
    if pooling not in POOLINGS:
        raise _refused("task.pooling", "must be mean or model")
    return TaskSpec(
        labels=labels,
        text_fields=_texts(section, "task", "text_fields", least=1),
        label_field=_text(section, "task", "label_field"),
        max_tokens=_count(section, "task", "max_tokens", least=2, most=8192),
        pooling=pooling,
    )


def _base(section: Mapping[str, Any]) -> BaseModelSpec:
    digest = _text(section, "base_model", "weights_sha256")
    if len(digest) != 64 or set(digest) - set("0123456789abcdef"):
        raise _refused("base_model.weights_sha256", "must be 64 lower-case hexadecimal digits")
    return BaseModelSpec(
        name=_text(section, "base_model", "name"),
        locator=_text(section, "base_model", "locator"),
        weights_sha256=digest,
        architecture=_text(section, "base_model", "architecture"),
    )


def _lora(section: Mapping[str, Any]) -> LoraSpec:
    method = _text(section, "lora", "method")
    if method not in METHODS:
        raise _refused("lora.method", f"must be one of {', '.join(METHODS)}")
    if section.get("use_dora"):
        raise _refused("lora.use_dora", "DoRA has no per-example gradients")
    targets = _texts(section, "lora", "target_modules", least=1)
    saved = _texts(section, "lora", "modules_to_save", least=0)
    for field, names in (("target_modules", targets), ("modules_to_save", saved)):
        if any(_is_embedding(name) for name in names):
            raise _refused(f"lora.{field}", "embeddings have no per-example gradients here")
    layers = section.get("layers")
    if not isinstance(layers, list | tuple) or not layers:
        raise _refused("lora.layers", "must be a list of layer numbers")
    if any(type(layer) is not int or layer < 0 for layer in layers) or len(set(layers)) != len(layers):
        raise _refused("lora.layers", "must hold different layer numbers from 0")
    alpha = section.get("alpha")
    if isinstance(alpha, bool) or not isinstance(alpha, int | float) or not 0 < alpha <= 1e6:
        raise _refused("lora.alpha", "must be a positive number")
    rank = _count(section, "lora", "rank", least=1, most=1024)
    try:
        scales = LoraPattern.from_plan(section)
    except (ValueError, TypeError, AttributeError) as error:
        raise _refused("lora.rank_pattern or lora.alpha_pattern", "cannot be read") from error
    return LoraSpec(
        method=method,
        rank=rank,
        alpha=scales.alpha,
        rank_stabilized=scales.rank_stabilized,
        rank_pattern=scales.rank_pattern,
        alpha_pattern=scales.alpha_pattern,
        target_modules=targets,
        layers=tuple(sorted(layers)),
        modules_to_save=saved,
        seed=_count(section, "lora", "seed", least=0, most=2**63 - 1),
    )


def _is_embedding(name: str) -> bool:
    return "embed" in name or name.rpartition(".")[2] in {"wte", "wpe"}


def _section(manifest: Mapping[str, Any], name: str) -> Mapping[str, Any]:
    section = manifest.get(name)
    if not isinstance(section, Mapping):
        raise _refused(name, "is missing")
    return section


def _text(section: Mapping[str, Any], where: str, name: str) -> str:
    value = section.get(name)
    if not isinstance(value, str) or not value:
        raise _refused(f"{where}.{name}", "must be a text")
    return value


def _texts(section: Mapping[str, Any], where: str, name: str, *, least: int) -> tuple[str, ...]:
    values = section.get(name)
    if not isinstance(values, list | tuple) or len(values) < least:
        raise _refused(f"{where}.{name}", f"must be a list of at least {least}")
    if any(not isinstance(value, str) or not value for value in values) or len(set(values)) != len(values):
        raise _refused(f"{where}.{name}", "must hold different texts")
    return tuple(values)


def _count(section: Mapping[str, Any], where: str, name: str, *, least: int, most: int) -> int:
    value = section.get(name)
    if type(value) is not int or not least <= value <= most:
        raise _refused(f"{where}.{name}", f"must be a whole number from {least} to {most}")
    return value


def _refused(field: str, why: str) -> ModelRefused:
    return ModelRefused("unsupported_plan", f"{field} {why}")
