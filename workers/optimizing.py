"""The server's step: as long as FedExP says, or by an optimizer with its state in a blob.

The state is float64 and read back to the bit: training that was interrupted goes on as if it had not been.
It is a function of the aggregates that it was fed with: under `local` and `central` of noised ones alone.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import numpy as np
from numpy.typing import NDArray
from safetensors import SafetensorError
from safetensors.numpy import load, save

from app.custody.blobs import TenantBlobs
from app.custody.keys import BlobRef
from app.runs.manifest import Manifest, ServerOptimizer
from engines.aggregation.optimizers import Optimizer, Server, start, step
from engines.aggregation.steps import carried_noise, extrapolation
from workers.merging import Judged
from workers.tensors import BrokenTensors

EXTRAPOLATED = "fedexp"


def stepped(
    blobs: TenantBlobs,
    manifest: Manifest,
    state: BlobRef | None,
    change: NDArray[Any],
    judged: Sequence[Judged],
) -> tuple[NDArray[Any], str | None]:
    """Turn the change of a round whose updates the server sees into the model's; see `optimized`.

    Under FedExP the step is as long as the updates that counted differ from each other (`judged`), and no
    state is kept.
    """
    plan = manifest.aggregation.server_optimizer
    if plan is None or plan.kind != EXTRAPOLATED:
        return optimized(blobs, plan, state, change)
    bound = manifest.aggregation.clip_norm
    counted = [one for one in judged if one.norm is not None and one.weight > 0.0]
    rate = plan.rate * extrapolation(
        [one.norm if bound is None else min(one.norm, bound) for one in counted if one.norm is not None],
        change,
        weights=[one.weight for one in counted],
        noise_energy=change.size * _noise_std(manifest) ** 2,
        epsilon=plan.adaptivity,
    )
    return _narrow(rate * change.astype(np.float64)), None


def _noise_std(manifest: Manifest) -> float:
    """What a client's own noise leaves in each coordinate of its update; constants of the plan alone."""
    privacy, training = manifest.privacy, manifest.training
    if privacy.trust != "local":
        return 0.0
    if privacy.noise_multiplier is None or privacy.clip_norm is None:
        raise ValueError("a run under local trust was priced with its noise")
    each = privacy.noise_multiplier * privacy.clip_norm / privacy.divisor
    return each * carried_noise(
        local_steps=training.local_steps,
        learning_rate=training.learning_rate,
        momentum=training.momentum,
        proximal_mu=training.proximal_mu,
    )


def optimized(
    blobs: TenantBlobs, plan: ServerOptimizer | None, former: BlobRef | None, change: NDArray[Any]
) -> tuple[NDArray[Any], str | None]:
    """Turn a round's mean change into the model's change, and store the state for the next round.

    Args:
        blobs: where states lie.
        plan: the manifest's; None adds the change as it is.
        former: the state after the round before; None begins anew.
        change: shape (d,), finite, with all its noise.
    Returns:
        The model's change, shape (d,), float32, and the new state's blob (None without an optimizer).
    Raises:
        BrokenTensors, Unavailable: the state is not what was stored, or not there.
        ValueError: a change that is not finite.
    """
    if plan is None:
        return change, None
    server = server_of(plan)
    state = (
        start(server, change.size) if former is None else _read(blobs.beside(former.tenant), former.sha256)
    )
    moved, after = step(server, state, change)
    digest = blobs.put(save({name: np.asarray(after[name], np.float64) for name in sorted(after)}))
    return _narrow(moved), digest


def _narrow(moved: NDArray[np.float64]) -> NDArray[Any]:
    with np.errstate(over="ignore"):  # beyond float32 it is infinite, and the candidate is found unfit
        return moved.astype(np.float32)


def server_of(plan: ServerOptimizer) -> Server:
    """The engine's optimizer with a manifest's constants."""
    return Server(
        kind=Optimizer(plan.kind),
        rate=plan.rate,
        momentum=plan.momentum,
        decay=plan.decay,
        adaptivity=plan.adaptivity,
    )


def _read(blobs: TenantBlobs, digest: str) -> dict[str, NDArray[np.float64]]:
    try:
        found: dict[str, NDArray[np.float64]] = load(blobs.read(digest))
    except SafetensorError as error:
        raise BrokenTensors("the blob is no optimizer's state") from error
    return found
