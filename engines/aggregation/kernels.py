"""The inner loops of aggregation, compiled by numba where it is installed, else in NumPy: the same bits.

Both add in the order of the rows and round every product before it is added, so a machine without the
compiler aggregates to the same numbers, only slower. Where a process has chosen a GPU they run there instead
(`engines.aggregation.device`).
"""

import functools
import importlib.util
from typing import Any

import numpy as np
from numpy.typing import NDArray

from engines.aggregation.device import COLUMNS, chosen
from engines.aggregation.network import comparators

Numbers = NDArray[Any]
"""float32, float64 or int64."""

STRIP_COLUMNS = 128
"""Columns sorted together: 100 float32 clients of them fill a core's first cache. A constant of the compiled
loops, which are a third slower with a length that they learn at run time."""

CACHE_LINE = 64
"""Bytes that a processor reads and writes together: a multiple of the widest vectors."""

COMPILED_AFTER = 1 << 25
"""Values that a process works on in NumPy before it compiles its loops."""

LANES = 256
"""Sums kept side by side for one row, so that adding needs no other order than the compiled loops have."""


class Compiled:
    """The loops, compiled for whatever dtypes they are called with."""

    def __init__(self) -> None:
        import numba  # noqa: PLC0415  (optional, and 0.8 s to import)

        compiler = numba.njit(nogil=True, fastmath=False)  # no fused steps and no other order of sums
        self.add_rows: Any = compiler(_add_rows)
        self.subtract_row: Any = compiler(_subtract_row)
        self.add_squares: Any = compiler(_add_squares)
        sort = compiler(_sort_strip)
        self.sort_strips: Any = compiler(_keeping(sort))
        self.sum_ranks: Any = compiler(_adding(sort))


@functools.cache
def compiled() -> Compiled | None:
    """Return the compiled loops, or None where numba is not installed."""
    return Compiled() if importlib.util.find_spec("numba") else None


class _Worked:
    values = 0


def worth_compiling(rows: Numbers) -> Compiled | None:
    """Count the values that this process has worked on, and return the compiled loops once they pay.

    Compiling takes seconds, longer than a small round; either way the numbers are the same.
    """
    _Worked.values += rows.size
    return compiled() if _Worked.values > COMPILED_AFTER else None


def add_rows(total: Numbers, rows: Numbers, weights: Numbers) -> None:
    """Add weights[i] * rows[i] to `total`, i in order; rows of weight zero are not looked at.

    Args:
        total: shape (w,), float64 or int64; changed.
        rows: shape (n, w).
        weights: shape (n,), dtype of `total`.
    """
    if (device := chosen()) is not None:
        device.add_rows(total, rows, weights)
        return
    if (fast := worth_compiling(rows)) is not None:
        fast.add_rows(total, *_flat(rows), weights)
        return
    for row, weight in zip(rows, weights, strict=True):
        if weight == 1:
            total += row
        elif weight != 0:
            total += row.astype(total.dtype) * weight


def tile_columns(on_processor: int) -> int:
    """Return how many columns a tile should have: so many as fit a core's cache, or a GPU's many."""
    return on_processor if chosen() is None else max(on_processor, COLUMNS)


def add_centred_products(total: Numbers, rows: Numbers, scratch: Numbers) -> None:
    """Add the inner products of the rows about their mean: total[i, j] += <x_i - m, x_j - m>.

    Args:
        total: shape (n, n), float64; changed.
        rows: shape (n, w), float32 or float64.
        scratch: at least n * w float64 values; changed where the processor works.
    """
    if (device := chosen()) is not None:
        device.add_centred_products(total, rows)
        return
    clients, centre = len(rows), np.zeros(rows.shape[1])
    add_rows(centre, rows, np.ones(clients))
    centred = scratch[: rows.size].reshape(rows.shape)
    if (fast := worth_compiling(rows)) is not None:
        fast.subtract_row(*_flat(rows), centre / clients, centred)
    else:
        np.subtract(rows, centre / clients, out=centred)
    total += centred @ centred.T


def mix(weights: Numbers, rows: Numbers, out: Numbers) -> None:
    """Write weights @ rows to `out`.

    Args:
        weights: shape (m, n), dtype of `rows`.
        rows: shape (n, w), floating.
        out: shape (m, w), dtype of `rows`; changed.
    """
    if (device := chosen()) is not None:
        device.mix(weights, rows, out)
    else:
        np.matmul(weights, rows, out=out)


def add_squares(lanes: Numbers, rows: Numbers) -> None:
    """Add the squares of each row to its lanes, column by column in turn; overflow is for the caller to see.

    Args:
        lanes: shape (n, LANES), float64; changed. Their sums are the rows' squared norms.
        rows: shape (n, w).
    """
    if (device := chosen()) is not None:
        device.add_squares(lanes, rows)
        return
    if (fast := worth_compiling(rows)) is not None:
        fast.add_squares(lanes, *_flat(rows), rows.shape[1])
        return
    for start in range(0, rows.shape[1], LANES):
        wide = rows[:, start : start + LANES].astype(np.float64)
        lanes[:, : wide.shape[1]] += wide * wide


def sorted_rows(rows: Numbers, low: int, high: int) -> Numbers:
    """Sort every column, and return ranks `low` to `high` - 1 of it, smallest first.

    Args:
        rows: shape (n, w), no NaN; left as it was.
        low: first rank, from 0.
        high: one past the last.
    Returns:
        A new array, shape (high - low, w), dtype of `rows`.
    """
    if (device := chosen()) is not None:
        return device.sorted_rows(rows, low, high)
    pairs = comparators(len(rows), low, high)
    if (fast := worth_compiling(rows)) is None:
        columns = np.sort(rows.T, axis=1)
        return np.ascontiguousarray(columns[:, low:high].T)
    out = np.empty((high - low, rows.shape[1]), dtype=rows.dtype)
    strip = _empty_strip(len(rows), rows.dtype)
    fast.sort_strips(*_flat(rows), pairs, low, strip, out)
    return out


