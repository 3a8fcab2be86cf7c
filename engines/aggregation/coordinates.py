"""Rules that look at one coordinate at a time: trimmed sum and mean, median, and the mean around the median.

Source: Yin et al. 2018, arXiv:1803.01498 (median, trimmed mean); Xie et al. 2018, arXiv:1802.10116 (mean
around the median).
"""

import numpy as np

from engines.aggregation.kernels import Numbers, sorted_rows, sum_ranks, tile_columns
from engines.aggregation.rows import Rows

TILE_COLUMNS = 1024


def trimmed_sum(rows: Rows, *, trimmed: int) -> Numbers:
    """In each coordinate, the sum of what is left without the smallest and the largest values.

    Args:
        rows: n rows of d values; int64 steps of a grid are summed exactly.
        trimmed: b, values left out at either end; 2b < n.
    Returns:
        Shape (d,), the rows' dtype.
    Raises:
        ValueError: nothing would be left, or `trimmed` is negative.
    """
    _require_rest(rows, trimmed)
    return _rank_sum(rows, trimmed, rows.clients - trimmed, divisor=1)


def trimmed_mean(rows: Rows, *, trimmed: int) -> Numbers:
    """The trimmed sum over the n - 2b values that are left; arguments and errors as `trimmed_sum`."""
    _require_rest(rows, trimmed)
    _require_floats(rows)
    return _rank_sum(rows, trimmed, rows.clients - trimmed, divisor=rows.clients - 2 * trimmed)


def median(rows: Rows) -> Numbers:
    """The median of each coordinate; of an even number, the mean of the two in the middle. Shape (d,)."""
    _require_floats(rows)
    low, high = (rows.clients - 1) // 2, rows.clients // 2 + 1
    return _rank_sum(rows, low, high, divisor=high - low)


def mean_around_median(rows: Rows, *, kept: int) -> Numbers:
    """In each coordinate, the mean of the `kept` values nearest to the median; of two as near, the smaller.

    Args:
        rows: n rows of d floating values.
        kept: 1 to n.
    Returns:
        Shape (d,), the rows' dtype.
    Raises:
        ValueError: `kept` is out of range, or the rows are integers.
    """
    _require_floats(rows)
    if not 1 <= kept <= rows.clients:
        raise ValueError("the values kept around a median are at least 1 and at most all")
    out = np.empty(rows.dimension, dtype=rows.dtype)
    for start, tile in rows.tiles(tile_columns(TILE_COLUMNS)):
        out[start : start + tile.shape[1]] = _window_mean(sorted_rows(tile, 0, rows.clients), kept)
    return out


def _rank_sum(rows: Rows, low: int, high: int, *, divisor: int) -> Numbers:
    """Add ranks `low` to `high` - 1 of each column, smallest first, and divide."""
    out = np.empty(rows.dimension, dtype=rows.dtype)
    for start, tile in rows.tiles(tile_columns(TILE_COLUMNS)):
        total = sum_ranks(tile, low, high)
        out[start : start + len(total)] = total if divisor == 1 else total / divisor
    return out


def _window_mean(ordered: Numbers, kept: int) -> Numbers:
    """Return the mean of the `kept` neighbouring ranks nearest to the median, per column of sorted rows."""
    count = len(ordered)
    twice_median = ordered[(count - 1) // 2].astype(np.float64) + ordered[count // 2]
    first = np.zeros(ordered.shape[1], dtype=np.int64)
    for rank in range(count - kept):  # once the upper candidate is no nearer, none after it is
        first += ordered[rank].astype(np.float64) + ordered[rank + kept] < twice_median
    total = np.zeros(ordered.shape[1])
    for rank, row in enumerate(ordered):
        total += np.where((first <= rank) & (rank < first + kept), row, 0.0)
    mean: Numbers = total / kept
    return mean


def _require_rest(rows: Rows, trimmed: int) -> None:
    if trimmed < 0 or 2 * trimmed >= rows.clients:
        raise ValueError(f"trimming {trimmed} at either end of {rows.clients} values leaves none")


def _require_floats(rows: Rows) -> None:
    if rows.dtype.kind != "f":
        raise ValueError("integer updates are steps of a grid: they are summed, never averaged")
