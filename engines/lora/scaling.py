"""Bring every client's factors to the run's rank and scale before they are averaged.

A client with rank r_i and alpha_i means the weight change (alpha_i / r_i) * B_i @ A_i. Averaging factors
of different scales without folding the scale in gives another model (24 to 86 % off in the tests).
"""

import dataclasses
from collections.abc import Mapping
from typing import Literal

import torch
from torch import Tensor

Method = Literal["ffa", "fedit"]


@dataclasses.dataclass(frozen=True)
class LoraScale:
    """Rank and alpha of one adapter."""

    rank: int
    alpha: float

    def __post_init__(self) -> None:
        if self.rank < 1 or not 0.0 < self.alpha < float("inf"):
            raise ValueError("a LoRA scale needs a rank of at least 1 and a positive alpha")

    @property
    def factor(self) -> float:
        """What B @ A is multiplied with."""
        return self.alpha / self.rank


def fold_into_run(
    tensors: Mapping[str, Tensor], *, method: Method, client: LoraScale, run: LoraScale
) -> dict[str, Tensor]:
    """Rewrite a client's factors, or their changes, in the run's rank and alpha.

    Under `ffa` this is exact: A is the same for all and a smaller rank uses its top rows, so B times the
    ratio of scales, with zero columns up to the run's rank, is the same weight change. Under `fedit` ranks
    must agree and the ratio goes into B; the mean of factors is then still not the mean of products.

    Args:
        tensors: by name; `.lora_B.` of shape (d, client rank), `.lora_A.` of shape (client rank, k) under
            `fedit` only; everything else (heads) is passed on unchanged. Floating dtypes.
        method: `ffa` or `fedit`.
        client: rank and alpha the tensors were trained with.
        run: the run's rank and alpha.
    Returns:
        The same names; B of shape (d, run rank), dtypes kept.
    Raises:
        ValueError: a client rank over the run's, unequal ranks under `fedit`, a factor of another rank, or
            an A factor under `ffa`, where none is trained.
    Source: FFA-LoRA, arXiv:2403.12313; FedIT, arXiv:2305.05644.
    """
    if client.rank > run.rank or (method == "fedit" and client.rank != run.rank):
        raise ValueError(f"a client of rank {client.rank} does not fit a {method} run of rank {run.rank}")
    folded: dict[str, Tensor] = {}
    for name, tensor in tensors.items():
        if ".lora_B." in name:
            folded[name] = _fold_b(name, tensor, client=client, run=run)
        elif ".lora_A." in name and method == "ffa":
            raise ValueError(f"{name}: no A factor is trained under ffa")
        elif ".lora_A." in name and tensor.shape[0] != client.rank:
            raise ValueError(f"{name}: this is not a factor of rank {client.rank}")
        else:
            folded[name] = tensor.clone()
    return folded


def unfold_for_client(b_factor: Tensor, *, client: LoraScale, run: LoraScale) -> Tensor:
    """Rewrite the run's B factor in a client's rank and alpha; columns over its rank are left out.

    Args:
        b_factor: shape (d, run rank), floating.
        client: the client's rank, at most the run's, and alpha.
        run: the run's rank and alpha.
    Returns:
        Shape (d, client rank), dtype kept; `fold_into_run` takes it back to the same columns.
    Raises:
        ValueError: the ranks do not fit.
    """
    if client.rank > run.rank or b_factor.dim() != 2 or b_factor.shape[1] != run.rank:
        raise ValueError(f"this factor cannot be cut to rank {client.rank}")
    ratio = run.factor / client.factor
    return (b_factor[:, : client.rank].to(torch.float64) * ratio).to(b_factor.dtype)


def _fold_b(name: str, tensor: Tensor, *, client: LoraScale, run: LoraScale) -> Tensor:
    if tensor.dim() != 2 or tensor.shape[1] != client.rank:
        raise ValueError(f"{name}: this is not a factor of rank {client.rank}")
    ratio = client.factor / run.factor
    folded = tensor.new_zeros((tensor.shape[0], run.rank))
    folded[:, : client.rank] = (tensor.to(torch.float64) * ratio).to(tensor.dtype)
    return folded
