"""The length of a server's step, and what late updates count in a buffered round.

Source: Jhunjhunwala et al. 2023, arXiv:2301.09604 (FedExP); Nguyen et al. 2022, arXiv:2106.06639 (FedBuff).
"""

import math
from collections.abc import Sequence
from typing import Any

import numpy as np
from numpy.typing import NDArray

from engines.aggregation.kernels import Numbers
from engines.aggregation.linear import weighted_sum
from engines.aggregation.rows import Rows


def extrapolation(norms: Sequence[float], change: NDArray[Any], *, epsilon: float = 0.0) -> float:
    """Return FedExP's server rate max(1, sum |Delta_i|^2 / (2 n (|Delta|^2 + epsilon))).

    |Delta| is the norm of what is released, its noise included: noise makes the quotient smaller and the
    step shorter, so that the rule damps itself. Taking the noise off would lengthen steps where little is
    known. The clients' norms are data: under central noise or secure aggregation they must be charged.

    Args:
        norms: |Delta_i| of the n updates that were aggregated, parameter units.
        change: the aggregate, shape (d,).
        epsilon: added to the squared norm, at least 0.
    Returns:
        At least 1; 1 where the aggregate is zero and `epsilon` too.
    Raises:
        ValueError: no update, or a number that is not finite or negative.
    """
    lengths = np.asarray(norms, dtype=np.float64)
    square = float(np.linalg.norm(np.asarray(change, dtype=np.float64))) ** 2
    fine = lengths.size > 0 and np.isfinite(lengths).all() and (lengths >= 0.0).all()
    if not fine or not math.isfinite(square) or not 0.0 <= epsilon < math.inf:
        raise ValueError("a step's length needs finite norms of at least one update")
    if square + epsilon == 0.0:
        return 1.0
    return max(1.0, float(lengths @ lengths) / (2.0 * lengths.size * (square + epsilon)))


def staleness_weight(versions_behind: int) -> float:
    """Return s = 1 / sqrt(1 + tau), tau being the number of versions published since the client's own.

    Raises:
        ValueError: the update comes from the future.
    """
    if versions_behind < 0:
        raise ValueError("an update cannot start from a version that does not exist yet")
    return 1.0 / math.sqrt(1.0 + versions_behind)


def buffered_mean(rows: Rows, versions_behind: Sequence[int], *, buffer: int, latest: int) -> Numbers:
    """Return (1/K) sum s(tau_i) Delta_i: divided by the constant K, as the paper does, not by the weights.

    Args:
        rows: the updates of one buffer, one a client, in the order of client ids.
        versions_behind: tau of each.
        buffer: K, the number of updates that fill the buffer.
        latest: largest tau that is taken.
    Returns:
        Shape (d,), the rows' dtype.
    Raises:
        ValueError: the buffer is not full, or an update is too old or from the future.
    """
    if rows.clients != buffer or len(versions_behind) != buffer:
        raise ValueError(f"a buffer of {buffer} updates is aggregated when it is full")
    if max(versions_behind) > latest:
        raise ValueError(f"an update is more than {latest} versions old")
    weights = np.array([staleness_weight(behind) for behind in versions_behind])
    return weighted_sum(rows, weights, divisor=float(buffer))
