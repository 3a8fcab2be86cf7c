"""Bring every client's factors to the run's rank and scale before they are averaged.

A client with rank r_i and alpha_i means the weight change (alpha_i / r_i) * B_i @ A_i. Averaging factors
of different scales without folding the scale in gives another model (24 to 86 % off in the tests).
"""

import dataclasses
import math
from typing import Literal, Protocol

import torch
from torch import Tensor

Factor = Literal["A", "B"]
_MARKS: dict[Factor, str] = {"A": ".lora_A.", "B": ".lora_B."}


class Scales(Protocol):
    """Rank and alpha of every module of an adapter."""

    def at(self, module: str) -> "LoraScale":
        """Return the scale of the module of this path."""


@dataclasses.dataclass(frozen=True)
class LoraScale:
    """Rank and alpha of one adapter, the same in every module."""

    rank: int
    alpha: float
    rank_stabilized: bool = False
    """rsLoRA: alpha is divided by the root of the rank, as PEFT does under `use_rslora`."""

    def __post_init__(self) -> None:
        if self.rank < 1 or not 0.0 < self.alpha < float("inf"):
            raise ValueError("a LoRA scale needs a rank of at least 1 and a positive alpha")

    @property
    def factor(self) -> float:
        """What B @ A is multiplied with: alpha / r, or alpha / sqrt(r) (Kalajdzievski, arXiv:2312.03732)."""
        return self.alpha / (math.sqrt(self.rank) if self.rank_stabilized else self.rank)

    def at(self, module: str) -> "LoraScale":
        """Return this scale, whatever the module."""
        return self


def factor_of(name: str) -> Factor | None:
    """Say which factor a tensor is, by its name alone: shapes cannot tell where the width is the rank."""
    return next((factor for factor, mark in _MARKS.items() if mark in name), None)


def module_of(name: str) -> str:
    """Return the path of a factor's module, PEFT's own prefix included.

    Raises:
        ValueError: the name is not that of a factor.
    """
    factor = factor_of(name)
    if factor is None:
        raise ValueError(f"{name}: this is no LoRA factor")
    return name.partition(_MARKS[factor])[0]


def fold_factor(tensor: Tensor, factor: Factor, *, client: LoraScale, run: LoraScale) -> Tensor:
    """Rewrite the one factor that is trained, the other being the run's own for all clients.

    With A0[:r_i] (or B0[:, :r_i]) fixed, the trained factor times the ratio of scales, with zeros up to
    the run's rank, is the same weight change; so is every weighted sum of them.

    Args:
        tensor: A of shape (client rank, k) or B of shape (d, client rank), or its change; floating.
        factor: which of the two it is.
        client: rank and alpha it was trained with.
        run: the run's, with a rank at least as large.
    Returns:
        A of shape (run rank, k) or B of shape (d, run rank), dtype kept.
    Raises:
        ValueError: the rank does not fit, or the dtype is not floating.
    Source: FFA-LoRA, arXiv:2403.12313; RoLoRA, arXiv:2502.01755.
    """
    if client.rank > run.rank:
        raise ValueError(f"a client of rank {client.rank} does not fit a run of rank {run.rank}")
    axis = 0 if factor == "A" else 1
    if tensor.dim() != 2 or tensor.shape[axis] != client.rank:
        raise ValueError(f"this {factor} is not a factor of rank {client.rank}")
    if not tensor.is_floating_point():
        raise ValueError(f"a factor is floating, not {tensor.dtype}")
    shape = list(tensor.shape)
    shape[axis] = run.rank
    folded = tensor.new_zeros(shape)
    folded.narrow(axis, 0, client.rank).copy_(tensor.to(torch.float64) * (client.factor / run.factor))
    return folded


def unfold_factor(tensor: Tensor, factor: Factor, *, client: LoraScale, run: LoraScale) -> Tensor:
    """Rewrite the run's trained factor in a client's rank and alpha; what lies over its rank is left out.

    Args:
        tensor: A of shape (run rank, k) or B of shape (d, run rank), floating.
        factor: which of the two it is.
        client: the client's rank, at most the run's, and alpha.
        run: the run's rank and alpha.
    Returns:
        Of the client's rank, dtype kept; `fold_factor` takes it back to the same rows or columns.
    Raises:
        ValueError: the ranks do not fit.
    """
    axis = 0 if factor == "A" else 1
    if client.rank > run.rank or tensor.dim() != 2 or tensor.shape[axis] != run.rank:
        raise ValueError(f"this factor cannot be cut to rank {client.rank}")
    ratio = run.factor / client.factor
    return (tensor.narrow(axis, 0, client.rank).to(torch.float64) * ratio).to(tensor.dtype)
