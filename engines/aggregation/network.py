"""Sorting networks: the fixed list of compare-exchanges that puts every column of a block in order.

The list depends on the number of clients alone, so whole rows are compared at once and no value decides
which branch is taken.
"""

import functools

import numpy as np
from numpy.typing import NDArray


@functools.lru_cache(maxsize=64)
def comparators(count: int, low: int, high: int) -> NDArray[np.int64]:
    """List the compare-exchanges after which ranks `low` to `high` - 1 are right.

    Batcher's odd-even merge sort, and of it only what those ranks depend on.

    Args:
        count: values to sort, at least 1.
        low: first rank wanted, from 0 for the smallest.
        high: one past the last rank wanted.
    Returns:
        Shape (m, 2): positions (a, b), a < b; the smaller value goes to a.
    Raises:
        ValueError: no rank is wanted, or one that does not exist.
    Source: Batcher 1968, AFIPS 32; Knuth, TAOCP 3, 5.3.4 (networks for any number of values).
    """
    if not 0 <= low < high <= count:
        raise ValueError(f"ranks {low} to {high - 1} do not exist among {count} values")
    wanted = set(range(low, high))
    kept: list[tuple[int, int]] = []
    for lower, upper in reversed(_merge_sort(count)):
        if lower in wanted or upper in wanted:
            kept.append((lower, upper))
            wanted.update((lower, upper))
    return np.array(kept[::-1], dtype=np.int64).reshape(-1, 2)


def _merge_sort(count: int) -> list[tuple[int, int]]:
    """List all compare-exchanges of Batcher's sort; positions past the end act as infinitely large."""
    pairs: list[tuple[int, int]] = []
    run = 1
    while run < count:
        distance = run
        while distance >= 1:
            pairs += _merge_step(count, run=run, distance=distance)
            distance //= 2
        run *= 2
    return pairs


def _merge_step(count: int, *, run: int, distance: int) -> list[tuple[int, int]]:
    return [
        (at, at + distance)
        for start in range(distance % run, count - distance, 2 * distance)
        for at in range(start, min(start + distance, count - distance))
        if at // (2 * run) == (at + distance) // (2 * run)
    ]
