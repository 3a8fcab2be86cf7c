"""The inner loops of aggregation, compiled by numba where it is installed, else in NumPy: the same bits.

Both add in the order of the rows and round every product before it is added, so a machine without the
compiler aggregates to the same numbers, only slower.
"""

import functools
import importlib.util
from typing import Any

import numpy as np
from numpy.typing import NDArray

from engines.aggregation.network import comparators

Numbers = NDArray[Any]
"""float32, float64 or int64."""

STRIP_COLUMNS = 128
"""Columns sorted together: 100 float32 clients of them fill a core's first cache."""


class Compiled:
    """The loops, compiled for whatever dtypes they are called with."""

    def __init__(self) -> None:
        import numba  # noqa: PLC0415  (optional, and 0.8 s to import)

        compiler = numba.njit(nogil=True, fastmath=False)  # no fused steps and no other order of sums
        self.add_rows: Any = compiler(_add_rows)
        self.subtract_row: Any = compiler(_subtract_row)
        self.sort_strips: Any = compiler(_sort_strips)


@functools.cache
def compiled() -> Compiled | None:
    """Return the compiled loops, or None where numba is not installed."""
    return Compiled() if importlib.util.find_spec("numba") else None


def add_rows(total: Numbers, rows: Numbers, weights: Numbers) -> None:
    """Add weights[i] * rows[i] to `total`, i in order; rows of weight zero are not looked at.

    Args:
        total: shape (w,), float64 or int64; changed.
        rows: shape (n, w).
        weights: shape (n,), dtype of `total`.
    """
    if (fast := compiled()) is not None:
        fast.add_rows(total, rows, weights)
        return
    for row, weight in zip(rows, weights, strict=True):
        if weight == 1:
            total += row
        elif weight != 0:
            total += row.astype(total.dtype) * weight


def subtract_row(rows: Numbers, centre: Numbers, out: Numbers) -> None:
    """Write rows - centre to `out`, in float64.

    Args:
        rows: shape (n, w).
        centre: shape (w,), float64.
        out: shape (n, w), float64; changed.
    """
    if (fast := compiled()) is not None:
        fast.subtract_row(rows, centre, out)
    else:
        np.subtract(rows, centre, out=out)


def sorted_rows(rows: Numbers, low: int, high: int) -> Numbers:
    """Sort every column, and return ranks `low` to `high` - 1 of it, smallest first.

    Args:
        rows: shape (n, w), no NaN; left as it was.
        low: first rank, from 0.
        high: one past the last.
    Returns:
        A new array, shape (high - low, w), dtype of `rows`.
    """
    pairs = comparators(len(rows), low, high)
    if (fast := compiled()) is None:
        columns = np.sort(rows.T, axis=1)
        return np.ascontiguousarray(columns[:, low:high].T)
    out = np.empty((high - low, rows.shape[1]), dtype=rows.dtype)
    fast.sort_strips(rows, pairs, low, np.empty((len(rows), STRIP_COLUMNS), dtype=rows.dtype), out)
    return out


def _add_rows(total: Numbers, rows: Numbers, weights: Numbers) -> None:
    for i in range(rows.shape[0]):
        weight = weights[i]
        if weight != 0:
            for j in range(rows.shape[1]):
                total[j] += weight * rows[i, j]


def _subtract_row(rows: Numbers, centre: Numbers, out: Numbers) -> None:
    for i in range(rows.shape[0]):
        for j in range(rows.shape[1]):
            out[i, j] = rows[i, j] - centre[j]


def _sort_strips(rows: Numbers, pairs: Numbers, low: int, strip: Numbers, out: Numbers) -> None:
    for start in range(0, rows.shape[1], strip.shape[1]):
        width = min(strip.shape[1], rows.shape[1] - start)
        for i in range(rows.shape[0]):
            for j in range(width):
                strip[i, j] = rows[i, start + j]
        for k in range(pairs.shape[0]):
            lower = strip[pairs[k, 0]]
            upper = strip[pairs[k, 1]]
            for j in range(width):
                one, other = lower[j], upper[j]
                lower[j] = min(one, other)
                upper[j] = max(one, other)
        for i in range(out.shape[0]):
            for j in range(width):
                out[i, start + j] = strip[low + i, j]
