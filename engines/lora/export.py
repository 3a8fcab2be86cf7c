"""A release in the forms that others load: at another rank, at one rank for all modules, or merged.

Every form says how far it is from the release. All of it is post-processing of what is published.
"""

import dataclasses
from collections.abc import Mapping

import torch
from torch import Tensor

from engines.lora.factors import Pair, norm
from engines.lora.scaling import LoraScale, Scales, factor_of
from engines.lora.seeding import seeded_a
from engines.lora.spectrum import Projection, cut, spectrum_of, together

SERVED_RANKS = (8, 16, 32, 64)
"""Ranks that vLLM serves (`max_lora_rank`), all modules alike."""
_BLOCK_ROWS = 512


@dataclasses.dataclass(frozen=True, eq=False)
class Uniform:
    """Pairs of one rank and one scale."""

    scale: LoraScale
    pairs: dict[str, Pair]
    """By module path, float64."""
    projection: Projection
    """Over all modules."""


def for_ranks(
    pairs: Mapping[str, Pair], scales: Scales, *, seed: int | None = None
) -> tuple[dict[str, Pair], Projection]:
    """Project a release to other ranks and scales: a client's, or those of the next rounds.

    Args:
        pairs: the release, by module path.
        scales: ranks and alphas wanted.
        seed: public seed for the rows of A beyond the release's own rank, if the result is to be trained;
            without it they are zero.
    Returns:
        The nearest pairs of these ranks, float64; and what was cut off, over all modules.
    Raises:
        ValueError: there is no module, or a value is not finite.
    Source: Eckart and Young 1936; FlexLoRA, arXiv:2402.11505.
    """
    if not pairs:
        raise ValueError("a release has at least one module")
    projected: dict[str, Pair] = {}
    errors: list[Projection] = []
    for module in sorted(pairs):
        scale = scales.at(module)
        shape = (scale.rank, pairs[module].shape[1])
        spare = None if seed is None else seeded_a(seed, f"{module}.lora_A.weight", shape)
        projected[module], error = cut(
            spectrum_of(pairs[module]), scale.rank, scale=scale.factor, spare_a=spare
        )
        errors.append(error)
    return projected, together(errors)


def uniform(pairs: Mapping[str, Pair], *, rank: int | None = None) -> Uniform:
    """Bring all modules to one rank, with alpha = rank, so that the scale is 1.

    Args:
        pairs: the release, by module path.
        rank: 8, 16, 32 or 64; by default the smallest that no module exceeds, else 64.
    Returns:
        Modules of smaller rank are padded with zeros, exactly; those of larger rank are cut to the nearest.
    Raises:
        ValueError: there is no module, a rank that is not served, or a value that is not finite.
    """
    if not pairs:
        raise ValueError("a release has at least one module")
    largest = max(pair.rank for pair in pairs.values())
    least = next((served for served in SERVED_RANKS if served >= largest), SERVED_RANKS[-1])
    chosen = least if rank is None else rank
    if chosen not in SERVED_RANKS:
        raise ValueError(f"rank {chosen} is not served: take one of {SERVED_RANKS}")
    made = {module: _at_rank(pairs[module], chosen) for module in sorted(pairs)}
    return Uniform(
        scale=LoraScale(chosen, float(chosen)),
        pairs={module: pair for module, (pair, _) in made.items()},
        projection=together([error for _, error in made.values()]),
    )


def without_heads(tensors: Mapping[str, Tensor]) -> tuple[dict[str, Tensor], list[str]]:
    """Part the factors from whole modules (heads), which vLLM's form cannot hold.

    Args:
        tensors: an adapter by PEFT's names.
    Returns:
        The factors, and the names of what was left out: a model served without it is another model.
    """
    factors = {name: tensor for name, tensor in tensors.items() if factor_of(name) is not None}
    return factors, sorted(set(tensors) - set(factors))


def merged(base: Tensor, pair: Pair, *, is_transposed: bool = False) -> tuple[Tensor, Projection]:
    """Return the base weight with the change in it, W + s B A, added in float64, in blocks of rows.

    Args:
        base: shape (d, k), or (k, d) if transposed; floating.
        pair: of shape (d, k).
        is_transposed: the architecture keeps its weights transposed (`fan_in_fan_out`).
    Returns:
        Of the base's shape and dtype; and what rounding to that dtype took of the change: a relative error
        near 1 says that the change is lost in a narrow dtype.
    Raises:
        ValueError: the shapes do not fit, the base is not floating, or a value is not finite.
    """
    wide = pair.wide()
    rows, columns = (wide.a.T, wide.b.T) if is_transposed else (wide.b, wide.a)
    if tuple(base.shape) != (rows.shape[0], columns.shape[1]) or not base.is_floating_point():
        raise ValueError(f"a pair of shape {pair.shape} does not go into {list(base.shape)} of {base.dtype}")
    if not (pair.is_finite() and bool(torch.isfinite(base).all())):
        raise ValueError("a value is not finite")
    weight, lost = torch.empty_like(base), 0.0
    for start in range(0, base.shape[0], _BLOCK_ROWS):
        block = slice(start, start + _BLOCK_ROWS)
        exact = base[block].to(torch.float64) + pair.scale * (rows[block] @ columns)
        weight[block] = exact.to(base.dtype)
        lost += float((weight[block].to(torch.float64) - exact).square().sum())
    return weight, Projection(error_norm=lost**0.5, whole_norm=norm(pair))


def _at_rank(pair: Pair, rank: int) -> tuple[Pair, Projection]:
    if pair.rank > rank:
        return cut(spectrum_of(pair), rank)
    wide = pair.wide()
    b = wide.b.new_zeros((pair.shape[0], rank))
    a = wide.a.new_zeros((rank, pair.shape[1]))
    b[:, : pair.rank], a[: pair.rank] = wide.b * pair.scale, wide.a
    return Pair(b, a, 1.0), Projection(error_norm=0.0, whole_norm=norm(pair))
