"""The clients of one round, brought into one order and with shares that add up to 1.

The target of every method is T = sum of w_i s_i B_i A_i over these. The order is that of client ids, so that
the result has the same bits whoever came first.
"""

import dataclasses
import math
from collections.abc import Mapping, Sequence

from engines.lora.factors import Pair

_LARGEST_WEIGHT = 1e12


@dataclasses.dataclass(frozen=True, eq=False)
class Contribution:
    """What one client sent."""

    client_id: str
    weight: float
    """At least 0; only ratios matter. Under differential privacy a public function, never a private count."""
    pairs: Mapping[str, Pair]
    """By module path."""


@dataclasses.dataclass(frozen=True, eq=False)
class Weighted:
    """One client's pair of one module, with the client's share of the whole."""

    share: float
    pair: Pair
    """Float64."""


def by_module(contributions: Sequence[Contribution]) -> dict[str, list[Weighted]]:
    """Order the contributions, and give every module its weighted pairs.

    Args:
        contributions: in any order, each client once.
    Returns:
        By module path; in each the clients of positive weight, in the order of their ids.
    Raises:
        ValueError: nobody, a client twice, a weight out of range, weights that add up to 0, other modules
            or other shapes than the first client's, or a value that is not finite. The text names it.
    """
    ordered = sorted(contributions, key=lambda one: one.client_id)
    shares = _shares(ordered)
    for one in ordered:
        _require_fit(one, like=ordered[0])
    return {
        module: [
            Weighted(share, one.pairs[module].wide())
            for share, one in zip(shares, ordered, strict=True)
            if share > 0.0
        ]
        for module in sorted(ordered[0].pairs)
    }


def shape_of(weighted: Sequence[Weighted]) -> tuple[int, int]:
    """Return the common shape (d, k) of a module's pairs.

    Raises:
        ValueError: there is none, or they differ.
    """
    shapes = {one.pair.shape for one in weighted}
    if len(shapes) != 1:
        raise ValueError("the pairs of a module are at least one, and of one shape")
    return shapes.pop()


def common_rank(weighted: Sequence[Weighted], method: str) -> int:
    """Return the rank that all pairs have.

    Raises:
        ValueError: they differ, which this method cannot average.
    """
    ranks = {one.pair.rank for one in weighted}
    if len(ranks) != 1:
        raise ValueError(f"{method} cannot average ranks {sorted(ranks)}: use flexlora")
    return ranks.pop()


def _shares(ordered: Sequence[Contribution]) -> list[float]:
    if not ordered:
        raise ValueError("there is no contribution to average")
    if len({one.client_id for one in ordered}) != len(ordered):
        raise ValueError("a client contributes once")
    for one in ordered:
        if not 0.0 <= one.weight <= _LARGEST_WEIGHT:  # also false for NaN
            raise ValueError(f"{one.client_id}: a weight is at least 0 and at most 1e12")
    total = math.fsum(one.weight for one in ordered)
    if total <= 0.0:
        raise ValueError("the weights of a round must add up to more than 0")
    return [one.weight / total for one in ordered]


def _require_fit(one: Contribution, *, like: Contribution) -> None:
    if not one.pairs or set(one.pairs) != set(like.pairs):
        odd = sorted(set(one.pairs) ^ set(like.pairs)) or ["no module"]
        raise ValueError(f"{one.client_id}: other modules than the others: {', '.join(odd)}")
    for module, pair in one.pairs.items():
        if pair.shape != like.pairs[module].shape:
            raise ValueError(f"{one.client_id}: {module} has shape {pair.shape}")
        if not pair.is_finite():
            raise ValueError(f"{one.client_id}: {module} holds a value that is not finite")
