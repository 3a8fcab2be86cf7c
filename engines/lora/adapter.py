"""The adapter as a set of named tensors: its start, and PEFT's configuration for it.

Knows PEFT's file format, not PEFT: names as in `adapter_model.safetensors`, keys as in
`adapter_config.json`. Tests hold both against PEFT itself.
"""

import math
from collections.abc import Mapping, Sequence
from typing import Any

import torch
from torch import Tensor

from engines.lora.fedsb import orthonormal_rows
from engines.lora.scaling import module_of
from engines.lora.seeding import seeded_a

PEFT_VERSION = "0.21.2"
"""The release whose file format this is."""

_TASK_TYPES = {"sequence_classification": "SEQ_CLS"}
_POOLED_TASK_TYPES = _TASK_TYPES | {"sequence_classification": "TOKEN_CLS"}
"""With pooling `mean` the model is a token classifier whose logits are averaged."""
_TRANSPOSED = frozenset({"gpt2"})
"""Architectures whose linear layers keep their weights transposed."""
_PREFIX = "base_model.model."


def initial_adapter(
    tensors: Sequence[Mapping[str, Any]], seed: int, *, trained_only: bool = False
) -> dict[str, Tensor]:
    """Build the adapter of round 1: B, cores and saved modules zero, so that it changes nothing yet.

    Args:
        tensors: the manifest's list of {"name", "shape", "trained"}.
        seed: the run's public seed, from which A factors and bases are drawn.
        trained_only: leave the frozen tensors out (what a round's state holds).
    Returns:
        float32 tensors by name, in the order of the list.
    Raises:
        ValueError: a factor has an impossible shape.
    """
    has_cores = any(".lora_B.core." in str(entry["name"]) for entry in tensors)
    adapter: dict[str, Tensor] = {}
    for entry in tensors:
        name, shape = str(entry["name"]), tuple(int(length) for length in entry["shape"])
        if entry["trained"] or not trained_only:
            adapter[name] = starting_tensor(name, shape, seed, orthonormal=has_cores)
    return adapter


def starting_tensor(name: str, shape: tuple[int, ...], seed: int, *, orthonormal: bool) -> Tensor:
    """Return what a tensor is before anybody has trained it, and for ever where it is frozen.

    Args:
        name: in the adapter file.
        shape: (r, k) of A, (d, r) of a basis, any of what starts at zero.
        seed: the run's public seed.
        orthonormal: A has orthonormal rows (Fed-SB) instead of PEFT's usual ones.
    Returns:
        float32. That of a smaller rank is the top rows, or leading columns, of that of a larger one.
    """
    if ".lora_B.basis." in name:
        rows = orthonormal_rows(seed, f"{module_of(name)}.left", rank=shape[1], length=shape[0])
        return rows.T.contiguous()
    if ".lora_A." not in name:
        return torch.zeros(shape)
    if orthonormal:
        return orthonormal_rows(seed, f"{module_of(name)}.right", rank=shape[0], length=shape[1])
    return seeded_a(seed, name, shape)


def full_adapter(
    trained: Mapping[str, Tensor], *, tensors: Sequence[Mapping[str, Any]], seed: int
) -> dict[str, Tensor]:
    """Put the trained tensors and the frozen ones together, as clients of the run hold them.

    Args:
        trained: exactly the tensors that the list marks as trained, float32.
        tensors: the manifest's list of {"name", "shape", "trained"}.
        seed: the run's public seed, from which frozen factors are drawn again.
    Returns:
        float32 tensors by name, in the order of the list.
    Raises:
        ValueError: a trained tensor is missing, unknown, of another shape or dtype.
    """
    expected = {str(entry["name"]): tuple(entry["shape"]) for entry in tensors if entry["trained"]}
    if set(trained) != set(expected):
        odd = sorted(set(trained) ^ set(expected))[0]
        raise ValueError(f"{odd}: missing from the trained tensors, or not one of them")
    for name, shape in expected.items():
        if tuple(trained[name].shape) != shape or trained[name].dtype != torch.float32:
            raise ValueError(f"{name}: expected float32 of shape {list(shape)}")
    return {**initial_adapter(tensors, seed), **trained}


def peft_config(manifest: Mapping[str, Any], ranks: Mapping[str, int] | None = None) -> dict[str, Any]:
    """Return the content of `adapter_config.json` for a run's adapter.

    Keys that PEFT writes beyond these hold its defaults; leaving them out loads the same configuration.

    Args:
        manifest: the run's manifest, version 1.
        ranks: by module path, where an adapter's ranks are its own; each such module then has scale 1.
    Returns:
        Plain JSON values.
    Raises:
        ValueError: PEFT has no task type for this kind of task.
        KeyError: the manifest lacks a member.
    """
    lora, kind = manifest["lora"], manifest["task"]["kind"]
    own = {module.removeprefix(_PREFIX): rank for module, rank in sorted((ranks or {}).items())}
    task_types = _POOLED_TASK_TYPES if manifest["task"].get("pooling") == "mean" else _TASK_TYPES
    if kind not in task_types:
        raise ValueError(f"there is no adapter configuration for tasks of kind {kind!r}")
    return {
        "alpha_pattern": _alphas(lora, own),
        "base_model_name_or_path": manifest["base_model"]["name"],
        "bias": "none",
        "fan_in_fan_out": manifest["base_model"].get("architecture") in _TRANSPOSED,
        "inference_mode": True,
        "init_lora_weights": True,
        "layers_to_transform": list(lora["layers"]),
        "lora_alpha": lora["alpha"],
        "lora_dropout": 0.0,
        "modules_to_save": list(lora["modules_to_save"]) or None,
        "peft_type": "LORA",
        "peft_version": PEFT_VERSION,
        "r": lora["rank"],
        "rank_pattern": dict(lora.get("rank_pattern") or {}) | own,
        "target_modules": list(lora["target_modules"]),
        "task_type": task_types[kind],
        "use_dora": False,
        "use_rslora": bool(lora.get("rank_stabilized", False)),
    }


def _alphas(lora: Mapping[str, Any], own: Mapping[str, int]) -> dict[str, float]:
    """The plan's alphas by module, and for modules with ranks of their own those that make the scale 1."""
    root = lora.get("rank_stabilized", False)
    scale_1 = {path: math.sqrt(rank) if root else float(rank) for path, rank in own.items()}
    return dict(lora.get("alpha_pattern") or {}) | scale_1
