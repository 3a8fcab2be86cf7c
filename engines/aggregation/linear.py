"""Sums and means of updates, added in float64 (or exactly, on a grid) in the order of the rows."""

import numpy as np
from numpy.typing import NDArray

from engines.aggregation.kernels import Numbers, add_rows, tile_columns
from engines.aggregation.rows import Mixed, Rows, Weights

TILE_VALUES = 1 << 22
"""Values in a tile: long pieces of each row are read at the speed of memory; a copy stays under 16 MiB."""
_LARGEST_WEIGHT = 1e12


def weighted_sum(rows: Rows, weights: Weights, *, divisor: float = 1.0) -> Numbers:
    """Return sum_i weights[i] * row i, over `divisor`.

    Args:
        rows: n rows of d floating values.
        weights: shape (n,), float64, finite.
        divisor: not 0; the quotient is rounded once to the rows' dtype.
    Returns:
        Shape (d,), the rows' dtype.
    Raises:
        ValueError: integer rows, which no weight may scale, or weights or a divisor that are none.
    """
    if rows.dtype.kind != "f":
        raise ValueError("integer updates are steps of a grid: they are summed, never weighted")
    if weights.shape != (rows.clients,) or not np.isfinite(weights).all():
        raise ValueError("a weighted sum takes one finite weight for each update")
    if not (np.isfinite(divisor) and divisor != 0.0):
        raise ValueError("the divisor of a sum is finite and not 0")
    if isinstance(rows, Mixed):
        return weighted_sum(rows.base, weights @ rows.weights, divisor=divisor)
    out = np.empty(rows.dimension, dtype=rows.dtype)
    for start, tile in rows.tiles(_width(rows)):
        total = np.zeros(tile.shape[1], dtype=np.float64)
        add_rows(total, tile, weights)
        out[start : start + len(total)] = total if divisor == 1.0 else total / divisor
    return out


def weighted_mean(rows: Rows, weights: NDArray[np.float64] | None = None) -> Numbers:
    """Return the weighted mean; only the ratios of weights matter, and without any all count the same.

    Args:
        rows: n rows of d floating values.
        weights: shape (n,), 0 to 1e12 each.
    Returns:
        Shape (d,), the rows' dtype.
    Raises:
        ValueError: a weight out of range, weights that add up to 0, or integer rows.
    """
    weights = np.ones(rows.clients) if weights is None else np.asarray(weights, dtype=np.float64)
    if not ((weights >= 0.0) & (weights <= _LARGEST_WEIGHT)).all():  # also false for NaN
        raise ValueError("a weight must be finite, at least 0 and at most 1e12")
    if not weights.any():
        raise ValueError("the weights of a mean must add up to more than 0")
    return weighted_sum(rows, weights, divisor=float(weights.sum()))


def plain_sum(rows: Rows) -> Numbers:
    """Return the sum of all rows, shape (d,); exact for int64 rows whose sums stay within 64 bits."""
    if rows.dtype.kind == "f":
        return weighted_sum(rows, np.ones(rows.clients))
    out = np.empty(rows.dimension, dtype=rows.dtype)
    for start, tile in rows.tiles(_width(rows)):
        out[start : start + tile.shape[1]] = tile.sum(axis=0)
    return out


def _width(rows: Rows) -> int:
    return tile_columns(min(max(TILE_VALUES // rows.clients, 1), 1 << 16))
