"""FedEx-LoRA: average A and B apart, and send what that misses as a residual for the base weight."""

from collections.abc import Sequence

from engines.lora.cohort import Weighted
from engines.lora.factors import Pair, norm
from engines.lora.fedit import covariance, mean_of_factors
from engines.lora.spectrum import numerical_rank, spectrum_of


def combine(weighted: Sequence[Weighted], *, scale: float) -> tuple[Pair, Pair]:
    """Return the mean of factors, and the residual in its low-rank form for the wire.

    The base weight takes the residual, W0 + residual, and the adapter goes on from the mean: together they
    are exactly the target.

    Args:
        weighted: one module's pairs, of one rank r.
        scale: s of the run, positive.
    Returns:
        The mean, of rank r and scale s; and the residual, of rank (n - 1) r at most and scale 1. Float64.
        A residual of rank 0 says that there is none.
    Raises:
        ValueError: there is no pair, or shapes or ranks differ.
    Source: FedEx-LoRA, arXiv:2410.09432 (there with a dense residual).
    """
    mean = mean_of_factors(weighted, scale=scale)
    whole = spectrum_of(covariance(weighted, mean))
    rank = numerical_rank(whole, beside=norm(mean))
    return mean, Pair(whole.u[:, :rank] * whole.values[:rank], whole.vt[:rank], 1.0)
