"""The server optimizer of a run: its state in a blob, and one step with it.

The state is float64 and read back to the bit: training that was interrupted goes on as if it had not been.
It is a function of the aggregates that it was fed with: under `local` and `central` of noised ones alone.
"""

from __future__ import annotations

from typing import Any

import numpy as np
from numpy.typing import NDArray
from safetensors import SafetensorError
from safetensors.numpy import load, save

from app.core.blobs import LocalBlobs
from app.runs.manifest import ServerOptimizer
from engines.aggregation.optimizers import Optimizer, Server, start, step
from workers.tensors import BrokenTensors


def optimized(
    blobs: LocalBlobs, plan: ServerOptimizer | None, state_sha256: str | None, change: NDArray[Any]
) -> tuple[NDArray[Any], str | None]:
    """Turn a round's mean change into the model's change, and store the state for the next round.

    Args:
        blobs: where states lie.
        plan: the manifest's; None adds the change as it is.
        state_sha256: of the round before; None begins anew.
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
    state = start(server, change.size) if state_sha256 is None else _read(blobs, state_sha256)
    moved, after = step(server, state, change)
    with np.errstate(over="ignore"):  # beyond float32 it is infinite, and the candidate is found unfit
        narrow = moved.astype(np.float32)
    return narrow, blobs.put(save({name: np.asarray(after[name], np.float64) for name in sorted(after)}))


def server_of(plan: ServerOptimizer) -> Server:
    """The engine's optimizer with a manifest's constants."""
    return Server(
        kind=Optimizer(plan.kind),
        rate=plan.rate,
        momentum=plan.momentum,
        decay=plan.decay,
        adaptivity=plan.adaptivity,
    )


def _read(blobs: LocalBlobs, digest: str) -> dict[str, NDArray[np.float64]]:
    try:
        found: dict[str, NDArray[np.float64]] = load(blobs.read(digest))
    except SafetensorError as error:
        raise BrokenTensors("the blob is no optimizer's state") from error
    return found
