"""Rules that choose clients by their distances: Krum, Multi-Krum, Bulyan's first half, MDA and DnC.

Each takes squared distances or the Gram matrix, and names rows; what becomes of the rows is not decided
here. Ties go to the earlier row.
"""

import itertools

import numpy as np
from numpy.typing import NDArray

from engines.aggregation.rows import Weights

MOST_REMOVED_BY_MDA = 20
"""f from which finding the smallest diameter, which takes about 1.5^f steps, is refused."""


def krum_scores(distances: Weights, *, faulty: int) -> Weights:
    """Add up each row's squared distances to its n - f - 2 nearest others (at least one).

    Args:
        distances: squared, shape (n, n), zero on the diagonal; n >= 2.
        faulty: f.
    Returns:
        Shape (n,), float64; the smaller, the more trusted.
    Source: Blanchard et al. 2017, arXiv:1703.02757: n - f - 2 neighbours, the row itself not among them.
    """
    count = len(distances)
    others = distances + np.diag(np.full(count, np.inf))
    nearest = np.sort(others, axis=1)[:, : max(count - faulty - 2, 1)]
    scores: Weights = np.cumsum(nearest, axis=1)[:, -1]  # one order of adding, whatever the stride
    return scores


def krum_order(distances: Weights, *, faulty: int) -> NDArray[np.intp]:
    """Return all rows, the one with the smallest Krum score first."""
    return np.argsort(krum_scores(distances, faulty=faulty), kind="stable")


def bulyan_selection(distances: Weights, *, faulty: int) -> list[int]:
    """Choose n - 2f rows, each by Krum among those that are left; ascending.

    Source: El Mhamdi et al. 2018, arXiv:1802.07927.
    """
    left = list(range(len(distances)))
    chosen: list[int] = []
    while len(chosen) < len(distances) - 2 * faulty:
        among = distances[np.ix_(left, left)]
        best = int(np.argmin(krum_scores(among, faulty=faulty))) if len(left) > 1 else 0
        chosen.append(left.pop(best))
    return sorted(chosen)


def smallest_diameter(distances: Weights, *, faulty: int) -> list[int]:
    """Choose n - f rows whose largest distance is the smallest possible; ascending.

    A diameter t is possible iff at most f rows touch every pair farther apart than t: a vertex cover, found
    by branching on the row with the most such pairs; t by bisection over the distances that occur.

    Raises:
        ValueError: f is over 20, where the search may take too long.
    Source: El Mhamdi et al. 2021, arXiv:2008.00742 (minimum diameter averaging).
    """
    if faulty > MOST_REMOVED_BY_MDA:
        raise ValueError(
            f"the smallest diameter is searched for at most {MOST_REMOVED_BY_MDA} faulty clients"
        )
    candidates = np.unique(distances)
    low, high = 0, len(candidates) - 1
    removed = list(range(len(distances) - faulty, len(distances)))
    while low <= high:
        middle = (low + high) // 2
        cover = _cover(distances > candidates[middle], faulty)
        if cover is None:
            low = middle + 1
        else:
            removed, high = cover, middle - 1
    spare = [row for row in reversed(range(len(distances))) if row not in removed]
    removed = removed + spare[: faulty - len(removed)]
    return [row for row in range(len(distances)) if row not in removed]


def divide_and_conquer(products: Weights, *, removed: int) -> list[int]:
    """Leave out the row that reaches farthest along the direction in which all differ most, time and again.

    The paper looks at random subsets of coordinates, since a spectrum of all is dear, and removes all rows
    by one direction. The Gram matrix has the spectrum of all coordinates at once, so nothing is drawn, and
    the direction is found anew after each row: hostile rows that differ do not hide behind the longest.

    Args:
        products: Gram matrix, shape (n, n).
        removed: rows left out, under n.
    Returns:
        The rows that are left, ascending.
    Source: Shejwalkar and Houmansadr 2021, NDSS (DnC), changed as said above.
    """
    left = list(range(len(products)))
    for _ in range(removed):
        among = products[np.ix_(left, left)]
        centred = among - among.mean(axis=0)
        centred = centred - centred.mean(axis=1, keepdims=True)
        direction = np.linalg.eigh((centred + centred.T) / 2.0)[1][:, -1]
        reach = direction**2
        farthest = np.flatnonzero(reach >= reach.max() * (1.0 - 1e-9))[-1]  # of equals the last goes
        left.pop(int(farthest))
    return left


def diameter(distances: Weights, rows: list[int]) -> float:
    """Return the largest squared distance among `rows`."""
    return max((float(distances[i, j]) for i, j in itertools.combinations(rows, 2)), default=0.0)


def _cover(far: NDArray[np.bool_], budget: int) -> list[int] | None:
    """Find at most `budget` rows that touch every far pair, or None."""
    degrees = far.sum(axis=1)
    row = len(degrees) - 1 - int(np.argmax(degrees[::-1]))  # of equals the last: earlier rows are kept
    if degrees[row] == 0:
        return []
    if budget == 0:
        return None
    neighbours = np.flatnonzero(far[row]).tolist()
    for taken in ([row], neighbours):
        if len(taken) <= budget:
            rest = far.copy()
            rest[taken, :] = rest[:, taken] = False
            cover = _cover(rest, budget - len(taken))
            if cover is not None:
                return taken + cover
        if degrees[row] == 1:
            break  # then taking the neighbour is no better
    return None
