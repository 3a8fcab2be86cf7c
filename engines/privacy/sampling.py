"""Poisson sampling of records from a cryptographic stream.

Not a loader: it returns positions. The rate is the manifest's constant, never derived from a data set.
"""

import math

import numpy as np
import torch
from torch import Tensor

from engines.privacy.noise import NoiseStream


def poisson_subset(stream: NoiseStream, population: int, *, rate: float) -> Tensor:
    """Include every record independently with probability `rate`.

    A record is in iff its 64-bit word is below rate * 2**64. For a float64 rate of at least 2**-11 that
    is exactly `rate`; below, the threshold is rounded down, so the probability is never above `rate`.

    Args:
        stream: source of uniform words; never derived from a run's seed.
        population: number of records, at least 0.
        rate: probability q, 0 < q <= 1.
    Returns:
        int64, shape (k,), the ascending positions of the records that are in; k may be 0.
    Raises:
        ValueError: `population` is negative or `rate` is not in (0, 1].
    """
    if population < 0:
        raise ValueError("a population has at least 0 records")
    if not 0.0 < rate <= 1.0:
        raise ValueError("the sampling rate must be above 0 and at most 1")
    words = stream.words(population)
    threshold = math.floor(math.ldexp(rate, 64))
    chosen = np.flatnonzero(words < np.uint64(threshold)) if threshold < 2**64 else np.arange(population)
    return torch.from_numpy(chosen.astype(np.int64))
