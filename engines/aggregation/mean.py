"""The weighted mean of updates, one update in memory at a time."""

from collections.abc import Mapping, Sequence

import torch
from torch import Tensor

from engines.aggregation.checks import BLOCK_ELEMENTS, is_finite

_LARGEST_WEIGHT = 1e12


class StreamingMean:
    """Accumulate weight * update in float64, block by block; memory is one float64 adapter.

    Every value is the sum over the updates in the order of `add`. Callers add in the order of client ids,
    so that the result does not depend on who came first.
    """

    def __init__(self, shapes: Mapping[str, Sequence[int]]) -> None:
        """Start an empty mean.

        Args:
            shapes: shape of every tensor by name; each update must hold exactly these.
        """
        if not shapes:
            raise ValueError("there is nothing to average")
        self._sums = {name: torch.zeros(tuple(shape), dtype=torch.float64) for name, shape in shapes.items()}
        self._total_weight = 0.0
        self.updates = 0
        """How many updates were added."""

    def add(self, update: Mapping[str, Tensor], *, weight: float) -> None:
        """Add one update. A refused update leaves the sums as they were.

        Args:
            update: float32 tensors, names and shapes as at the start.
            weight: finite, 0 to 1e12; only ratios of weights matter.
        Raises:
            ValueError: a tensor is missing, unknown, of another shape or dtype, or not finite, or the
                weight is out of range.
        """
        if not 0.0 <= weight <= _LARGEST_WEIGHT:  # also false for NaN
            raise ValueError("a weight must be finite, at least 0 and at most 1e12")
        self._require_fit(update)
        for name, sums in self._sums.items():
            pairs = zip(
                torch.split(sums.view(-1), BLOCK_ELEMENTS),
                torch.split(update[name].detach().reshape(-1), BLOCK_ELEMENTS),
                strict=True,
            )
            for into, block in pairs:
                into.add_(block.to(torch.float64) * weight)  # two roundings on every machine: no fused step
        self._total_weight += weight
        self.updates += 1

    def result(self) -> dict[str, Tensor]:
        """Return the weighted mean as float32 tensors by name.

        Raises:
            ValueError: the weights add up to 0.
        """
        if self._total_weight <= 0.0:
            raise ValueError("the weights of a mean must add up to more than 0")
        return {name: (sums / self._total_weight).to(torch.float32) for name, sums in self._sums.items()}

    def _require_fit(self, update: Mapping[str, Tensor]) -> None:
        if set(update) != set(self._sums):
            odd = sorted(set(update) ^ set(self._sums))[0]
            raise ValueError(f"{odd}: missing from the update, or not part of the adapter")
        for name, sums in self._sums.items():
            if update[name].shape != sums.shape or update[name].dtype != torch.float32:
                raise ValueError(f"{name}: expected float32 of shape {list(sums.shape)}")
        if not is_finite(update):
            raise ValueError("an update holds a value that is not finite")
