"""FLoRA: stack all clients' factors, which is exact at any mixture of ranks and alphas.

The stack is merged into the base weight, and adapters start anew every round; its rank is the sum of ranks.
"""

from collections.abc import Sequence

import torch

from engines.lora.cohort import Weighted, shape_of
from engines.lora.factors import Pair


def stack(weighted: Sequence[Weighted]) -> Pair:
    """Return B = [B_1 .. B_n] and A = [w_1 s_1 A_1; ..; w_n s_n A_n], whose product is the target.

    Args:
        weighted: one module's pairs, ranks and scales mixed as they are.
    Returns:
        Float64, of rank sum r_i and scale 1.
    Raises:
        ValueError: there is no pair, or their shapes differ.
    Source: FLoRA, arXiv:2409.05976, with each client's own s_i folded in.
    """
    shape_of(weighted)
    return Pair(
        b=torch.cat([one.pair.b for one in weighted], dim=1).to(torch.float64),
        a=torch.cat([one.share * one.pair.scale * one.pair.a.to(torch.float64) for one in weighted], dim=0),
        scale=1.0,
    )
