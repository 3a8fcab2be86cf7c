"""The singular value decomposition of a product of thin factors, through a core as small as their rank.

B = Q_B R_B and A^T = Q_A R_A, so B @ A = Q_B (R_B R_A^T) Q_A^T, and only the R x R core is decomposed: the
d x k product is never formed.
"""

import dataclasses
import math

import torch
from torch import Tensor

from engines.lora.factors import Pair


@dataclasses.dataclass(frozen=True, eq=False)
class Spectrum:
    """A weight change u @ diag(values) @ vt, float64."""

    u: Tensor
    """Shape (d, m), orthonormal columns."""
    values: Tensor
    """Shape (m,), singular values, falling, in parameter units."""
    vt: Tensor
    """Shape (m, k), orthonormal rows."""


@dataclasses.dataclass(frozen=True)
class Projection:
    """How far a cut weight change is from the whole one: Frobenius norms, parameter units."""

    error_norm: float
    whole_norm: float

    @property
    def relative_error(self) -> float:
        """Error over the norm of the whole, 0 where that is 0."""
        return self.error_norm / self.whole_norm if self.whole_norm > 0.0 else 0.0


def spectrum_of(pair: Pair) -> Spectrum:
    """Decompose s * B @ A exactly, in O((d + k) r^2 + r^3).

    Signs are fixed (the entry of largest magnitude in every row of vt is positive), since a decomposition
    leaves them open and libraries differ.

    Args:
        pair: of shape (d, k) and rank r >= 1, finite.
    Returns:
        At most min(d, k, r) singular triplets.
    Raises:
        ValueError: a value is not finite, or the rank is 0.
    Source: Golub and Van Loan 2013, section 5.2; FlexLoRA, arXiv:2402.11505, has the same by a dense SVD.
    """
    if pair.rank < 1 or not pair.is_finite():
        raise ValueError("only finite factors of rank 1 and more can be decomposed")
    wide = pair.wide()
    left, left_core = torch.linalg.qr(wide.b)
    right, right_core = torch.linalg.qr(wide.a.T)
    u, values, vt = torch.linalg.svd(pair.scale * (left_core @ right_core.T), full_matrices=False)
    vt = vt @ right.T
    heaviest = vt.abs().argmax(dim=1, keepdim=True)
    signs = torch.where(vt.gather(1, heaviest) < 0.0, -1.0, 1.0).to(torch.float64)
    rows = (u.T @ left.T) * signs  # Q comes by columns: its transpose is multiplied eight times faster
    return Spectrum(u=rows.T, values=values, vt=vt * signs)


def cut(
    spectrum: Spectrum, rank: int, *, scale: float = 1.0, spare_a: Tensor | None = None
) -> tuple[Pair, Projection]:
    """Return the nearest pair of a rank (Eckart and Young), with B = U S / scale and A = V^T.

    Args:
        spectrum: the whole weight change.
        rank: of the pair, at least 1; larger than what there is gives zero columns of B.
        scale: s of the receiver, positive.
        spare_a: shape (rank, k), rows of A where the rank is larger than what there is. Rows of zeros,
            which are there otherwise, could never be trained: both their gradients are zero.
    Returns:
        A pair of exactly that rank, float64, and what was cut off.
    Raises:
        ValueError: the rank, the scale or the spare rows are out of range.
    Source: FlexLoRA, arXiv:2402.11505 (B divided by the receiver's own scale); Eckart and Young 1936.
    """
    if rank < 1 or not 0.0 < scale < float("inf"):
        raise ValueError("a pair is cut to a rank of at least 1 and a positive scale")
    (rows, columns), kept = (spectrum.u.shape[0], spectrum.vt.shape[1]), min(rank, len(spectrum.values))
    b = spectrum.u.new_zeros((rows, rank))
    a = spectrum.u.new_zeros((rank, columns))
    if spare_a is not None:
        if tuple(spare_a.shape) != (rank, columns):
            raise ValueError(f"spare rows have shape {[rank, columns]}, not {list(spare_a.shape)}")
        a.copy_(spare_a)
    b[:, :kept] = spectrum.u[:, :kept] * (spectrum.values[:kept] / scale)
    a[:kept] = spectrum.vt[:kept]
    return Pair(b, a, scale), projection(spectrum, rank)


def projection(spectrum: Spectrum, rank: int) -> Projection:
    """Say what a cut to this rank costs: the root of the sum of squares of the values after it."""
    return Projection(
        error_norm=float(spectrum.values[rank:].norm()), whole_norm=float(spectrum.values.norm())
    )


def together(projections: "list[Projection]") -> Projection:
    """Add up the modules' projections: norms over all of them as one vector."""
    return Projection(
        error_norm=math.hypot(*(one.error_norm for one in projections)),
        whole_norm=math.hypot(*(one.whole_norm for one in projections)),
    )


def numerical_rank(spectrum: Spectrum, *, beside: float = 0.0) -> int:
    """Count the singular values that are more than rounding.

    Args:
        spectrum: float64.
        beside: norm of a larger matrix that this one is a difference of, same units; its rounding counts.
    """
    if len(spectrum.values) == 0:
        return 0
    size = max(spectrum.u.shape[0], spectrum.vt.shape[1])
    floor = size * torch.finfo(torch.float64).eps * max(float(spectrum.values[0]), beside)
    return int((spectrum.values > floor).sum())


def rank_by_energy(spectrum: Spectrum, threshold: float) -> int:
    """Return the smallest rank that keeps a share of the energy, at least 1.

    Post-processing, and so free, of an aggregate that carries its noise already; of one without it the
    spectrum is private, and a rank chosen from it tells of the data.

    Args:
        spectrum: of the noised aggregate.
        threshold: tau, over 0 and at most 1; 1 keeps the whole rank.
    Raises:
        ValueError: the threshold is out of range.
    Source: FLoRIST, arXiv:2506.09199: the smallest p with sum_{j<=p} s_j^2 >= tau * sum s_j^2.
    """
    if not 0.0 < threshold <= 1.0:  # also false for NaN
        raise ValueError("an energy threshold lies over 0 and is at most 1")
    rank = numerical_rank(spectrum)
    energy = spectrum.values[:rank].square()
    tails = torch.flip(torch.cumsum(torch.flip(energy, [0]), dim=0), [0])  # energy from each value on
    allowed = (1.0 - threshold) * float(energy.sum())
    enough = [kept for kept in range(1, rank) if float(tails[kept]) <= allowed]
    return max(enough[0] if enough else rank, 1)
