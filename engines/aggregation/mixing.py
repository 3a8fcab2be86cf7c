"""What is done before a rule: each row becomes the mean of its nearest, or of a bucket drawn at random.

Both are matrices of weights over the clients; `engines.aggregation.rows.Mixed` applies them.
"""

import numpy as np
from numpy.typing import NDArray

from engines.aggregation.gram import squared_distances
from engines.aggregation.rows import Weights

FAR = 4.0
"""Squared: an update that is twice the usual distance away is judged by that, whatever came before."""


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


def remembered(now: Weights, past: Weights) -> Weights:
    """Return squared distances between clients by what they have sent so far, and by what they send now.

    Noise hides in one round what many show: a client's mean update tells more than its present one. A client
    that was near for long and then sends something far is far all the same. Each kind of distance is measured
    by its own median over all pairs, so neither scale counts, and the larger one holds, where that between
    present updates comes in from `FAR` times the median on. In a first round both say the same.

    Args:
        now: Gram matrix of the present updates, shape (n, n).
        past: that of each client's mean update so far, the present one included; shape (n, n).
    Returns:
        Shape (n, n), symmetric, never negative, 0 on the diagonal.
    Source: Karimireddy et al. 2021, arXiv:2012.10333 (memory is needed against what no single round shows);
        what is proved of it: docs/adr/0024-a-client-is-known-by-what-it-has-sent.md.
    """
    distances = _by_median(squared_distances(now))
    distances /= FAR
    return np.maximum(distances, _by_median(squared_distances(past)), out=distances)


def _by_median(distances: Weights) -> Weights:
    """Divide by the median of all pairs, in place; where that is zero, most are copies, and nothing is."""
    count = len(distances)
    if count > 1:
        pairs = distances.reshape(-1)[:-1].reshape(count - 1, count + 1)[:, 1:]  # without the diagonal
        typical = float(np.median(pairs))
        if typical > 0.0:
            distances /= typical
    return distances


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
