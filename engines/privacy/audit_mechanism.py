"""Canaries alone through the mechanism of a central round: an audit of the code, at nobody's cost.

The clip, the grid, the sum and the noise are the product's own. No client takes part, so nothing is
charged, and what comes out is no release of anybody.
"""

from collections.abc import Iterator

import numpy as np
import torch
from numpy.typing import NDArray

from engines.privacy.audit_canaries import Canaries
from engines.privacy.central import CentralPlan, CentralSum
from engines.privacy.noise import NoiseStream


def canaries_alone(
    canaries: Canaries, *, plan: CentralPlan, norm: float, rounds: int, stream: NoiseStream
) -> Iterator[NDArray[np.float64]]:
    """Run rounds in which the canaries that are in, and nobody else, send updates.

    Every canary that is in takes part in every round, so the whole run is one Gaussian mechanism with
    mu = sqrt(rounds) / z: compare an audit's bound with that epsilon, not with a sampled cohort's.

    Args:
        canaries: in by their own coins.
        plan: the public constants of each round.
        norm: L2 norm of a canary's update before the mechanism clips it, parameter units; far over the
            plan's C it shows whether anything clips.
        rounds: at least 1.
        stream: source of all rounds' noise.
    Yields:
        What each round releases, flat, shape (d,); their sum is the change of the model.
    Raises:
        ValueError: there are more canaries in than the plan's cohort, or no round.
    """
    if rounds < 1:
        raise ValueError("there is at least one round")
    inside = [int(index) for index in np.flatnonzero(canaries.coins())]
    for _ in range(rounds):
        total = CentralSum({"update": (canaries.dimension,)}, plan)
        for index in inside:
            total.add({"update": torch.from_numpy(canaries.direction(index) * np.float32(norm))})
        yield total.release(stream).update["update"].numpy().astype(np.float64)
