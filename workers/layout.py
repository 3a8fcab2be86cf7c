"""Which tensors a manifest speaks of, in the form that workers/tensors.py reads and writes."""

from __future__ import annotations

from typing import Any

from app.runs.manifest import Manifest


def trained_shapes(manifest: Manifest) -> dict[str, tuple[int, ...]]:
    """What clients train and a round's adapter holds: name and shape, in the order of names."""
    return {tensor.name: tensor.shape for tensor in manifest.trained}


def tensor_list(manifest: Manifest) -> list[dict[str, Any]]:
    """Every tensor of the adapter file as plain values, for the engines."""
    return [tensor.model_dump(mode="json") for tensor in manifest.tensors]
