"""Rules that weigh clients around a centre: geometric median, centered clipping, and a trusted reference.

The first two work on the Gram matrix and return weights; one weighted sum then makes the aggregate.
"""

import dataclasses
import math

import numpy as np

from engines.aggregation.gram import ROUNDING, squared_distances
from engines.aggregation.kernels import Numbers, add_rows
from engines.aggregation.rows import Rows, Weights

_MOST_STEPS = 500
_CERTIFICATE_SHARE = 1e-6
_SAFE = 1.0 - 2.0**-40
"""A clip radius is approached this closely only: distances come out of differences of rounded products."""
TILE_COLUMNS = 4096


class NotConverged(ArithmeticError):
    """The geometric median was not found to the precision that its certificate demands."""


@dataclasses.dataclass(frozen=True)
class Median:
    """A geometric median as a mixture of the clients, and how near to the true one it is."""

    weights: Weights
    """Shape (n,), at least 0, adding up to 1."""
    certificate: float
    """Norm of the sum of unit vectors towards the clients, what a client AT the point can balance taken off;
    0 exactly at the median, and at most 1e-6 n here."""


def geometric_median(products: Weights) -> Median:
    """Find the point whose distances to all clients add up to the least.

    Args:
        products: centred Gram matrix, shape (n, n).
    Raises:
        NotConverged: rounding or a degenerate shape keeps the certificate over 1e-6 n.
    Source: Weiszfeld 1937; Vardi and Zhang 2000, PNAS 97 (optimality at a data point); Pillutla et al.
        2022, arXiv:1912.13445 (for aggregation).
    """
    count, distances = len(products), np.sqrt(squared_distances(products))
    best = int(np.argmin(distances.sum(axis=1)))
    at_client = np.zeros(count)
    at_client[best] = 1.0
    allowed = _CERTIFICATE_SHARE * count
    certificate = _pull(products, at_client, distances[best])
    if certificate <= allowed:
        return Median(at_client, certificate)
    weights = np.full(count, 1.0 / count)
    for _ in range(_MOST_STEPS):
        lengths = _lengths(products, weights)
        certificate = _pull(products, weights, lengths)
        if certificate <= allowed / 8.0 and (weights >= 0.0).all():
            return Median(weights, certificate)
        weights = _next_weights(products, weights, lengths)
    raise NotConverged(f"the geometric median's certificate is {certificate:.2g}, over {allowed:.2g}")


def _next_weights(products: Weights, weights: Weights, lengths: Weights) -> Weights:
    """Take a step of Weiszfeld's, off a client as Vardi and Zhang do, and one of Newton's if it is nearer.

    Weiszfeld's alone slows down without limit beside a client, and stops at one: a hostile one could hold
    it up.
    """
    at = lengths == 0.0
    pulls = np.where(at, 0.0, 1.0 / np.where(at, 1.0, lengths))
    steady: Weights = pulls / pulls.sum()
    if at.any():
        held = float(at.sum())
        steady += held / (held + _pull(products, weights, lengths)) * (weights - steady)
    lengths = _lengths(products, steady)
    if not lengths.all():
        return steady
    quick = _newton(products, steady, lengths)
    nearer = _pull(products, quick, _lengths(products, quick)) < _pull(products, steady, lengths) / 2.0
    return quick if nearer else steady


def _newton(products: Weights, weights: Weights, lengths: Weights) -> Weights:
    """Solve (sum 1/d_i) p - sum u_i <u_i, p> / d_i = sum u_i for p = sum c_i u_i, n equations in c.

    u_i is the unit vector from the point to client i, at distance d_i.
    """
    towards = products @ weights
    around = products - towards[:, None] - towards[None, :] + weights @ towards
    cosines = around / np.outer(lengths, lengths)
    count = len(weights)
    system = np.eye(count) * (1.0 / lengths).sum() - cosines / lengths[:, None]
    try:
        moves = np.linalg.solve(system, np.ones(count)) / lengths
    except np.linalg.LinAlgError:  # all clients in one line
        return weights
    moved: Weights = weights + moves - moves.sum() * weights
    return moved if np.isfinite(moved).all() else weights


def _lengths(products: Weights, weights: Weights) -> Weights:
    """Return the distance of every client from the mixture of all."""
    towards = products @ weights
    sums = np.diag(products) + weights @ towards
    squares = sums - 2.0 * towards
    lengths: Weights = np.sqrt(np.where(squares <= ROUNDING * sums, 0.0, squares))
    return lengths


