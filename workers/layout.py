"""Which tensors a manifest speaks of, in the form that workers/tensors.py reads and writes."""

from __future__ import annotations

from typing import Any

from torch import Tensor

from app.custody.blobs import TenantBlobs
from app.runs.manifest import Manifest
from app.runs.methods import sent_shapes, update_tensors
from app.updates.wire import Expected
from engines.lora.methods import MERGING_METHODS, TWO_TURNS, sketched_shapes
from engines.lora.states import modules_in, require_whole
from workers.tensors import BrokenTensors, open_tensors


def update_shapes(manifest: Manifest, *, number: int, rank: int | None = None) -> dict[str, tuple[int, ...]]:
    """What clients of a rank (by default the run's) send in a round, in the order of names."""
    return sent_shapes(manifest.as_json(), number=number, rank=rank)


def update_file_of(manifest: Manifest, *, number: int, rank: int | None = None) -> Expected:
    """The same as an update file holds it, in the run's wire dtype, scales included."""
    return update_tensors(manifest.as_json(), number=number, rank=rank)


def tensor_list(manifest: Manifest) -> list[dict[str, Any]]:
    """Every tensor of the adapter file as plain values, for the engines."""
    return [tensor.model_dump(mode="json") for tensor in manifest.tensors]


def read_state(blobs: TenantBlobs, digest: str, manifest: Manifest) -> dict[str, Tensor]:
    """A round's state from its blob; raises BrokenTensors unless it is one of the manifest's."""
    merges, bases = manifest.lora.method in MERGING_METHODS, dict[str, tuple[int, ...]]()
    if manifest.lora.method in TWO_TURNS:
        sketched = sketched_shapes(manifest.as_json())
        bases = {module: sketched[f"{module}.lora_B.weight"] for module in modules_in(tensor_list(manifest))}
    variates = manifest.training.control_variates != "none"
    with open_tensors(blobs, digest) as file:
        try:
            require_whole(
                file.shapes, tensors=tensor_list(manifest), merges=merges, bases=bases, variates=variates
            )
        except ValueError as error:
            raise BrokenTensors(str(error)) from error
        return {name: file.tensor(name) for name in file.shapes}
