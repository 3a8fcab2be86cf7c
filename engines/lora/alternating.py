"""FFA-LoRA and RoLoRA: one factor is trained at a time, so that what is averaged is linear in it, and exact.

All clients hold the same other factor: its first rows (of A) or columns (of B) where their rank is smaller.
The trained factor alone carries the difference of scales.
"""

from collections.abc import Mapping

from torch import Tensor

from engines.lora.factors import Pair, norm
from engines.lora.scaling import Factor, Scales, factor_of, fold_factor, module_of, unfold_factor
from engines.lora.spectrum import Projection


def trained_factor(round_number: int) -> Factor:
    """Say which factor RoLoRA trains in a round; the other is frozen. (FFA-LoRA trains B in all.)

    Args:
        round_number: from 1. The first trains B: while B is zero, A has no gradient.
    Raises:
        ValueError: there is no such round.
    Source: RoLoRA, arXiv:2502.01755.
    """
    if round_number < 1:
        raise ValueError("rounds are counted from 1")
    return "B" if round_number % 2 == 1 else "A"


def fold(tensors: Mapping[str, Tensor], *, trained: Factor, client: Scales, run: Scales) -> dict[str, Tensor]:
    """Rewrite what a client sends, or its change, in the run's ranks and scales. Any weighted sum is exact.

    Args:
        tensors: by name; factors of the trained kind, and heads, which pass unchanged. Floating.
        trained: the factor that this round trains.
        client: ranks and alphas of the client.
        run: those of the run, with ranks at least as large.
    Returns:
        The same names, factors of the run's ranks; dtypes kept.
    Raises:
        ValueError: a factor of the other kind, which no client may send, or of another rank.
    Source: FFA-LoRA, arXiv:2403.12313; RoLoRA, arXiv:2502.01755.
    """
    folded: dict[str, Tensor] = {}
    for name, tensor in tensors.items():
        factor = factor_of(name)
        if factor is None:
            folded[name] = tensor.clone()
            continue
        module = module_of(name)
        if factor != trained:
            raise ValueError(f"{name}: this round trains {trained} factors only")
        folded[name] = fold_factor(tensor, factor, client=client.at(module), run=run.at(module))
    return folded


def unfold(
    tensors: Mapping[str, Tensor], *, trained: Factor, client: Scales, run: Scales
) -> dict[str, Tensor]:
    """Rewrite a release for a client: the inverse of `fold`, with the frozen factor cut to the rank.

    Args:
        tensors: by name, of the run's ranks: both factors, or one, and heads. Floating.
        trained: the factor that the coming round trains; it takes up the difference of scales.
        client: ranks and alphas of the client, with ranks at most the run's.
        run: those of the run.
    Returns:
        The same names, factors of the client's ranks; dtypes kept.
    Raises:
        ValueError: the ranks do not fit.
    """
    mine: dict[str, Tensor] = {}
    for name, tensor in tensors.items():
        factor = factor_of(name)
        if factor is None:
            mine[name] = tensor.clone()
            continue
        scale, common = client.at(module_of(name)), run.at(module_of(name))
        taken = unfold_factor(tensor, factor, client=scale if factor == trained else common, run=common)
        mine[name] = taken.narrow(0 if factor == "A" else 1, 0, scale.rank).contiguous()
    return mine


def cut_off(whole: Pair, rank: int) -> Projection:
    """Say what a client of a smaller rank does not see: the columns of B and rows of A over its rank.

    Unlike the nearest pair of that rank this keeps the frozen factor the same for all; it costs more.

    Args:
        whole: a module of the release.
        rank: the client's, 1 to the release's.
    Raises:
        ValueError: the rank is out of range.
    """
    if not 1 <= rank <= whole.rank:
        raise ValueError(f"a release of rank {whole.rank} is not cut to {rank}")
    missed = norm(Pair(whole.b[:, rank:], whole.a[rank:], whole.scale))
    return Projection(error_norm=missed, whole_norm=norm(whole))
