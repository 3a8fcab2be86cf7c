"""Plain float64 references of the robust rules, for tests of sensitivity: short, slow and literal.

Each takes the clients' vectors, shape (n, d), already clipped, ties broken by row, and returns shape (d,).
"""

import itertools

import numpy as np
from numpy.typing import NDArray

Vectors = NDArray[np.float64]


def clipped(vectors: Vectors, norm: float) -> Vectors:
    lengths = np.linalg.norm(vectors, axis=-1, keepdims=True)
    output: Vectors = vectors * np.minimum(1.0, norm / np.maximum(lengths, 1e-300))
    return output


# With a bound: unnormalised outputs.


def plain_sum(vectors: Vectors) -> Vectors:
    output: Vectors = vectors.sum(axis=0)
    return output


def trimmed_sum(vectors: Vectors, *, trimmed: int) -> Vectors:
    output: Vectors = np.sort(vectors, axis=0)[trimmed : len(vectors) - trimmed].sum(axis=0)
    return output


def bucketed_trimmed_sum(vectors: Vectors, *, order: list[int], bucket_size: int, trimmed: int) -> Vectors:
    buckets = [order[start : start + bucket_size] for start in range(0, len(order), bucket_size)]
    return trimmed_sum(np.stack([vectors[bucket].sum(axis=0) for bucket in buckets]), trimmed=trimmed)


def nearest_neighbour_trimmed_sum(vectors: Vectors, *, faulty: int, trimmed: int) -> Vectors:
    kept = len(vectors) - faulty
    nearest = np.argsort(_squared_distances(vectors), axis=1, kind="stable")[:, :kept]
    return trimmed_sum(vectors[nearest].mean(axis=1), trimmed=trimmed)


def centered_clipping(
    vectors: Vectors, *, centre: Vectors, radius: float, iterations: int, absent: int | None = None
) -> Vectors:
    """Return n times the last centre; the term of client `absent` is zero."""
    clients = len(vectors)
    present = np.delete(vectors, absent, axis=0) if absent is not None else vectors
    for _ in range(iterations):
        centre = centre + clipped(present - centre, radius).sum(axis=0) / clients
    return clients * centre


def trusted_reference(vectors: Vectors, *, reference: Vectors) -> Vectors:
    norm = np.linalg.norm(reference)
    largest = np.abs(vectors).max(axis=1, keepdims=True)
    scaled = vectors / np.where(largest > 0.0, largest, 1.0)  # first, so that no tiny square is lost
    directions = scaled / np.where(largest > 0.0, np.linalg.norm(scaled, axis=1, keepdims=True), 1.0)
    trust = np.maximum(directions @ (reference / norm), 0.0)
    output: Vectors = (trust[:, None] * directions * norm).sum(axis=0)
    return output


# Without a useful bound: the outputs themselves, which nobody divides further.


def median(vectors: Vectors) -> Vectors:
    output: Vectors = np.median(vectors, axis=0)
    return output


def geometric_median(vectors: Vectors) -> Vectors:
    centre = vectors.mean(axis=0)
    for _ in range(300):  # Weiszfeld
        weights = 1.0 / np.maximum(np.linalg.norm(vectors - centre, axis=1), 1e-12)
        centre = weights @ vectors / weights.sum()
    output: Vectors = centre
    return output


def krum_scores(vectors: Vectors, *, faulty: int) -> NDArray[np.float64]:
    near = np.sort(_squared_distances(vectors), axis=1)[:, 1 : max(2, len(vectors) - faulty - 1)]
    output: Vectors = near.sum(axis=1)
    return output


def krum(vectors: Vectors, *, faulty: int) -> Vectors:
    output: Vectors = vectors[int(np.argmin(krum_scores(vectors, faulty=faulty)))]
    return output


def multi_krum(vectors: Vectors, *, faulty: int, chosen: int) -> Vectors:
    best = np.argsort(krum_scores(vectors, faulty=faulty), kind="stable")[:chosen]
    output: Vectors = vectors[best].mean(axis=0)
    return output


def bulyan(vectors: Vectors, *, faulty: int) -> Vectors:
    left: list[int] = list(range(len(vectors)))
    selected: list[int] = []
    wanted = len(vectors) - 2 * faulty
    while len(selected) < wanted:
        at = int(np.argmin(krum_scores(vectors[left], faulty=faulty))) if len(left) > 2 else 0
        selected.append(left.pop(at))
    return _mean_around_median(vectors[selected], kept=wanted - 2 * faulty)


def minimum_diameter(vectors: Vectors, *, faulty: int) -> Vectors:
    distances = _squared_distances(vectors)
    subsets = itertools.combinations(range(len(vectors)), len(vectors) - faulty)
    best = min(subsets, key=lambda subset: distances[np.ix_(subset, subset)].max())
    output: Vectors = vectors[list(best)].mean(axis=0)
    return output


def mean_around_median(vectors: Vectors, *, faulty: int) -> Vectors:
    return _mean_around_median(vectors, kept=len(vectors) - faulty)


def divide_and_conquer(vectors: Vectors, *, removed: int) -> Vectors:
    centred = vectors - vectors.mean(axis=0)
    direction = np.linalg.svd(centred, full_matrices=False)[2][0]
    scores = (centred @ direction) ** 2
    kept = np.argsort(scores, kind="stable")[: len(vectors) - removed]
    output: Vectors = vectors[kept].mean(axis=0)
    return output


def _mean_around_median(vectors: Vectors, *, kept: int) -> Vectors:
    nearest = np.argsort(np.abs(vectors - np.median(vectors, axis=0)), axis=0, kind="stable")[:kept]
    output: Vectors = np.take_along_axis(vectors, nearest, axis=0).mean(axis=0)
    return output


def _squared_distances(vectors: Vectors) -> NDArray[np.float64]:
    output: Vectors = ((vectors[:, None, :] - vectors[None, :, :]) ** 2).sum(axis=2)
    return output
