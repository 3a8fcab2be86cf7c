"""The target T = sum of w_i s_i B_i A_i of one module, decomposed as clients come, whatever their number.

Factors are stacked until they say more than the weight could hold, and then brought back to its width: what
is kept does not grow with the number of clients, and nothing is lost but rounding.
"""

from collections.abc import Iterable, Sequence

import torch

from engines.lora.cohort import Weighted
from engines.lora.factors import Pair
from engines.lora.flora import stack
from engines.lora.spectrum import Spectrum, numerical_rank, spectrum_of


def target_of(weighted: Iterable[Weighted], *, width: int) -> Spectrum:
    """Decompose the target of a module.

    Args:
        weighted: the clients' pairs in the order of their ids, ranks and scales mixed as they are; read once.
        width: min(d, k) of the weight, to which stacks of more than twice that rank are brought back.
    Returns:
        All of T, float64: at most min(d, k) singular triplets, falling.
    Raises:
        ValueError: there is no pair, their shapes differ, or a value is not finite.
    Source: FlexLoRA, arXiv:2402.11505 (there by an SVD of the dense target).
    """
    collected: list[Pair] = []
    for one in weighted:
        collected.append(stack([one]))
        if sum(pair.rank for pair in collected) > 2 * width:
            collected = [as_pair(spectrum_of(joined(collected)))]
    return spectrum_of(joined(collected))


def joined(pairs: Sequence[Pair]) -> Pair:
    """Return one pair of scale 1 whose weight change is the sum of those of all, float64.

    Raises:
        ValueError: there is none, or their shapes differ.
    """
    if not pairs or len({pair.shape for pair in pairs}) != 1:
        raise ValueError("pairs that are added up are at least one, and of one shape")
    wide = [pair.wide() for pair in pairs]
    return Pair(
        torch.cat([one.b * one.scale for one in wide], dim=1), torch.cat([one.a for one in wide], dim=0), 1.0
    )


def as_pair(spectrum: Spectrum) -> Pair:
    """Write all of a weight change as a pair of scale 1, B = U S and A = V^T, float64."""
    return Pair(spectrum.u * spectrum.values, spectrum.vt, 1.0)


def compressed(pairs: Sequence[Pair], *, beside: float = 0.0) -> Pair:
    """Return the sum of weight changes at its numerical rank, which may be 0; scale 1, float64.

    Args:
        pairs: at least one, of one shape.
        beside: norm of a larger matrix that the sum is a difference of; its rounding counts as nothing.
    Raises:
        ValueError: there is none, their shapes differ, or a value is not finite.
    """
    whole = joined([pair for pair in pairs if pair.rank] or pairs)
    if whole.rank == 0:
        return whole
    spectrum = spectrum_of(whole)
    rank = numerical_rank(spectrum, beside=beside)
    return Pair(spectrum.u[:, :rank] * spectrum.values[:rank], spectrum.vt[:rank], 1.0)
