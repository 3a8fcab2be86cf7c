"""A release in forms that others load: at one rank as an adapter, or merged into its base model.

Reads and writes folders of PEFT and transformers. All of it is post-processing of a published adapter.
"""

import dataclasses
import json
import shutil
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import torch
from safetensors import SafetensorError
from safetensors.torch import load_file, save_file
from torch import Tensor, nn
from transformers.pytorch_utils import Conv1D

from engines.lora.export import merged, uniform, without_heads
from engines.lora.factors import pairs_of, tensors_of
from engines.lora.patterns import LoraPattern
from engines.lora.spectrum import Projection, together
from modelling.base import load_base_model, quiet_libraries
from modelling.errors import ModelRefused
from modelling.spec import ModelSpec

ADAPTER, CONFIG = "adapter_model.safetensors", "adapter_config.json"
_PREFIX = "base_model.model."
_TOKENIZER_FILES = (
    "added_tokens.json",
    "chat_template.jinja",
    "merges.txt",
    "sentencepiece.bpe.model",
    "special_tokens_map.json",
    "spiece.model",
    "tokenizer.json",
    "tokenizer.model",
    "tokenizer_config.json",
    "vocab.json",
    "vocab.txt",
)


@dataclasses.dataclass(frozen=True)
class Exported:
    """What became of a release in another form."""

    projection: Projection
    """How far its weight changes are from the release's, over all modules."""
    left_out: tuple[str, ...] = ()
    """Tensors of the release that the form cannot hold."""


def write_uniform(source: Path, to: Path, *, rank: int | None, with_heads: bool) -> Exported:
    """Write an adapter whose modules have one rank, and alpha equal to it.

    Args:
        source: a release's folder in PEFT's form.
        to: an existing folder.
        rank: 8, 16, 32 or 64; None takes the smallest that no module exceeds, else 64.
        with_heads: whether whole modules are kept; vLLM's form has none.

    Raises:
        ModelRefused: `rank_refused`, or `adapter_unusable` when the folder holds no such adapter.
    """
    config, tensors = read_config(source), _tensors(source)
    heads = {} if not with_heads else {name: tensors[name] for name in without_heads(tensors)[1]}
    factors, others = without_heads(tensors)
    try:
        pairs = pairs_of(factors, _scales(config))
    except (ValueError, KeyError, TypeError) as error:
        raise _unusable(error) from error
    try:
        made = uniform(pairs, rank=rank)
    except ValueError as error:
        raise ModelRefused("rank_refused", str(error)) from error
    written = tensors_of(made.pairs, made.scale, dtype=torch.float32) | heads
    save_file({name: written[name].contiguous() for name in sorted(written)}, to / ADAPTER, {"format": "pt"})
    stated = config | {
        "r": made.scale.rank,
        "lora_alpha": made.scale.rank,
        "rank_pattern": {},
        "alpha_pattern": {},
        "use_rslora": False,
    }
    if not with_heads:  # for a task with a head PEFT would look for one in the file
        stated |= {"modules_to_save": None, "task_type": None}
    (to / CONFIG).write_text(json.dumps(stated, indent=2, sort_keys=True) + "\n", encoding="utf-8")
    return Exported(made.projection, () if with_heads else tuple(others))


def write_merged(spec: ModelSpec, base: Path, source: Path, to: Path) -> Exported:
    """Write the base model with the release in its weights, float32, beside the base's tokenizer.

    Args:
        spec: the run's model.
        base: folder of the base model, whose digest must be the run's.
        source: the release's folder in PEFT's form.
        to: an existing folder.

    Raises:
        ModelRefused: the base model is missing or another one, or the adapter does not fit it.
    """
    tensors = _tensors(source)
    model = load_base_model(spec, base)
    factors, heads = without_heads(tensors)
    try:
        lost = _merge(model, factors, read_config(source))
        for name in heads:
            _set(model.get_parameter(name.removeprefix(_PREFIX)), tensors[name])
    except (ValueError, KeyError, TypeError, AttributeError) as error:
        raise _unusable(error) from error
    with quiet_libraries():
        model.save_pretrained(to)  # type: ignore[operator]  # transformers' own, not every module's
    for name in _TOKENIZER_FILES:
        if (base / name).is_file():
            shutil.copyfile(base / name, to / name)
    return Exported(lost)


def read_config(source: Path) -> dict[str, Any]:
    """Read a folder's adapter configuration; raises ModelRefused, `adapter_unusable`."""
    try:
        found = json.loads((source / CONFIG).read_text(encoding="utf-8"))
    except (OSError, ValueError) as error:
        raise _unusable(error) from error
    if not isinstance(found, dict):
        raise ModelRefused("adapter_unusable", f"{CONFIG} is no JSON object")
    return found


def _merge(model: nn.Module, factors: Mapping[str, Tensor], config: Mapping[str, Any]) -> Projection:
    errors = []
    for path, pair in pairs_of(factors, _scales(config)).items():
        module = model.get_submodule(path.removeprefix(_PREFIX))
        weight = module.get_parameter("weight")
        changed, error = merged(weight.detach(), pair, is_transposed=isinstance(module, Conv1D))
        _set(weight, changed)
        errors.append(error)
    return together(errors)


def _set(parameter: nn.Parameter, values: Tensor) -> None:
    if parameter.shape != values.shape or not bool(torch.isfinite(values).all()):
        raise ValueError(f"a tensor of shape {tuple(values.shape)} does not fit, or is not finite")
    with torch.no_grad():
        parameter.copy_(values)


def _scales(config: Mapping[str, Any]) -> LoraPattern:
    return LoraPattern(
        rank=config["r"],
        alpha=float(config["lora_alpha"]),
        rank_pattern=config.get("rank_pattern") or {},
        alpha_pattern=config.get("alpha_pattern") or {},
        rank_stabilized=bool(config.get("use_rslora", False)),
    )


def _tensors(source: Path) -> dict[str, Tensor]:
    try:
        tensors: dict[str, Tensor] = load_file(source / ADAPTER)
    except (OSError, SafetensorError) as error:
        raise _unusable(error) from error
    return tensors


def _unusable(error: Exception) -> ModelRefused:
    return ModelRefused("adapter_unusable", f"the adapter cannot be exported: {' '.join(str(error).split())}")
