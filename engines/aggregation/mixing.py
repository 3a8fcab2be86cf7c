"""What is done before a rule: each row becomes the mean of its nearest, or of a bucket drawn at random.

Both are matrices of weights over the clients; `engines.aggregation.rows.Mixed` applies them.
"""

import numpy as np
from numpy.typing import NDArray

from engines.aggregation.rows import Weights


def nearest_neighbours(distances: Weights, *, faulty: int) -> Weights:
    """Give each row equal weights on its n - f nearest rows, itself included; of two as near, the earlier.

    Args:
        distances: squared, shape (n, n), zero on the diagonal.
        faulty: f, under n.
    Returns:
        Shape (n, n); every row adds up to 1.
    Source: Allouah et al. 2023, arXiv:2302.01772 (nearest-neighbour mixing).
    """
    count = len(distances)
    if not 0 <= faulty < count:
        raise ValueError("the vectors left out of a mean must be fewer than the clients")
    own_first = distances.copy()
    np.fill_diagonal(own_first, -1.0)  # before others at distance 0
    nearest = np.argsort(own_first, axis=1, kind="stable")[:, : count - faulty]
    weights = np.zeros((count, count))
    np.put_along_axis(weights, nearest, 1.0 / (count - faulty), axis=1)
    return weights


def buckets(order: NDArray[np.intp], *, size: int, sums: bool = False) -> Weights:
    """Give each bucket equal weights on its members: the clients in `order`, `size` at a time.

    Args:
        order: a permutation of the n clients, drawn by the caller; public under central noise.
        size: s, 1 to n; the last bucket may be smaller.
        sums: make sums of the members instead of means, as central noise needs them.
    Returns:
        Shape (ceil(n / s), n); every row adds up to 1, or to its number of members.
    Raises:
        ValueError: `order` is no permutation, or the size is out of range.
    Source: Karimireddy et al. 2022, arXiv:2006.09365 (bucketing).
    """
    count = len(order)
    if not 1 <= size <= count or not np.array_equal(np.sort(order), np.arange(count)):
        raise ValueError("buckets need a permutation of the clients and a size of 1 to all of them")
    weights = np.zeros((-(-count // size), count))
    for bucket, start in enumerate(range(0, count, size)):
        members = order[start : start + size]
        weights[bucket, members] = 1.0 if sums else 1.0 / len(members)
    return weights
