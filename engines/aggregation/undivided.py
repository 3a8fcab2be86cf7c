"""The forms of robust rules that central noise is added to: outputs before any division, with a proved bound.

Each is the partner of a class in `engines.privacy.sensitivity`, which says how far one client can move it.
They are given clipped rows, n of them or fewer, with zeros where absence means the zero vector; noise first,
then the caller divides by a public constant.
"""

import numpy as np
from numpy.typing import NDArray

from engines.aggregation.centres import centered_clipping, trusted_sum
from engines.aggregation.coordinates import trimmed_sum
from engines.aggregation.gram import gram, squared_distances
from engines.aggregation.kernels import Numbers
from engines.aggregation.linear import plain_sum, weighted_sum
from engines.aggregation.mixing import buckets, nearest_neighbours
from engines.aggregation.rows import Anchored, Mixed, Rows

__all__ = [
    "bucketed_trimmed_sum",
    "centered_clipping_sum",
    "nearest_neighbour_trimmed_sum",
    "plain_sum",
    "trimmed_sum",
    "trusted_sum",
]


def bucketed_trimmed_sum(rows: Rows, *, order: NDArray[np.intp], bucket_size: int, trimmed: int) -> Numbers:
    """Add up buckets of clients, and trim among the buckets' sums.

    Args:
        rows: n rows of d floating values.
        order: a public permutation of the clients.
        bucket_size: s.
        trimmed: b, bucket sums left out at either end.
    Returns:
        Shape (d,), the rows' dtype.
    Raises:
        ValueError: buckets that are none, or too few to trim.
    """
    return trimmed_sum(Mixed(rows, buckets(order, size=bucket_size, sums=True)), trimmed=trimmed)


def nearest_neighbour_trimmed_sum(rows: Rows, *, faulty: int, trimmed: int) -> Numbers:
    """Replace each vector by the mean of its n - f nearest, and take the trimmed sum.

    Args:
        rows: n rows of d floating values.
        faulty: f, vectors left out of every mean.
        trimmed: b, values left out at either end of a coordinate.
    Returns:
        Shape (d,), the rows' dtype; it is real arithmetic, so rounding to a grid comes after it.
    Raises:
        ValueError: nothing would be left of a mean or of a coordinate.
    """
    weights = nearest_neighbours(squared_distances(gram(rows)), faulty=faulty)
    return trimmed_sum(Mixed(rows, weights), trimmed=trimmed)


def centered_clipping_sum(
    rows: Rows, *, centre: Numbers, radius: float, iterations: int, clients: int
) -> Numbers:
    """Return n times the last centre.

    Args:
        rows: those present, where an absent client's TERM is zero; all n, where its vector is.
        centre: the first one, shape (d,), public or released.
        radius: tau.
        iterations: L.
        clients: the public n, at least the number of rows.
    Returns:
        Shape (d,), the rows' dtype.
    Raises:
        ValueError: a setting is out of range.
    """
    anchored = Anchored(rows, centre)
    weights = centered_clipping(gram(anchored), radius=radius, iterations=iterations, clients=clients)
    return weighted_sum(anchored, clients * weights)
