"""Rounds of random clients for tests of LoRA algebra, and their target, multiplied out in float64."""

from collections.abc import Sequence
from typing import Any

import torch
from hypothesis import strategies as st
from torch import Tensor

from engines.lora.cohort import Contribution, Weighted, by_module
from engines.lora.factors import Pair
from engines.lora.scaling import LoraScale

MODULE = "base_model.model.bert.encoder.layer.1.attention.self.query"
A, B = f"{MODULE}.lora_A.weight", f"{MODULE}.lora_B.weight"
HEAD = "base_model.model.classifier.weight"


def normal(*shape: int, seed: int) -> Tensor:
    return torch.randn(*shape, generator=torch.Generator().manual_seed(seed), dtype=torch.float64)


def client(
    number: int, *, scale: LoraScale, shape: tuple[int, int] = (30, 20), weight: float = 1.0, seed: int = 0
) -> Contribution:
    """A client with independent random factors."""
    b = normal(shape[0], scale.rank, seed=1000 * seed + 2 * number)
    a = normal(scale.rank, shape[1], seed=1000 * seed + 2 * number + 1)
    return Contribution(f"client-{number:03}", weight, {MODULE: Pair(b, a, scale.factor)})


def clients(
    scales: Sequence[LoraScale],
    weights: Sequence[float],
    *,
    shape: tuple[int, int] = (30, 20),
    seed: int = 0,
) -> list[Contribution]:
    return [
        client(number, scale=scale, weight=weight, shape=shape, seed=seed)
        for number, (scale, weight) in enumerate(zip(scales, weights, strict=True))
    ]


def module_of_round(contributions: Sequence[Contribution]) -> list[Weighted]:
    return by_module(contributions)[MODULE]


def target(contributions: Sequence[Contribution]) -> Tensor:
    """T = sum w_i s_i B_i A_i, the weights divided by their sum."""
    total = sum(one.weight for one in contributions)
    pairs = [(one.weight / total, one.pairs[MODULE]) for one in contributions]
    return torch.stack([share * pair.scale * (pair.b @ pair.a) for share, pair in pairs]).sum(dim=0)


def off(found: Tensor, wanted: Tensor) -> float:
    """Distance relative to the wanted one's norm; absolute where that is 0."""
    size = float(wanted.norm())
    return float((found - wanted).norm()) / (size if size > 0.0 else 1.0)


MIXED = [LoraScale(4, 8.0), LoraScale(8, 16.0), LoraScale(16, 16.0), LoraScale(32, 64.0)]
"""Invariant I4's ranks and alphas: scales 2, 2, 1, 2."""
WEIGHTS = [0.1, 0.2, 0.3, 0.4]

_scale = st.builds(LoraScale, st.integers(1, 6), st.floats(0.25, 64.0), st.booleans())


@st.composite
def rounds(draw: st.DrawFn, *, one_rank: bool = False) -> list[Contribution]:
    """Any small round: shapes, ranks (over the width too), alphas, rsLoRA, weights, one of them maybe 0."""
    shape = (draw(st.integers(1, 12)), draw(st.integers(1, 12)))
    rank = draw(st.integers(1, 6))
    made: list[Contribution] = []
    for number in range(draw(st.integers(1, 5))):
        scale: LoraScale = draw(_scale)
        scale = LoraScale(rank, scale.alpha, scale.rank_stabilized) if one_rank else scale
        weight = draw(st.floats(0.01, 100.0)) if number == 0 else draw(st.floats(0.0, 100.0))
        made.append(client(number, scale=scale, shape=shape, weight=weight, seed=draw(st.integers(0, 99))))
    return made


def gauged(contribution: Contribution, *, seed: int) -> Contribution:
    """The same weight change by other factors: (B M, M^-1 A), with a well-conditioned M."""
    pair = contribution.pairs[MODULE]
    turn = torch.linalg.qr(normal(pair.rank, pair.rank, seed=seed))[0] * 2.0
    turned = Pair(pair.b @ turn, torch.linalg.inv(turn) @ pair.a, pair.scale)
    return Contribution(contribution.client_id, contribution.weight, {MODULE: turned})


def with_weight(contribution: Contribution, weight: float, **changes: Any) -> Contribution:
    return Contribution(changes.get("client_id", contribution.client_id), weight, contribution.pairs)
