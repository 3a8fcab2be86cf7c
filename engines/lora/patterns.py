"""Ranks and alphas that differ by module: PEFT's `rank_pattern` and `alpha_pattern`.

PEFT reads its keys as regular expressions. A manifest comes from outside, so here a key is a module's path or
the end of one, letter by letter; on such keys both readings agree (tests hold them against PEFT).
"""

import dataclasses
import re
from collections.abc import Mapping
from typing import Any, TypeVar

from engines.lora.scaling import LoraScale

_PREFIX = "base_model.model."
_PATH = re.compile(r"[A-Za-z0-9_]+(\.[A-Za-z0-9_]+)*")
_Number = TypeVar("_Number", int, float)


@dataclasses.dataclass(frozen=True)
class LoraPattern:
    """Rank and alpha by module: the defaults, and what single modules have instead."""

    rank: int
    alpha: float
    rank_pattern: Mapping[str, int] = dataclasses.field(default_factory=dict)
    alpha_pattern: Mapping[str, float] = dataclasses.field(default_factory=dict)
    rank_stabilized: bool = False

    @classmethod
    def from_plan(cls, lora: Mapping[str, Any]) -> "LoraPattern":
        """Read the scales of a plan's adapter.

        Args:
            lora: the manifest's member of that name.
        Raises:
            ValueError: a rank or an alpha is out of range, or a key is no path.
            KeyError: the plan has no rank or alpha.
        """
        return cls(
            rank=lora["rank"],
            alpha=float(lora["alpha"]),
            rank_pattern=dict(lora.get("rank_pattern") or {}),
            alpha_pattern=dict(lora.get("alpha_pattern") or {}),
            rank_stabilized=bool(lora.get("rank_stabilized", False)),
        )

    def __post_init__(self) -> None:
        for key in (*self.rank_pattern, *self.alpha_pattern):
            if not _PATH.fullmatch(key):
                raise ValueError(f"{key!r}: a pattern's key is a module's path or the end of one")
        ranks, alphas = (self.rank, *self.rank_pattern.values()), (self.alpha, *self.alpha_pattern.values())
        for rank in ranks:
            LoraScale(rank, self.alpha)
        for alpha in alphas:
            LoraScale(self.rank, alpha)

    def at(self, module: str) -> LoraScale:
        """Return the scale of one module.

        Args:
            module: its path, with or without PEFT's prefix `base_model.model.`.
        Raises:
            ValueError: two keys name the module and say different things; PEFT would take the first.
        """
        path = module.removeprefix(_PREFIX)
        return LoraScale(
            rank=_chosen(self.rank_pattern, path, default=self.rank),
            alpha=_chosen(self.alpha_pattern, path, default=self.alpha),
            rank_stabilized=self.rank_stabilized,
        )


def _chosen(pattern: Mapping[str, _Number], path: str, *, default: _Number) -> _Number:
    found = {value for key, value in pattern.items() if path == key or path.endswith(f".{key}")}
    if len(found) > 1:
        raise ValueError(f"{path}: two keys of a pattern name this module with different values")
    return found.pop() if found else default
