"""The one matrix that every distance rule works on: inner products of the updates, n by n.

Columns are centred tile by tile and added in float64: distances do not depend on the origin, and products
of centred values keep the digits that those of large, nearly equal updates lose.
"""

from collections.abc import Mapping, Sequence

import numpy as np

from engines.aggregation.kernels import add_centred_products, tile_columns
from engines.aggregation.rows import Mixed, Rows, Weights

_TILE_VALUES = 1 << 17
"""Float64 values centred at once: about a core's second cache."""
ROUNDING = 2.0**-44
"""Squared distances below this share of the squares they come from are rounding: two rows at float32's own
resolution of each other count as equal, so that copies of one update are at distance 0."""


def gram(rows: Rows) -> Weights:
    """Return G[i, j] = <x_i - m, x_j - m>, m being the mean of all rows in each coordinate.

    For mixed rows whose base's matrix is known it follows from that, without reading anything.

    Args:
        rows: n rows of d values.
    Returns:
        Shape (n, n), float64, symmetric.
    """
    if isinstance(rows, Mixed) and rows.base_gram is not None:
        return _symmetric(rows.weights @ rows.base_gram @ rows.weights.T)
    clients = rows.clients
    width = tile_columns(max(_TILE_VALUES // clients, 256))
    total = np.zeros((clients, clients))
    scratch = np.empty(clients * min(width, rows.dimension))
    for _, tile in rows.tiles(width):
        if tile.dtype.kind != "f":
            tile = tile.astype(np.float64)  # noqa: PLW2901  (steps of a grid: exact up to 2**53)
        add_centred_products(total, tile, scratch)
    return _symmetric(total)


def squared_distances(products: Weights) -> Weights:
    """Return |x_i - x_j|^2 from a Gram matrix: shape (n, n), symmetric, never negative, 0 on the diagonal."""
    squares = np.diag(products)
    sums = squares[:, None] + squares[None, :]
    distances = sums - 2.0 * products
    sums *= ROUNDING
    distances[distances <= sums] = 0.0
    np.fill_diagonal(distances, 0.0)
    return distances


def product_gram(
    factors: Sequence[Mapping[str, tuple[Weights, Weights]]], scales: Sequence[float]
) -> Weights:
    """Return the inner products of LoRA products s_i B_i A_i, summed over modules, without forming any.

    <B_i A_i, B_j A_j> = tr((B_j^T B_i)(A_i A_j^T)): work of rank by rank.

    Args:
        factors: per client, (B of shape (d, r_i), A of shape (r_i, k)) by module, float64; d and k agree
            between clients, ranks need not.
        scales: s_i per client, alpha / r as the client trained.
    Returns:
        Shape (n, n), float64, about the origin; `squared_distances` takes it as it takes a centred one.
    Raises:
        ValueError: no client, clients with different modules, or not one finite scale for each.
    """
    if not factors or len(scales) != len(factors) or not np.isfinite(scales).all():
        raise ValueError("products need clients, and one finite scale for each")
    if any(client.keys() != factors[0].keys() for client in factors):
        raise ValueError("the clients' adapters hold different modules")
    total = np.zeros((len(factors), len(factors)))
    for i, one in enumerate(factors):
        for j, other in enumerate(factors[: i + 1]):
            total[i, j] = total[j, i] = (
                scales[i]
                * scales[j]
                * sum(
                    float(np.sum((other[name][0].T @ b) * (other[name][1] @ a.T)))
                    for name, (b, a) in one.items()
                )
            )
    return total


def _symmetric(products: Weights) -> Weights:
    """Copy the lower triangle onto the upper, in place: a distance is the same seen from either end."""
    for row in range(len(products)):
        products[row, row + 1 :] = products[row + 1 :, row]
    return products
