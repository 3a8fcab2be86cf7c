"""FedSA-LoRA: share A, keep B at the client. No weight change is global: every client has its own model."""

from collections.abc import Sequence

import torch
from torch import Tensor

from engines.lora.cohort import Weighted, common_rank, shape_of
from engines.lora.factors import Pair


def shared_a(weighted: Sequence[Weighted]) -> Tensor:
    """Return A = sum w_i A_i; no B is looked at, and no scale, which each client keeps with its B.

    Args:
        weighted: one module's pairs, of one rank; on the server without rows of B, shape (0, r).
    Returns:
        Shape (r, k), float64.
    Raises:
        ValueError: there is no pair, or shapes or ranks differ.
    Source: FedSA-LoRA, arXiv:2410.01463.
    """
    _, columns = shape_of(weighted)
    mean = torch.zeros((common_rank(weighted, "fedsa"), columns), dtype=torch.float64)
    for one in weighted:
        mean += one.share * one.pair.a.to(torch.float64)
    return mean


def personalised(own: Pair, a: Tensor) -> Pair:
    """Return a client's own model: its B and its scale, with the A that all share.

    Args:
        own: the client's pair.
        a: shape (r, k), the released A.
    Raises:
        ValueError: the shapes do not fit.
    """
    if a.shape != own.a.shape:
        raise ValueError(f"a shared A of shape {list(a.shape)} does not fit rank {own.rank}")
    return Pair(own.b, a.to(own.a.dtype), own.scale)
