"""LoRA methods beside wire dtypes, central noise, canaries and buffers, in real rounds."""

from __future__ import annotations

from pathlib import Path
from typing import Any
from uuid import UUID

import pytest
import torch
from safetensors.torch import load
from torch import Tensor

from app.core.db import Database
from app.core.ids import new_id
from app.custody.keys import BlobRef
from app.runs.manifest import Manifest
from app.runs.methods import sent_shapes
from app.runs.sending import SCALE as WIRE_SCALE
from client.update_file import update_file
from engines.privacy.audit_canaries import Canaries
from tests.builders import HOME
from tests.central import CENTRAL, EVERYONE
from tests.db.test_lora_rounds import (
    RANK,
    Training,
    changes,
    off,
    plan,
    target,
    weight_change,
)
from tests.worker_bench import context_for
from workers.canaries import SeatedCanaries
from workers.central import NoisedRound, noised_step
from workers.context import Context
from workers.merging import Began

RANKS = [1, 2, 4]


@pytest.fixture
def context(database: Database, tmp_path: Path) -> Context:
    return context_for(database, tmp_path)


def as_read(update: dict[str, Tensor], *, wire_dtype: str) -> dict[str, Tensor]:
    """What arrives of an update, by torch's own reading."""
    held = load(update_file(update, wire_dtype=wire_dtype))
    return {name: held[name].float() * held.get(name + WIRE_SCALE, torch.ones(1)) for name in update}


def narrow(method: str, wire_dtype: str, **lora: Any) -> dict[str, Any]:
    made = plan(method, **lora)
    return made | {"aggregation": made["aggregation"] | {"wire_dtype": wire_dtype}}


@pytest.mark.parametrize("wire_dtype", ["bfloat16", "int8"])
def test_products_of_mixed_ranks_that_came_rounded_are_averaged_as_they_arrived(
    context: Context, wire_dtype: str
) -> None:
    training = Training(context, narrow("flexlora", wire_dtype, ranks=RANKS), ranks=RANKS)
    for number in (1, 2):
        start, updates = training.started_from(), changes(training.manifest, number=number, ranks=RANKS)
        training.round(updates)
        wanted = target(start, [as_read(one, wire_dtype=wire_dtype) for one in updates], RANKS)
        u, values, vt = torch.linalg.svd(wanted)
        nearest = u[:, :RANK] * values[:RANK] @ vt[:RANK]
        assert off(weight_change(training.release()), nearest) < 1e-5
        assert off(target(start, updates, RANKS), wanted) > 1e-4  # the rounding can be told


@pytest.mark.parametrize(
    ("method", "wire_dtype"), [("rolora", "float16"), ("fedsb", "int8"), ("fedsa", "bfloat16")]
)
def test_what_a_round_trains_comes_rounded_and_moves_the_rest_by_nothing(
    context: Context, method: str, wire_dtype: str
) -> None:
    training = Training(context, narrow(method, wire_dtype))
    for number in (1, 2):
        start, updates = training.started_from(), changes(training.manifest, number=number, ranks=[RANK] * 3)
        training.round(updates)
        after = training.started_from()
        read = [as_read(one, wire_dtype=wire_dtype) for one in updates]
        for name in start:
            moved = sum((one[name] for one in read if name in one), torch.zeros(())) / 3
            assert torch.allclose(after[name], start[name] + moved, rtol=1e-6, atol=1e-7)
        assert set(updates[0]) <= set(start)


def clipped(update: dict[str, Tensor], clip_norm: float) -> dict[str, Tensor]:
    norm = float(torch.cat([one.reshape(-1) for one in update.values()]).norm())
    return {name: one * (clip_norm / max(norm, clip_norm)) for name, one in update.items()}


def noiseless(
    method: str,
    *,
    number: int,
    wire_dtype: str,
    updates: list[dict[str, Tensor]],
    context: Context,
    ranks: dict[UUID, int],
    canaries: SeatedCanaries | None = None,
) -> tuple[dict[str, Tensor], float]:
    """What a central round lets out with the least noise that there is, times its divisor; and C."""
    document = narrow(method, wire_dtype, ranks=RANKS)
    document["privacy"] = document["privacy"] | CENTRAL | EVERYONE | {"noise_multiplier": 1e-3}
    manifest, clip_norm = Manifest.model_validate(document), 1.0
    noised = NoisedRound(
        round_id=UUID(int=1), clip_norm=clip_norm, clients=len(updates), secret=bytes(32), canaries=canaries
    )
    files = [update_file(one, wire_dtype=wire_dtype) for one in updates]
    sent = tuple(
        (UUID(int=at), BlobRef(HOME, context.blobs.of(HOME).put(file)))
        for at, file in enumerate(files, start=1)
    )
    began = Began(round_id=new_id(), number=number, adapter=BlobRef(HOME, "0" * 64), ranks=ranks)
    step = noised_step(context.blobs, manifest, noised, sent, began=began)
    return {name: one * manifest.privacy.divisor for name, one in step.update.items()}, clip_norm


@pytest.mark.parametrize(("method", "number"), [("ffa", 1), ("rolora", 1), ("rolora", 2), ("fedsb", 1)])
@pytest.mark.parametrize("wire_dtype", ["float16", "int8"])
def test_a_noised_sum_is_of_what_arrived_at_every_rank_clipped_as_one_vector(
    context: Context, method: str, number: int, wire_dtype: str
) -> None:
    manifest = plan(method, ranks=RANKS)
    updates = changes(manifest, number=number, ranks=RANKS)
    ranks = {UUID(int=at): rank for at, rank in enumerate(RANKS, start=1)}
    found, clip_norm = noiseless(
        method, number=number, wire_dtype=wire_dtype, updates=updates, context=context, ranks=ranks
    )
    wanted = {name: torch.zeros(shape) for name, shape in sent_shapes(manifest, number=number).items()}
    for update in updates:
        for name, one in clipped(as_read(update, wire_dtype=wire_dtype), clip_norm).items():
            wanted[name][tuple(slice(0, length) for length in one.shape)] += one
    assert set(found) == set(wanted)
    for name, one in wanted.items():
        assert (found[name] - one).abs().max() < 8e-3  # eight standard deviations of the noise


def test_canaries_sit_beside_clients_of_every_rank(context: Context) -> None:
    """Every update is zero: what is left is the sum of the canaries, over all numbers of the run's rank."""
    manifest = plan("ffa", ranks=RANKS)
    dimension = sum(shape.numel() for shape in map(torch.Size, sent_shapes(manifest, number=1).values()))
    canaries = Canaries(bytes(32), count=200, dimension=dimension)
    seated = SeatedCanaries(canaries, tuple(range(200)))
    updates = [
        {name: 0.0 * one for name, one in update.items()}
        for update in changes(manifest, number=1, ranks=RANKS)
    ]
    found, clip_norm = noiseless(
        "ffa",
        number=1,
        wire_dtype="bfloat16",
        updates=updates,
        context=context,
        ranks={UUID(int=at): rank for at, rank in enumerate(RANKS, start=1)},
        canaries=seated,
    )
    shapes = sent_shapes(manifest, number=1)
    wanted = {name: torch.zeros(shape) for name, shape in shapes.items()}
    for made in seated.updates(shapes, clip_norm=clip_norm):
        for name, one in clipped(made, clip_norm).items():
            wanted[name] += one
    assert max(float(one.abs().max()) for one in wanted.values()) > 0.1
    for name, one in wanted.items():
        assert (found[name] - one).abs().max() < 8e-3