def _pull(products: Weights, weights: Weights, lengths: Weights) -> float:
    """Return the norm of the sum of unit vectors from a point, less the number of clients at that point."""
    near = lengths == 0.0
    if near.all():
        return 0.0
    inverse = np.where(near, 0.0, 1.0 / np.where(near, 1.0, lengths))
    coefficients = inverse - inverse.sum() * weights
    square = float(coefficients @ products @ coefficients)
    return max(math.sqrt(max(square, 0.0)) - float(near.sum()), 0.0)


def centered_clipping(
    products: Weights, *, radius: float, iterations: int, clients: int | None = None
) -> Weights:
    """Weigh the clients and the first centre after L steps v <- v + (1/n) sum clip(x_i - v, tau).

    Args:
        products: Gram matrix of the n clients and, last, the first centre; shape (n + 1, n + 1).
        radius: tau, parameter units, positive.
        iterations: L, 1 to 1,000.
        clients: the public n to divide by where some are absent and their terms count as zero.
    Returns:
        Shape (n + 1,), adding up to 1: the last centre as a mixture.
    Raises:
        ValueError: the radius, the number of iterations or the public n is out of range.
    Source: Karimireddy et al. 2021, arXiv:2012.10333.
    """
    if not 0.0 < radius < math.inf or not 1 <= iterations <= 1000:
        raise ValueError("centered clipping takes a finite positive radius and 1 to 1,000 iterations")
    present = len(products) - 1
    clients = present if clients is None else clients
    if clients < max(present, 1):
        raise ValueError("the public number of clients is at least that of those present")
    weights = np.zeros(present + 1)
    weights[-1] = 1.0
    for _ in range(iterations):
        lengths = _lengths(products, weights)[:-1]
        factors = np.where(lengths <= radius * _SAFE, 1.0, radius * _SAFE / np.maximum(lengths, 1e-300))
        weights = weights * (1.0 - factors.sum() / clients)
        weights[:-1] += factors / clients
    return weights


def trusted_sum(rows: Rows, reference: Numbers) -> tuple[Numbers, Weights]:
    """FLTrust, undivided: sum of relu(cos(x_i, g0)) * |g0| * x_i / |x_i|.

    Norms are taken of each client's own values, not from a Gram matrix, so that no term is longer than
    |g0| whatever the others sent.

    Args:
        rows: n rows of d floating values.
        reference: g0, shape (d,), finite, not zero; made from public or the server's own data.
    Returns:
        The sum, shape (d,), and relu(cos) per client, shape (n,); a zero row counts nothing.
    Raises:
        ValueError: the reference is zero, not finite or of another shape.
    Source: Cao et al. 2021, arXiv:2012.13995.
    """
    norm = float(np.linalg.norm(reference.astype(np.float64)))
    if reference.shape != (rows.dimension,) or not 0.0 < norm < math.inf:
        raise ValueError("a trusted reference is finite, not zero, and has one value for each of an update's")
    largest = _largest(rows)
    usable = largest > 0.0
    scales = np.where(usable, largest, 1.0)
    squares, dots = np.zeros(rows.clients), np.zeros(rows.clients)
    for start, tile in rows.tiles(TILE_COLUMNS):
        piece = reference[start : start + tile.shape[1]].astype(np.float64) / norm
        for client, row in enumerate(tile):
            wide = row.astype(np.float64) / scales[client]  # first, so that no tiny square is lost
            squares[client] += wide @ wide
            dots[client] += wide @ piece
    lengths = np.sqrt(np.where(usable, squares, 1.0))
    trust: Weights = np.where(usable, np.clip(dots / lengths, 0.0, 1.0), 0.0)
    return _sum_scaled(rows, trust * norm * _SAFE / lengths, scales), trust


def _largest(rows: Rows) -> Weights:
    largest = np.zeros(rows.clients)
    for _, tile in rows.tiles(TILE_COLUMNS):
        largest = np.maximum(largest, np.abs(tile).max(axis=1))
    return largest


def _sum_scaled(rows: Rows, weights: Weights, scales: Weights) -> Numbers:
    """Add weights[i] * (row i / scales[i]): two steps, since the quotient of the two may overflow."""
    out = np.empty(rows.dimension, dtype=rows.dtype)
    for start, tile in rows.tiles(TILE_COLUMNS):
        total = np.zeros(tile.shape[1])
        add_rows(total, tile.astype(np.float64) / scales[:, None], weights)
        out[start : start + len(total)] = total
    return out
