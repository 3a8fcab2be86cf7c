"""One module's weight change as it is trained and sent: s * B @ A, never multiplied out for its size.

What a whole file of tensors means, module by module; norms and inner products by work on r x r matrices.
"""

import dataclasses
import math
from collections.abc import Mapping

import torch
from torch import Tensor

from engines.lora.scaling import Scales, factor_of, module_of


@dataclasses.dataclass(frozen=True, eq=False)
class Pair:
    """The weight change `scale` * b @ a of one module, in parameter units."""

    b: Tensor
    """Shape (d, r), floating."""
    a: Tensor
    """Shape (r, k), floating."""
    scale: float
    """s = alpha / r, or alpha / sqrt(r) under rsLoRA."""

    def __post_init__(self) -> None:
        if self.b.dim() != 2 or self.a.dim() != 2 or self.b.shape[1] != self.a.shape[0]:
            raise ValueError(f"factors of shapes {list(self.b.shape)} and {list(self.a.shape)} are no pair")
        if not (self.b.is_floating_point() and self.a.is_floating_point()):
            raise ValueError(f"factors are floating, not {self.b.dtype} and {self.a.dtype}")
        if not math.isfinite(self.scale):
            raise ValueError("the scale of a pair is finite")

    @property
    def rank(self) -> int:
        """Columns of b and rows of a."""
        return self.b.shape[1]

    @property
    def shape(self) -> tuple[int, int]:
        """Shape (d, k) of the weight that it changes."""
        return self.b.shape[0], self.a.shape[1]

    def wide(self) -> "Pair":
        """Return the same pair in float64: narrow factors are accumulated wide."""
        return Pair(self.b.to(torch.float64), self.a.to(torch.float64), self.scale)

    def is_finite(self) -> bool:
        """Say whether every value of both factors is finite."""
        return bool(torch.isfinite(self.b).all()) and bool(torch.isfinite(self.a).all())


def pairs_of(tensors: Mapping[str, Tensor], scales: Scales) -> dict[str, Pair]:
    """Read the modules of an adapter; tensors that are no factors (heads) are left to the caller.

    Args:
        tensors: by PEFT's names; A of shape (r, k), B of shape (d, r).
        scales: rank and alpha that they were trained with.
    Returns:
        A pair for every module, by path, sorted.
    Raises:
        ValueError: a factor without its partner, of another rank than its module's, not floating or not
            finite; the text names it.
    """
    found: dict[str, dict[str, Tensor]] = {}
    for name, tensor in tensors.items():
        factor = factor_of(name)
        if factor is not None:
            found.setdefault(module_of(name), {})[factor] = tensor
    pairs: dict[str, Pair] = {}
    for module in sorted(found):
        if set(found[module]) != {"A", "B"}:
            raise ValueError(f"{module}: one of its two factors is missing")
        scale = scales.at(module)
        pair = Pair(found[module]["B"], found[module]["A"], scale.factor)
        if pair.rank != scale.rank:
            raise ValueError(f"{module}: rank {pair.rank}, not {scale.rank}")
        if not pair.is_finite():
            raise ValueError(f"{module}: a value is not finite")
        pairs[module] = pair
    return pairs


def tensors_of(pairs: Mapping[str, Pair], scales: Scales, *, dtype: torch.dtype) -> dict[str, Tensor]:
    """Write pairs as the tensors of an adapter file, B carrying whatever their scale differs by.

    Args:
        pairs: by module path.
        scales: rank and alpha that the file's configuration will say.
        dtype: floating, of the file.
    Returns:
        Tensors by PEFT's names, sorted.
    Raises:
        ValueError: a pair is of another rank than the scales say.
    """
    written: dict[str, Tensor] = {}
    for module in sorted(pairs):
        pair, scale = pairs[module].wide(), scales.at(module)
        if pair.rank != scale.rank:
            raise ValueError(f"{module}: rank {pair.rank}, not {scale.rank}")
        written[f"{module}.lora_A.weight"] = pair.a.to(dtype)
        written[f"{module}.lora_B.weight"] = (pair.b * (pair.scale / scale.factor)).to(dtype)
    return written


def dense(pair: Pair) -> Tensor:
    """Multiply out s * B @ A: shape (d, k), float64. For merging into a base weight, and for tests."""
    wide = pair.wide()
    return wide.scale * (wide.b @ wide.a)


def inner(one: Pair, other: Pair) -> float:
    """Return the inner product <s1 B1 A1, s2 B2 A2> = s1 s2 tr((B1^T B2)(A2 A1^T)), by r x r work.

    Args:
        one: a pair of shape (d, k).
        other: a pair of the same shape; ranks may differ.
    Raises:
        ValueError: the shapes differ.
    """
    if one.shape != other.shape:
        raise ValueError(f"pairs of shapes {one.shape} and {other.shape} have no inner product")
    first, second = one.wide(), other.wide()
    products = (first.b.T @ second.b) * (first.a @ second.a.T)
    return one.scale * other.scale * float(products.sum())


def norm(pair: Pair) -> float:
    """Return the Frobenius norm of s * B @ A, by r x r work: sqrt(tr((B^T B)(A A^T))) * |s|."""
    return math.sqrt(max(inner(pair, pair), 0.0))
