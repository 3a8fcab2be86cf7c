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


def extrapolation(
    norms: Sequence[float],
    change: NDArray[Any],
    *,
    weights: Sequence[float] | None = None,
    noise_energy: float = 0.0,
    epsilon: float = 0.0,
) -> float:
    """Return FedExP's server rate max(1, (mean |Delta_i|^2 - noise) / (2 (|Delta|^2 + epsilon))).

    |Delta| is the norm of what is released, its noise included: noise makes the quotient smaller and the
    step shorter, so that the rule damps itself. Taking the noise off there would lengthen steps where little
    is known. In the clients' own norms noise does the opposite: where every client adds its own, the quotient
    of pure noise is n / 2. Its expected part, a public constant, is therefore taken off the numerator. The
    norms themselves are data: under central noise or secure aggregation they must be charged.

    Args:
        norms: |Delta_i| of the n updates that were aggregated, parameter units.
        change: the aggregate, shape (d,).
        weights: what each update counted in the aggregate, at least 0, not all 0; alike unless given.
        noise_energy: expected squared norm of the noise in one update, at least 0.
        epsilon: added to the squared norm, at least 0.
    Returns:
        At least 1; 1 where the aggregate is zero and `epsilon` too.
    Raises:
        ValueError: no update, or a number that is not finite or negative.
    Source: Jhunjhunwala et al. 2023, arXiv:2301.09604, equation (4); with each client's own noise the
        numerator needs a form of its own: Takakura et al. 2025, arXiv:2504.09850.
    """
    lengths = np.asarray(norms, dtype=np.float64)
    counts = np.ones(lengths.size) if weights is None else np.asarray(weights, dtype=np.float64)
    square = float(np.linalg.norm(np.asarray(change, dtype=np.float64))) ** 2
    fine = lengths.size > 0 and counts.shape == lengths.shape
    fine = fine and all(np.isfinite(one).all() and (one >= 0.0).all() for one in (lengths, counts))
    if not fine or not counts.any() or not all(0.0 <= x < math.inf for x in (square, noise_energy, epsilon)):
        raise ValueError("a step's length needs finite norms of at least one update")
    if square + epsilon == 0.0:
        return 1.0
    spread = float(counts @ lengths**2) / float(counts.sum()) - noise_energy
    return max(1.0, spread / (2.0 * (square + epsilon)))


def carried_noise(
    *, local_steps: int, learning_rate: float, momentum: float, proximal_mu: float = 0.0
) -> float:
    """Return the standard deviation that noise of deviation 1 on every local step leaves in a change.

    Of SGD with momentum from rest and FedProx's pull, per coordinate: the root of the sum of squares of the
    response to one step's noise. That the noise moves later gradients too is left out; where the loss is
    convex this shortens what is left of it.

    Args:
        local_steps: T, at least 1.
        learning_rate: eta, positive.
        momentum: at least 0 and under 1.
        proximal_mu: at least 0.
    Raises:
        ValueError: an argument is out of range.
    """
    if local_steps < 1 or not (0.0 < learning_rate < math.inf and 0.0 <= momentum < 1.0):
        raise ValueError("noise is carried through at least one step with a rate and a momentum")
    if not 0.0 <= proximal_mu < math.inf:
        raise ValueError("a proximal strength is finite and at least 0")
    speed, moved, squares = 1.0, 0.0, 0.0
    for _step in range(local_steps):
        moved -= learning_rate * speed
        squares += moved * moved
        speed = momentum * speed + proximal_mu * moved
    return math.sqrt(squares)


def staleness_weight(versions_behind: int) -> float:
    """Return s = 1 / sqrt(1 + tau), tau being the number of versions published since the client's own.

    Raises:
        ValueError: the update comes from the future.
    """
    if versions_behind < 0:
        raise ValueError("an update cannot start from a version that does not exist yet")
    return 1.0 / math.sqrt(1.0 + versions_behind)


def buffered_mean(
    rows: Rows, versions_behind: Sequence[int], *, buffer: int, worth: Sequence[float] | None = None
) -> Numbers:
    """Return (1/K) sum w_i s(tau_i) Delta_i: over the constant K, as the paper does, not over the weights.

    Updates that were turned away count as zero, so that there may be fewer than K rows.

    Args:
        rows: the updates of one buffer, one a client, in the order of client ids.
        versions_behind: tau of each.
        buffer: K, the number of updates that fill the buffer.
        worth: w of each, 0 to 1; 1 unless given.
    Returns:
        Shape (d,), the rows' dtype.
    Raises:
        ValueError: more updates than fill the buffer, or one from the future.
    """
    if not len(versions_behind) == rows.clients <= buffer:
        raise ValueError(f"a buffer of {buffer} updates holds at most so many, each with an age")
    weights = np.array([staleness_weight(behind) for behind in versions_behind])
    if worth is not None:
        weights *= np.asarray(worth, dtype=np.float64)
    return weighted_sum(rows, weights, divisor=float(buffer))
