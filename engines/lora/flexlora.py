"""FlexLoRA: decompose the target exactly, and give every client the best pair of its own rank."""

from collections.abc import Sequence

from engines.lora.cohort import Weighted
from engines.lora.flora import stack
from engines.lora.spectrum import Spectrum, spectrum_of


def combine(weighted: Sequence[Weighted]) -> Spectrum:
    """Decompose T = sum w_i s_i B_i A_i through the QR core of the stacked factors.

    `spectrum.cut(.., rank, scale=s_j)` then gives client j its pair, with what was cut off; the released
    adapter is the cut to the run's rank. Once the ranks add up to more than the width, the core is as large
    as the dense target, and so is the work.

    Args:
        weighted: one module's pairs, ranks and scales mixed as they are.
    Returns:
        All of T, float64: min(d, k, sum r_i) singular triplets.
    Raises:
        ValueError: there is no pair, or their shapes differ.
    Source: FlexLoRA, arXiv:2402.11505 (there by an SVD of the dense target).
    """
    return spectrum_of(stack(weighted))
