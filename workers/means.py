"""Clients' mean updates over the rounds of a run: what nearest neighbours are told by (`memory` of a rule).

A mean is kept in a blob of its client's tenant, float32, in the coordinates of an update, and moved once a
round by what the round admitted. It is a function of updates that the server may see one by one anyway. What
is made here nobody else can read: its keys are kept with the round's result, or never.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from uuid import UUID

import numpy as np
import torch

from app.custody.blobs import Blobs
from app.custody.keys import Located
from app.runs.sending import wire_tensors
from app.updates.wire import Expected
from engines.aggregation.gram import gram
from engines.aggregation.rows import Streamed, Weights
from workers.sources import BlobUpdates
from workers.tensors import TensorWriter

_NAME = "mean"
_PIECE = 1 << 18
"""Values moved at once."""


@dataclass(frozen=True, slots=True)
class Mean:
    """A client's mean update."""

    file: Located
    weight: float
    """Of all rounds in it together; the last one's is 1."""
    number: int
    """The round that it was moved in last."""


@dataclass(frozen=True, slots=True, kw_only=True)
class Sent:
    """The updates that a round has admitted, in the order of client ids."""

    source: BlobUpdates
    kept: Sequence[int]
    """Their rows in the source."""
    factors: Weights
    """What each is multiplied with."""
    client_ids: Sequence[UUID]
    tenants: Sequence[UUID]
    round_id: UUID
    number: int


@dataclass(frozen=True, slots=True)
class _Former:
    """A client's mean before the round."""

    held: BlobUpdates
    row: int
    weight: float
    """What it counts by now, where the present update is 1."""


def moved(blobs: Blobs, sent: Sent, former: Mapping[UUID, Mean], *, memory: float) -> list[Mean]:
    """Move every client's mean by its update, and store it; a client without one begins with its update.

    Args:
        blobs: where they lie.
        sent: the round's updates.
        former: the means before it.
        memory: what a round counts of the one after it, over 0 to 1; a round that a client missed too.
    Returns:
        One mean for each client of `sent`.
    Raises:
        BrokenTensors, BlobDamaged, Unavailable: a mean is not what was stored, or not there.
    """
    known = [one for one in sent.client_ids if one in former]
    if not known:
        return [_moved_one(blobs, sent, place, None) for place in range(len(sent.client_ids))]
    files, rows = [former[one].file for one in known], {one: row for row, one in enumerate(known)}
    with BlobUpdates(blobs, files, _expected(sent.source.dimension)) as held:
        made = []
        for place, one in enumerate(sent.client_ids):
            before = None
            if one in rows:
                weight = former[one].weight * memory ** (sent.number - former[one].number)
                before = _Former(held, rows[one], weight)
            made.append(_moved_one(blobs, sent, place, before))
    return made


def _moved_one(blobs: Blobs, sent: Sent, place: int, before: _Former | None) -> Mean:
    weight = 1.0 + (0.0 if before is None else before.weight)
    dimension, tenant = sent.source.dimension, sent.tenants[place]
    with blobs.of(tenant).writer() as writer:
        owner = f"{sent.round_id}/{sent.client_ids[place]}"  # or equal means would share a blob, and its end
        file = TensorWriter(writer, {_NAME: (dimension,)}, only_of=owner)
        piece = np.empty(min(_PIECE, dimension), dtype=np.float32)
        for start in range(0, dimension, _PIECE):
            stop = min(start + _PIECE, dimension)
            out = piece[: stop - start]
            sent.source.read(sent.kept[place], start, stop, out)
            mean = out.astype(np.float64) * sent.factors[place]
            if before is not None:
                before.held.read(before.row, start, stop, out)
                mean += before.weight * out.astype(np.float64)
                mean /= weight
            file.append(torch.from_numpy(mean.astype(np.float32)))
        return Mean(file.publish(), weight, sent.number)


def gram_of(blobs: Blobs, means: Sequence[Mean], *, dimension: int) -> Weights:
    """The centred Gram matrix of clients' means, shape (n, n); raises as `moved`."""
    with BlobUpdates(blobs, [one.file for one in means], _expected(dimension)) as source:
        return gram(Streamed(source))


def _expected(dimension: int) -> Expected:
    return wire_tensors([(_NAME, (dimension,))], "float32")
