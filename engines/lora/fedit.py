"""FedIT: average A and B apart. Kept for compatibility: it is not the mean of products, and says by how much.

What is missing is the covariance of the factors: quadratic in how far clients moved from their common start.
"""

from collections.abc import Sequence

import torch

from engines.lora.cohort import Weighted, common_rank, shape_of
from engines.lora.factors import Pair


def mean_of_factors(weighted: Sequence[Weighted], *, scale: float) -> Pair:
    """Return B = sum w_i (s_i / s) B_i and A = sum w_i A_i.

    Args:
        weighted: one module's pairs, of one rank.
        scale: s of the run, positive.
    Returns:
        Float64, of the same rank and the run's scale.
    Raises:
        ValueError: there is no pair, or shapes or ranks differ.
    Source: FedIT, arXiv:2305.05644, with a client's own scale folded into B.
    """
    rows, columns = shape_of(weighted)
    rank = common_rank(weighted, "fedit")
    b = torch.zeros((rows, rank), dtype=torch.float64)
    a = torch.zeros((rank, columns), dtype=torch.float64)
    for one in weighted:
        b += (one.share * one.pair.scale / scale) * one.pair.b.to(torch.float64)
        a += one.share * one.pair.a.to(torch.float64)
    return Pair(b, a, scale)


def covariance(weighted: Sequence[Weighted], mean: Pair) -> Pair:
    """Return what the mean of factors misses: T - s B A = s * sum w_i (B_i - B)(A_i - A), stacked.

    A function of un-noised factors: no diagnostic where the server may not see them.

    Args:
        weighted: the pairs of `mean_of_factors`.
        mean: its result.
    Returns:
        Float64, of rank n * r and the run's scale; exactly 0 where all A or all B agree. Its size is
        `factors.norm`.
    Raises:
        ValueError: there is no pair, or shapes or ranks differ.
    """
    shape_of(weighted)
    common_rank(weighted, "fedit")
    away_b = [one.pair.scale / mean.scale * one.pair.b.to(torch.float64) - mean.b for one in weighted]
    away_a = [one.share * (one.pair.a.to(torch.float64) - mean.a) for one in weighted]
    return Pair(torch.cat(away_b, dim=1), torch.cat(away_a, dim=0), mean.scale)
