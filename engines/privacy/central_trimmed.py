"""Client-level central privacy with a robust rule: the noised trimmed sum of clipped updates.

In each coordinate the b smallest and the b largest of n values are left out, n being the fixed public number
of clients: one that sent nothing, or something that is not finite, is the zero vector. Values are steps of
the grid, so sorting and adding are exact, and one client moves the result by no more than its own clipped
vector: the noise is that of the plain sum (docs/privacy-proof.md). The divisor stays the plan's constant.
"""

import math
from collections.abc import Mapping, Sequence
from typing import Any

import numpy as np
import torch

from engines.aggregation.coordinates import trimmed_sum
from engines.aggregation.kernels import Numbers
from engines.aggregation.rows import Source, Streamed
from engines.privacy.central import (
    BLOCK_ELEMENTS,
    Admitted,
    CentralPlan,
    CentralRelease,
    noised,
    plan_parameters,
    sum_of_squares,
)
from engines.privacy.clipping import safe_scale
from engines.privacy.noise import NoiseStream, truncate_to_grid
from engines.privacy.round_stream import Parameter
from engines.privacy.sensitivity import TrimmedSum


class Gridded:
    """A source of n rows over a source of at most n updates: clipped, on the grid, absent ones zero."""

    dtype: np.dtype[Any] = np.dtype(np.int64)

    def __init__(self, updates: Source, plan: CentralPlan) -> None:
        """Look at every update once, for its norm; float32 values."""
        self.clients, self.dimension = plan.most_updates, updates.dimension
        self._updates, self._grid = updates, plan.grid
        self.admitted = tuple(self._admitted(client) for client in range(updates.clients))
        self._scales = [
            safe_scale(one.norm, size=self.dimension, max_norm=plan.clip_norm) if one.finite else None
            for one in self.admitted
        ]

    def read(self, client: int, start: int, stop: int, out: Numbers) -> None:
        """Write grid steps `start` to `stop` - 1 of a row."""
        scale = self._scales[client] if client < len(self._scales) else None
        if scale is None:
            out[:] = 0
            return
        block = self._block(client, start, stop)
        out[:] = truncate_to_grid(block.mul_(scale), self._grid).numpy()

    def cut(self, stop: int) -> int:
        """As the updates'."""
        return self._updates.cut(stop)

    def _block(self, client: int, start: int, stop: int) -> torch.Tensor:
        values = np.empty(stop - start, dtype=np.float32)
        self._updates.read(client, start, stop, values)
        return torch.from_numpy(values).to(torch.float64)

    def _admitted(self, client: int) -> Admitted:
        """Whether an update is finite, and its norm."""
        square = 0.0
        for start in range(0, self.dimension, BLOCK_ELEMENTS):
            square += sum_of_squares(self._block(client, start, min(start + BLOCK_ELEMENTS, self.dimension)))
        norm = math.sqrt(square)
        finite = math.isfinite(norm)
        return Admitted(finite=finite, norm=norm if finite else 0.0)


class CentralTrimmedSum:
    """The trimmed sum of a round's updates, noised once and divided by the public constant."""

    def __init__(
        self, shapes: Mapping[str, Sequence[int]], plan: CentralPlan, *, updates: Source, trimmed: int
    ) -> None:
        """Prepare a trimmed sum; nothing is read yet.

        Args:
            shapes: shape of every tensor by name, in the order of the flat vector.
            plan: the round's public constants; `most_updates` is the fixed number of clients n.
            updates: at most n, float32, of the shapes' dimension.
            trimmed: b, fixed; 2b < n.
        Raises:
            ValueError: weights or adaptive clipping, more updates than clients, or a b out of range.
        """
        if plan.adaptive is not None or plan.largest_weight != 1.0:
            raise ValueError("a trimmed sum takes no weights and no adaptive clipping")
        if updates.clients > plan.most_updates:
            raise ValueError("there are more updates than clients")
        TrimmedSum(clip_norm=plan.clip_norm, clients=plan.most_updates, trimmed=trimmed)
        self._shapes = {name: tuple(shape) for name, shape in shapes.items()}
        if updates.dimension != sum(math.prod(shape) for shape in self._shapes.values()):
            raise ValueError("the updates are not of these shapes")
        self._plan, self._updates, self._trimmed = plan, updates, trimmed
        self._released = False
        self.admitted: tuple[Admitted, ...] = ()
        """What was found about each update, in their order, once it is released."""

    def parameters(self) -> dict[str, Parameter]:
        """Return everything that the result depends on, besides the updates: what binds its stream."""
        named = plan_parameters(self._plan, self._shapes)
        return named | {"rule": "trimmed_sum/1", "trimmed": self._trimmed}

    def release(self, stream: NoiseStream) -> CentralRelease:
        """Trim, add the noise and divide, once.

        Args:
            stream: the round's own stream, nothing taken from it yet: see `round_stream`.
        Raises:
            RuntimeError: it was released before. A second noise on one sum is a second release.
        Source: Yin et al. 2018, arXiv:1803.01498 (the trimmed mean).
        """
        if self._released:
            raise RuntimeError("a sum is released once")
        self._released = True
        gridded = Gridded(self._updates, self._plan)
        self.admitted = gridded.admitted
        steps = trimmed_sum(Streamed(gridded), trimmed=self._trimmed)
        return CentralRelease(
            update=noised(torch.from_numpy(steps), self._plan, self._shapes, stream), share_within=None
        )
