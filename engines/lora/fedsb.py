"""Fed-SB: only an r x r core is trained, between two orthonormal bases that all draw from the public seed.

With bases from private gradients (as in the paper's code) the bases would be a release of their own. With
orthonormal ones the core's norm is the weight change's norm, and so is the norm of noise on it.
"""

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

from engines.lora.factors import Pair
from engines.lora.scaling import LoraScale
from engines.lora.seeding import seeded_a

_ONE = 2.0**30
"""Grid of the bases: squares and their sums stay below 2**61, so that products of rows are exact integers."""


def orthonormal_rows(seed: int, name: str, *, rank: int, length: int) -> Tensor:
    """Draw r orthonormal rows from a public seed, the same bits on every machine.

    Gram-Schmidt, twice, with inner products in exact integers: no library's order of additions enters. Row
    i depends on the rows before it alone, so the basis of a smaller rank is the top of that of a larger one.

    Args:
        seed: the run's public seed.
        name: whose basis; other names give independent ones.
        rank: r, at least 1 and at most the length.
        length: of a row.
    Returns:
        Shape (r, length), float32; products of rows are within 1e-6 of those of an orthonormal basis.
    Raises:
        ValueError: more rows than can be orthogonal, or the seed or shape is out of range.
    Source: Giraud et al. 2005, Numerische Mathematik 101 (twice is enough).
    """
    if rank > length:
        raise ValueError(f"there are no {rank} orthogonal rows of length {length}")
    drawn = seeded_a(seed, f"{name}.basis", (rank, length)).numpy().astype(np.float64)
    basis = np.zeros((rank, length), dtype=np.int64)
    for row in range(rank):
        basis[row] = _on_grid(drawn[row])
        for _ in range(2):
            basis[row] = _on_grid(_without(basis[row], basis[:row]))
    return torch.from_numpy((basis / _ONE).astype(np.float32))


def fold_core(core: Tensor, *, client: LoraScale, run: LoraScale) -> Tensor:
    """Rewrite a client's core, or its change, in the run's rank and scale. Any weighted sum is exact.

    Args:
        core: shape (client rank, client rank), floating.
        client: rank and alpha it was trained with.
        run: the run's, with a rank at least as large.
    Returns:
        Shape (run rank, run rank), zero outside the client's corner; dtype kept.
    Raises:
        ValueError: the rank does not fit, or the dtype is not floating.
    Source: Fed-SB, arXiv:2502.15436; the scale of each client folded in.
    """
    if tuple(core.shape) != (client.rank, client.rank) or client.rank > run.rank:
        raise ValueError(f"this core does not fit ranks {client.rank} and {run.rank}")
    if not core.is_floating_point():
        raise ValueError(f"a core is floating, not {core.dtype}")
    folded = core.new_zeros((run.rank, run.rank))
    folded[: client.rank, : client.rank] = core.to(torch.float64) * (client.factor / run.factor)
    return folded


def unfold_core(core: Tensor, *, client: LoraScale, run: LoraScale) -> Tensor:
    """Rewrite the run's core for a client: its corner, in the client's scale. `fold_core` takes it back.

    Raises:
        ValueError: the rank does not fit.
    """
    if tuple(core.shape) != (run.rank, run.rank) or client.rank > run.rank:
        raise ValueError(f"this core does not fit ranks {client.rank} and {run.rank}")
    corner = core[: client.rank, : client.rank].to(torch.float64)
    return (corner * (run.factor / client.factor)).to(core.dtype)


def as_pair(core: Tensor, *, seed: int, module: str, shape: tuple[int, int], scale: float) -> Pair:
    """Write a core as a pair that any LoRA runtime loads: B = U R and A = V.

    Args:
        core: shape (r, r), floating.
        seed: the run's public seed.
        module: path of the module.
        shape: (d, k) of the weight.
        scale: s that goes with the core.
    Returns:
        Float64, of rank r.
    Raises:
        ValueError: the core is not square, or of a rank over d or k.
    """
    rank, wide = core.shape[0], core.to(torch.float64)
    u = orthonormal_rows(seed, f"{module}.left", rank=rank, length=shape[0]).to(torch.float64)
    v = orthonormal_rows(seed, f"{module}.right", rank=rank, length=shape[1]).to(torch.float64)
    return Pair(u.T @ wide, v, scale)


def _without(row: NDArray[np.int64], before: NDArray[np.int64]) -> NDArray[np.float64]:
    """Take out of a row what lies along those before it; one is added after another, in their order."""
    rest = row.astype(np.float64)
    for other, product in zip(before, before @ row, strict=True):
        rest -= (float(product) / _ONE**2) * other
    return rest


def _on_grid(row: NDArray[np.float64]) -> NDArray[np.int64]:
    """Scale a row to norm 1 and round it to the grid; the norm is a sum of exact integers."""
    largest = float(np.abs(row).max())
    if largest == 0.0:
        raise ValueError("a row of zeros has no direction")
    units = np.rint(row * (_coarse(len(row)) / largest)).astype(np.int64)
    norm = float(np.sqrt(float(units @ units)))
    rounded: NDArray[np.int64] = np.rint(units * (_ONE / norm)).astype(np.int64)
    return rounded


def _coarse(length: int) -> float:
    """Return a power of two up to 2**30 with which `length` squares add up to less than 2**62."""
    return float(1 << min(30, (62 - (length - 1).bit_length()) // 2))
