"""The inner loops of aggregation on a GPU, by torch: a tile goes over, a row or a small matrix comes back.

The rules do not change: they read the same tiles, only wider ones. Sorting gives the same values as on the
processor, and steps of a grid the same sums; floating sums are added in the device's own order, so their
last bits are the device's, and a round's record names it.
"""

from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray

Numbers = NDArray[Any]

COLUMNS = 1 << 16
"""Columns of a tile: few enough to stay small beside a GPU's memory, enough to keep it busy."""


class Device:
    """The loops of `engines.aggregation.kernels` on one torch device; shapes and dtypes are as there."""

    def __init__(self, name: str) -> None:
        """Take a device by torch's name for it, such as `cuda`.

        Raises:
            RuntimeError: torch does not know the device, or cannot use it here.
        """
        self._device = torch.device(name)
        # Metal has no float64: its tiles are added in float32, and only their sums on the host in float64.
        self._wide = torch.float32 if self._device.type == "mps" else torch.float64
        self._over(np.zeros(1, dtype=np.float32))
        self.name = (
            torch.cuda.get_device_name(self._device) if self._device.type == "cuda" else self._device.type
        )

    def add_rows(self, total: Numbers, rows: Numbers, weights: Numbers) -> None:
        """Add weights[i] * rows[i] to `total`; rows of weight zero are not looked at."""
        used = np.flatnonzero(weights)
        if len(used) < len(weights):
            rows, weights = rows[used], weights[used]
        tile, factors = self._over(rows), self._over(weights)
        if total.dtype.kind != "f":
            total += (tile * factors[:, None]).sum(dim=0).cpu().numpy()
            return
        total += (factors.to(self._wide) @ tile.to(self._wide)).cpu().numpy()

    def add_centred_products(self, total: NDArray[np.float64], rows: Numbers) -> None:
        """Add the inner products of the rows about their mean to `total`, shape (n, n)."""
        tile = self._over(rows).to(self._wide)
        tile -= tile.mean(dim=0)
        total += (tile @ tile.T).cpu().numpy()

    def add_squares(self, lanes: NDArray[np.float64], rows: Numbers) -> None:
        """Add the squared norm of each row to its first lane."""
        tile = self._over(rows).to(self._wide)
        lanes[:, 0] += (tile * tile).sum(dim=1).cpu().numpy()

    def mix(self, weights: Numbers, rows: Numbers, out: Numbers) -> None:
        """Write weights @ rows to `out`, shape (m, w)."""
        out[:] = (self._over(weights) @ self._over(rows)).cpu().numpy()

    def sorted_rows(self, rows: Numbers, low: int, high: int) -> Numbers:
        """Sort every column, and return ranks `low` to `high` - 1 of it."""
        ranks: Numbers = self._over(rows).sort(dim=0).values[low:high].cpu().numpy()
        return ranks

    def _over(self, values: Numbers) -> torch.Tensor:
        return torch.tensor(values, device=self._device)


class _Chosen:
    device: Device | None = None


def choose(name: str) -> None:
    """Let this process aggregate on a device from now on; `cpu` means the loops of `kernels` themselves."""
    _Chosen.device = None if name == "cpu" else Device(name)


def chosen() -> Device | None:
    """Return the device that this process aggregates on, or None for the processor."""
    return _Chosen.device
