"""A round of `flexlora`, `flora`, `fedex` or `fedit` by products of its clients' factors, module by module.

What is averaged is T = sum of w_i s B_i A_i over whole factors, the start plus what a client sent; what comes
out is the state of the next round. No more than one module of all clients is ever held, and of that no more
than its weight has values.
"""

from __future__ import annotations

import math
from collections.abc import Iterator, Mapping, Sequence

import numpy as np
import torch
from torch import Tensor

from app.runs.manifest import Manifest
from engines.aggregation.gram import gram, product_gram
from engines.aggregation.kernels import Numbers
from engines.aggregation.rows import Held, Weights
from engines.lora import moves
from engines.lora.cohort import Weighted
from engines.lora.factors import Pair
from engines.lora.methods import MERGING_METHODS, PRODUCT_METHODS
from engines.lora.moves import Moved
from engines.lora.patterns import LoraPattern
from engines.lora.seeding import seeded_a
from engines.lora.spectrum import Projection, Spectrum, together
from engines.lora.states import modules_in, parted
from engines.lora.states import together as state_of
from engines.lora.target import target_of
from workers.layout import tensor_list
from workers.sources import BlobUpdates
from workers.tensors import Shapes


def needs_products(manifest: Manifest) -> bool:
    """Say whether rounds of this run look at products: to go on with them, or to say what is missed.

    What a mean of factors misses is said of a mean alone: an optimizer's step is another, and in a buffer
    are changes of older factors.
    """
    if manifest.lora.method == "fedit":
        return manifest.aggregation.server_optimizer is None and manifest.buffered is None
    return manifest.lora.method in PRODUCT_METHODS


class Products:
    """The pairs of a round's clients, read from their updates."""

    def __init__(
        self,
        source: BlobUpdates,
        manifest: Manifest,
        *,
        state: Mapping[str, Tensor],
        shapes: Shapes,
        kept: Sequence[int],
        factors: Weights,
        ranks: Sequence[int | None],
        number: int,
    ) -> None:
        """Read `kept` clients of a source.

        Args:
            source: all updates of the round; rows are changes of the trained tensors, of shapes `shapes`.
            manifest: the run's.
            state: what the round started from.
            shapes: of a row's tensors, in their order.
            kept: the clients that count, ascending.
            factors: by which each of them was clipped, shape (len(kept),).
            ranks: at which each of them trained; None is the plan's own, module by module.
            number: of the round.
        """
        self._source, self._manifest = source, manifest
        self._trained, self._base = parted(state)
        self._kept, self._factors, self._ranks, self._number = kept, factors, ranks, number
        self._modules = modules_in(tensor_list(manifest))
        self._scales = LoraPattern.from_plan(manifest.lora.model_dump())
        self._spans = _spans(shapes)

    @property
    def make_the_state(self) -> bool:
        """Whether what comes out is written from products, and not the start plus a mean of factors."""
        return self._manifest.lora.method in PRODUCT_METHODS

    def gram(self) -> Weights:
        """Inner products of the clients' weight changes, heads included, shape (n, n), centred."""
        clients = len(self._kept)
        heads = [name for name in self._spans if ".lora_" not in name]
        total = np.zeros((clients, clients))
        for name in heads:
            rows = [self._read(name, row).numpy().reshape(-1) for row in range(clients)]
            total += gram(Held(np.stack(rows)))
        for module in self._modules:
            factors = [
                {module: (pair.b.numpy(), pair.a.numpy())} for pair in self._pairs(module, range(clients))
            ]
            total += product_gram(factors, [self._scales.at(module).factor] * clients)
        away = np.eye(clients) - 1.0 / clients
        centred: Weights = away @ total @ away
        return centred

    def next_state(self, shares: Weights, change: Numbers) -> tuple[dict[str, Tensor], Projection]:
        """Average by the run's method.

        Args:
            shares: what each kept client counts, shape (n,), adding up to 1.
            change: the mean of what they sent, shape (d,), float32.
        Returns:
            The state that the next round starts from, and what of the target its adapter does not hold.
        """
        steps = {
            name: torch.from_numpy(change[start:stop]).reshape(shape)
            for name, (start, stop, shape) in self._spans.items()
        }
        after = {name: self._trained[name].to(torch.float64) + step for name, step in steps.items()}
        base, missed = dict(self._base), list[Projection]()
        counting = np.flatnonzero(shares).tolist()
        for module, shape in self._modules.items():
            pairs = zip(counting, self._pairs(module, counting), strict=True)
            weighted = (Weighted(float(shares[row]), pair) for row, pair in pairs)
            target = target_of(weighted, width=min(shape))
            moved = self._move(module, target, mean=self._pair(module, after), shape=shape)
            after[f"{module}.lora_A.weight"], after[f"{module}.lora_B.weight"] = moved.pair.a, moved.pair.b
            missed.append(moved.missed)
            if moved.base is not None:
                base[module] = moved.base
        return state_of(after, base), together(missed)

    def _move(self, module: str, target: Spectrum, *, mean: Pair, shape: tuple[int, int]) -> Moved:
        lora, method = self._manifest.lora, self._manifest.lora.method
        base = self._base.get(module) or Pair(torch.zeros(shape[0], 0), torch.zeros(0, shape[1]), 1.0)
        name, scale = f"{module}.lora_A.weight", self._scales.at(module)
        if method == "flexlora":
            spare = seeded_a(lora.seed, name, (scale.rank, shape[1])).to(torch.float64)
            return moves.by_decomposition(target, scale=scale, spare_a=spare, energy=lora.energy)
        if method == "flora":
            # Another A every round: with one for all, B would first move the same directions again.
            fresh = seeded_a(lora.seed, f"{name}.after.{self._number}", (scale.rank, shape[1]))
            return moves.by_stacking(target, base=base, scale=scale, fresh_a=fresh)
        if method in MERGING_METHODS:
            return moves.by_residual(target, mean=mean, base=base)
        return Moved(mean, None, moves.by_factors(target, mean=mean))

    def _pair(self, module: str, tensors: Mapping[str, Tensor]) -> Pair:
        a, b = tensors[f"{module}.lora_A.weight"], tensors[f"{module}.lora_B.weight"]
        return Pair(b, a, self._scales.at(module).factor)

    def _pairs(self, module: str, rows: Sequence[int]) -> Iterator[Pair]:
        """Each client's own pair, of its own rank, in the order of `rows`."""
        start = self._pair(module, self._trained).wide()
        for row in rows:
            rank = self._ranks[row] or start.rank
            b = self._read(f"{module}.lora_B.weight", row) + start.b
            a = self._read(f"{module}.lora_A.weight", row) + start.a
            yield Pair(b[:, :rank], a[:rank], start.scale)

    def _read(self, name: str, row: int) -> Tensor:
        start, stop, shape = self._spans[name]
        values = np.empty(stop - start, dtype=np.float32)
        self._source.read(self._kept[row], start, stop, values)
        return torch.from_numpy(values.astype(np.float64) * self._factors[row]).reshape(shape)


def _spans(shapes: Shapes) -> dict[str, tuple[int, int, tuple[int, ...]]]:
    spans, start = dict[str, tuple[int, int, tuple[int, ...]]](), 0
    for name, shape in shapes.items():
        spans[name] = (start, start + math.prod(shape), shape)
        start += math.prod(shape)
    return spans
