"""A round of `fedask`: of the mean of its first messages a basis, of the mean of the second ones the adapter.

Until then the adapter stays what it was, heads included: a release between the two is the former one.
"""

from __future__ import annotations

from collections.abc import Mapping

import torch
from torch import Tensor

from app.custody.blobs import TenantBlobs
from app.runs.manifest import Manifest
from engines.lora.fedask import basis, decomposed
from engines.lora.methods import trains
from engines.lora.patterns import LoraPattern
from engines.lora.seeding import seeded_a
from engines.lora.spectrum import Projection, together
from engines.lora.states import BASIS, VARIATE, bases_in, modules_in, parted
from engines.lora.states import together as state_of
from workers.layout import tensor_list
from workers.tensors import open_tensors, write_tensors


def start_of(former: TenantBlobs, digest: str, *, blobs: TenantBlobs) -> str:
    """Store a state in `blobs` as a new run starts from it: without bases, and without control variates."""
    with open_tensors(former, digest) as file:
        left = {name: file.tensor(name) for name in file.shapes if not name.endswith((BASIS, VARIATE))}
        if len(left) == len(file.shapes) and former.tenant == blobs.tenant:
            return digest
        return write_tensors(blobs, left)[0]


def next_state(
    manifest: Manifest, state: Mapping[str, Tensor], mean: Mapping[str, Tensor], *, number: int
) -> tuple[dict[str, Tensor], Projection | None]:
    """Return what the next round starts from, and what of the target its adapter does not hold.

    Args:
        manifest: the run's.
        state: what the round started from; with bases where it is an even one.
        mean: of what its clients sent, by name.
        number: of the round.
    Raises:
        KeyError: an even round without bases, which is never opened.
    """
    trained, _base = parted(state)
    modules = modules_in(tensor_list(manifest))
    if trains(manifest.lora.method, number):
        made = {
            f"{module}{BASIS}": basis(mean[f"{module}.lora_B.weight"].to(torch.float64)) for module in modules
        }
        return state_of({**trained, **made}, {}), None
    lora, bases, missed = manifest.lora, bases_in(state), list[Projection]()
    scales = LoraPattern.from_plan(lora.model_dump())
    after = {
        name: tensor.to(torch.float64) + mean[name]
        for name, tensor in trained.items()
        if ".lora_" not in name
    }
    for module, (_rows, columns) in modules.items():
        a, b = f"{module}.lora_A.weight", f"{module}.lora_B.weight"
        scale = scales.at(module)
        spare = seeded_a(lora.seed, a, (scale.rank, columns)).to(torch.float64)
        moved = decomposed(bases[module], mean[a], scale=scale, spare_a=spare)
        after[a], after[b] = moved.pair.a, moved.pair.b
        missed.append(moved.missed)
    return state_of(after, {}), together(missed)