def sum_ranks(rows: Numbers, low: int, high: int) -> Numbers:
    """Add ranks `low` to `high` - 1 of every column, smallest first.

    Args:
        rows: shape (n, w), no NaN; left as it was.
        low: first rank, from 0.
        high: one past the last.
    Returns:
        Shape (w,), float64, or int64 for integer rows.
    """
    total = np.zeros(rows.shape[1], dtype=np.float64 if rows.dtype.kind == "f" else np.int64)
    if chosen() is not None or (fast := worth_compiling(rows)) is None:
        add_rows(total, sorted_rows(rows, low, high), np.ones(high - low, dtype=total.dtype))
        return total
    strip = _empty_strip(len(rows), rows.dtype)
    fast.sum_ranks(*_flat(rows), comparators(len(rows), low, high), low, high, strip, total)
    return total


def _flat(rows: Numbers) -> tuple[Numbers, int]:
    """Return rows as one line of memory and the step from row to row: the compiler then knows neighbours."""
    size = rows.dtype.itemsize
    if rows.strides[1] != size or rows.strides[0] % size or rows.strides[0] < 0:
        rows = np.ascontiguousarray(rows)
    stride = rows.strides[0] // size
    length = (len(rows) - 1) * stride + rows.shape[1]
    return np.lib.stride_tricks.as_strided(rows, (length,), (size,), writeable=False), stride


def _empty_strip(count: int, dtype: np.dtype[Any]) -> Numbers:
    """Return zeros of shape (count, STRIP_COLUMNS) that begin with a cache line.

    Elsewhere every other vector lies in two lines, and sorting takes up to a third longer.
    """
    size_bytes = count * STRIP_COLUMNS * dtype.itemsize
    memory = np.zeros(size_bytes + CACHE_LINE, dtype=np.uint8)
    start = -memory.ctypes.data % CACHE_LINE
    return memory[start : start + size_bytes].view(dtype).reshape(count, STRIP_COLUMNS)


def _add_rows(total: Numbers, flat: Numbers, stride: int, weights: Numbers) -> None:
    """Add four rows at a time, each after the other: three times as fast as one, in the same order."""
    width, used = len(total), np.flatnonzero(weights)
    together = len(used) - len(used) % 4
    for k in range(0, together, 4):
        at = used[k : k + 4]
        one, two = flat[at[0] * stride :][:width], flat[at[1] * stride :][:width]
        three, four = flat[at[2] * stride :][:width], flat[at[3] * stride :][:width]
        w1, w2, w3, w4 = weights[at[0]], weights[at[1]], weights[at[2]], weights[at[3]]
        for j in range(width):
            total[j] = (((total[j] + w1 * one[j]) + w2 * two[j]) + w3 * three[j]) + w4 * four[j]
    for k in range(together, len(used)):
        row, weight = flat[used[k] * stride :][:width], weights[used[k]]
        for j in range(width):
            total[j] += weight * row[j]


def _subtract_row(flat: Numbers, stride: int, centre: Numbers, out: Numbers) -> None:
    for i in range(len(out)):
        row, into = flat[i * stride : i * stride + len(centre)], out[i]
        for j in range(len(centre)):
            into[j] = row[j] - centre[j]


def _add_squares(lanes: Numbers, flat: Numbers, stride: int, width: int) -> None:
    for i in range(len(lanes)):
        own = lanes[i]
        for start in range(0, width, LANES):
            piece = flat[i * stride + start : i * stride + min(start + LANES, width)]
            for j in range(len(piece)):
                wide = np.float64(piece[j])
                own[j] += wide * wide


def _sort_strip(  # noqa: PLR0917  (a compiled loop takes its arguments by position)
    flat: Numbers, stride: int, start: int, width: int, pairs: Numbers, strip: Numbers
) -> None:
    for i in range(len(strip)):
        row, into = flat[i * stride + start : i * stride + start + width], strip[i]
        for j in range(width):
            into[j] = row[j]
    for k in range(len(pairs)):
        lower, upper = strip[pairs[k, 0]], strip[pairs[k, 1]]
        for j in range(STRIP_COLUMNS):
            one, other = lower[j], upper[j]
            lower[j] = one if one < other else other
            upper[j] = other if one < other else one


def _keeping(sort: Any) -> Any:
    def sort_strips(  # noqa: PLR0917  (as above)
        flat: Numbers, stride: int, pairs: Numbers, low: int, strip: Numbers, out: Numbers
    ) -> None:
        for start in range(0, out.shape[1], STRIP_COLUMNS):
            width = min(STRIP_COLUMNS, out.shape[1] - start)
            sort(flat, stride, start, width, pairs, strip)
            for i in range(len(out)):
                for j in range(width):
                    out[i, start + j] = strip[low + i, j]

    return sort_strips


def _adding(sort: Any) -> Any:
    def sum_ranks(  # noqa: PLR0917  (as above)
        flat: Numbers, stride: int, pairs: Numbers, low: int, high: int, strip: Numbers, total: Numbers
    ) -> None:
        for start in range(0, len(total), STRIP_COLUMNS):
            width = min(STRIP_COLUMNS, len(total) - start)
            sort(flat, stride, start, width, pairs, strip)
            into = total[start : start + width]
            for i in range(low, high):
                row = strip[i]
                for j in range(width):
                    into[j] += row[j]

    return sum_ranks
