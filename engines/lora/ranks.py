"""The largest rank that a client can train and send in time, from what it says of its hardware.

Hardware and deadlines are no data: a rank chosen from them tells nothing of anybody's records. A rank chosen
from the spectrum of a noised aggregate is `spectrum.rank_by_energy`.
"""

import dataclasses
import functools
import math
from collections.abc import Sequence

from engines.lora.methods import METHODS

RANKS = (4, 8, 16, 32, 64)
_WEIGHT_BYTES, _ADAM_BYTES, _GRADIENT_BYTES = 4, 8, 4  # float32; Adam keeps two values


@dataclasses.dataclass(frozen=True)
class Fit:
    """A rank with what it takes."""

    rank: int
    memory_bytes: int
    upload_s: float


@dataclasses.dataclass(frozen=True)
class Capability:
    """What a client declares."""

    memory_bytes: float
    """Free for the adapter and what training keeps for it."""
    upload_bytes_per_s: float
    deadline_s: float
    """Time for the upload of one round."""

    def __post_init__(self) -> None:
        values = (self.memory_bytes, self.upload_bytes_per_s, self.deadline_s)
        if not all(math.isfinite(value) and value > 0.0 for value in values):
            raise ValueError("memory, speed and deadline are positive and finite")

    def allows(self, fit: Fit) -> bool:
        """Say whether there is memory for it, and time."""
        return fit.memory_bytes <= self.memory_bytes and fit.upload_s <= self.deadline_s


class NoRankFits(ValueError):
    """Not even the smallest rank fits the client's memory, or its upload the deadline."""

    def __init__(self, smallest: Fit, capability: Capability) -> None:
        self.smallest = smallest
        self.is_memory = smallest.memory_bytes > capability.memory_bytes
        """True where memory is too small, false where only the upload takes too long."""
        memory = f"{smallest.memory_bytes} bytes of {capability.memory_bytes:.0f}"
        upload = f"{smallest.upload_s:.1f} s of {capability.deadline_s:.1f} to send"
        super().__init__(f"rank {smallest.rank} needs {memory if self.is_memory else upload}")


@dataclasses.dataclass(frozen=True)
class Elements:
    """Numbers of one client's adapter at some rank."""

    trained: int
    frozen: int
    sent: int


def elements(
    method: str, rank: int, *, shapes: Sequence[tuple[int, int]], sketch_width: int | None = None
) -> Elements:
    """Count what a client trains, holds and sends in a round; the dearer of two alternating rounds.

    Args:
        method: a name in the table.
        rank: of every pair.
        shapes: (d, k) of every adapted weight.
        sketch_width: p of `fedask`, which sends p d numbers in odd rounds and p k in even ones, whatever the
            rank.
    Raises:
        ValueError: no such method, a rank or shape out of range, or `fedask` without its width.
    """
    if method not in METHODS:
        raise ValueError(f"{method} is no method")
    if rank < 1 or not shapes or any(rank > min(shape) for shape in shapes):
        raise ValueError(f"rank {rank} does not fit the adapted weights")
    if method == "fedask" and (sketch_width is None or sketch_width < 1):
        raise ValueError("fedask needs the width of its sketch")
    b, a = rank * sum(rows for rows, _ in shapes), rank * sum(columns for _, columns in shapes)
    core = rank * rank * len(shapes)
    trained = {"ffa": b, "fedsb": core, "rolora": max(a, b)}.get(method, a + b)
    sent = {"fedsa": a, "fedask": (sketch_width or 0) * max(a, b) // rank}.get(method, trained)
    held = a + b + (core if method == "fedsb" else 0)
    return Elements(trained=trained, frozen=held - trained, sent=sent)


def needs(
    method: str,
    rank: int,
    *,
    shapes: Sequence[tuple[int, int]],
    upload_bytes_per_s: float,
    per_sample_batch: int = 1,
    sketch_width: int | None = None,
) -> Fit:
    """Say what training and sending at a rank takes.

    bytes = 4 (trained + frozen) + 8 trained + 4 batch trained: weights, Adam's state, gradients; under
    DP-SGD every example of a batch has a gradient of its own. Where all of r (d + k) is trained this is
    sum over weights of r (d + k) (4 + 8 + 4 batch).

    Args:
        method: a name in the table.
        rank: of every pair.
        shapes: (d, k) of every adapted weight.
        upload_bytes_per_s: of the client.
        per_sample_batch: examples whose gradients are held at once; 1 without DP-SGD.
        sketch_width: p of `fedask`.
    Raises:
        ValueError: an argument is out of range.
    """
    if per_sample_batch < 1 or not 0.0 < upload_bytes_per_s < float("inf"):
        raise ValueError("a batch holds at least one example, and the speed is positive and finite")
    counted = elements(method, rank, shapes=shapes, sketch_width=sketch_width)
    memory = _WEIGHT_BYTES * (counted.trained + counted.frozen)
    memory += (_ADAM_BYTES + _GRADIENT_BYTES * per_sample_batch) * counted.trained
    return Fit(rank, memory_bytes=memory, upload_s=_WEIGHT_BYTES * counted.sent / upload_bytes_per_s)


def largest_rank(
    capability: Capability,
    method: str,
    *,
    shapes: Sequence[tuple[int, int]],
    per_sample_batch: int = 1,
    sketch_width: int | None = None,
    ranks: Sequence[int] = RANKS,
) -> Fit:
    """Return the largest of the ranks that fits memory and, once sent, the deadline.

    Args:
        capability: what the client declares.
        method: a name in the table.
        shapes: (d, k) of every adapted weight; ranks over the smallest length are left out.
        per_sample_batch: see `needs`.
        sketch_width: see `needs`.
        ranks: to choose from.
    Raises:
        NoRankFits: the smallest does not.
        ValueError: an argument is out of range.
    """
    smallest_length = min((min(shape) for shape in shapes), default=0)
    usable = sorted(rank for rank in ranks if rank <= smallest_length)
    if not usable:
        raise ValueError("no rank is as small as the adapted weights")
    taken = functools.partial(
        needs,
        method,
        shapes=shapes,
        upload_bytes_per_s=capability.upload_bytes_per_s,
        per_sample_batch=per_sample_batch,
        sketch_width=sketch_width,
    )
    fits = [taken(rank) for rank in usable]
    good = [fit for fit in fits if capability.allows(fit)]
    if not good:
        raise NoRankFits(fits[0], capability)
    return good[-1]
