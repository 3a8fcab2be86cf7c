"""Rounds whose clients send in each wire dtype: through real jobs, in any order, finite or turned away."""

from __future__ import annotations

from pathlib import Path
from typing import Any
from uuid import UUID

import numpy as np
import pytest
import sqlalchemy as sa
import torch
from safetensors.torch import load, save
from torch import Tensor

from app.core.db import Database
from app.core.ids import new_id
from app.custody.keys import BlobRef
from app.rounds.models import Evidence, Round
from app.rounds.states import RoundState
from app.runs.manifest import Manifest
from app.runs.sending import DTYPES, SCALE
from app.updates.models import Update, UpdateState
from client.update_file import update_file
from tests.builders import HOME, build_round, build_run, build_update, clients_of, tiny_manifest
from tests.central import CLIENTS, central_manifest
from tests.worker_bench import context_for, round_of, trained, work
from workers.central import NoisedRound, noised_step
from workers.context import Context
from workers.handlers import aggregate
from workers.merging import Began
from workers.tensors import write_tensors

COUNT = 5
CLOSE = {"float32": 1e-6, "float16": 2e-3, "bfloat16": 2e-2, "int8": 2e-2}


@pytest.fixture
def context(database: Database, tmp_path: Path) -> Context:
    return context_for(database, tmp_path)


def updates(count: int = COUNT, *, size: float = 1.0) -> list[dict[str, Tensor]]:
    generator = torch.Generator().manual_seed(3)
    return [
        {name: size * torch.randn(one.shape, generator=generator) for name, one in trained(0.0).items()}
        for _client in range(count)
    ]


def sealed(
    context: Context, files: list[bytes], *, wire_dtype: str, arrival: list[int] | None = None, **rule: Any
) -> UUID:
    """A round whose clients sent these files, in this order of arrival."""
    start, _size = write_tensors(context.blobs.of(HOME), trained(0.0))
    manifest = tiny_manifest(aggregation={"wire_dtype": wire_dtype} | rule)
    with context.database.run_tx("test") as session:
        run = build_run(session, clients=len(files), manifest=manifest)
        row = build_round(session, RoundState.OPEN, run=run, adapter_sha256=start)
        ids = clients_of(session, run)
        for number in arrival or range(len(files)):
            digest = context.blobs.of(HOME).put(files[number])
            build_update(session, row, ids[number], blob_sha256=digest, size_bytes=len(files[number]))
        session.execute(sa.update(Round).where(Round.id == row.id).values(state=RoundState.SEALED))
        return row.id


def candidate(context: Context, round_id: UUID) -> dict[str, Tensor]:
    row = round_of(context.database, round_id)
    assert row.candidate_sha256 is not None, row.abort_code
    return load(context.blobs.of(HOME).read(row.candidate_sha256))


@pytest.mark.parametrize("wire_dtype", sorted(DTYPES))
def test_the_mean_of_what_was_sent_is_the_mean_of_the_updates(context: Context, wire_dtype: str) -> None:
    sent = updates()
    round_id = sealed(
        context, [update_file(one, wire_dtype=wire_dtype) for one in sent], wire_dtype=wire_dtype
    )
    work(context, aggregate.run, "aggregate", round_id)
    for name, values in candidate(context, round_id).items():
        assert values.dtype == torch.float32
        mean = torch.stack([one[name] for one in sent]).to(torch.float64).mean(dim=0)
        assert (values - mean).abs().max() <= CLOSE[wire_dtype]


@pytest.mark.parametrize("rule", [{}, {"rule": "trimmed_mean", "faulty": 1, "mixing": "nearest_neighbours"}])
@pytest.mark.parametrize("wire_dtype", sorted(DTYPES))
def test_the_order_of_arrival_changes_no_bit(context: Context, wire_dtype: str, rule: dict[str, Any]) -> None:
    files = [update_file(one, wire_dtype=wire_dtype) for one in updates()]
    digests = set()
    for arrival in (list(range(COUNT)), np.random.default_rng(3).permutation(COUNT).tolist()):
        round_id = sealed(context, files, wire_dtype=wire_dtype, arrival=arrival, **rule)
        work(context, aggregate.run, "aggregate", round_id)
        digests.add(round_of(context.database, round_id).candidate_sha256)
    assert len(digests) == 1
    assert None not in digests


@pytest.mark.parametrize("bad", [torch.nan, torch.inf, -torch.inf])
@pytest.mark.parametrize("wire_dtype", sorted(DTYPES))
def test_an_update_that_is_not_finite_is_rejected_and_leaves_no_trace(
    context: Context, wire_dtype: str, bad: float
) -> None:
    files = [update_file(one, wire_dtype=wire_dtype) for one in updates()]
    held = load(files[0])
    name = next(name for name in sorted(held) if name.endswith(SCALE) == (wire_dtype == "int8"))
    held[name].reshape(-1)[-1] = bad
    beside = sealed(context, [*files, save(held)], wire_dtype=wire_dtype)
    alone = sealed(context, files, wire_dtype=wire_dtype)
    for round_id in (beside, alone):
        work(context, aggregate.run, "aggregate", round_id)
    found = [round_of(context.database, one).candidate_sha256 for one in (beside, alone)]
    assert found[0] == found[1] is not None
    with context.database.run_tx("test") as session:
        rejected = session.scalars(
            sa.select(Update).where(Update.round_id == beside, Update.state == UpdateState.REJECTED)
        ).one()
        assert rejected.reject_code == "non_finite"
        norm = sa.select(Evidence.norm).where(
            Evidence.round_id == beside, Evidence.client_id == rejected.client_id
        )
        assert session.scalars(norm).one() is None


def released(context: Context, files: list[bytes], *, wire_dtype: str, noise: float, **rule: Any) -> Tensor:
    """What a `central` round of these files lets out, as one vector times its divisor: the noised sum."""
    document = central_manifest(aggregation={"wire_dtype": wire_dtype} | rule, cohort={"kind": "everyone"})
    document["privacy"]["noise_multiplier"] = noise
    manifest = Manifest.model_validate(document)
    noised = NoisedRound(round_id=UUID(int=1), clip_norm=1.0, clients=CLIENTS, secret=bytes(32))
    sent = tuple(
        (UUID(int=number), BlobRef(HOME, context.blobs.of(HOME).put(file)))
        for number, file in enumerate(files, start=1)
    )
    began = Began(round_id=new_id(), number=1, adapter=BlobRef(HOME, "0" * 64), ranks={})
    step = noised_step(context.blobs, manifest, noised, sent, began=began).update
    return (
        torch.cat([part.reshape(-1) for part in step.values()]).to(torch.float64) * manifest.privacy.divisor
    )


@pytest.mark.parametrize("rule", [{}, {"rule": "trimmed_mean", "faulty": 1}])
@pytest.mark.parametrize("wire_dtype", sorted(DTYPES))
def test_under_central_one_update_moves_the_sum_by_no_more_than_the_clip_norm(
    context: Context, wire_dtype: str, rule: dict[str, Any]
) -> None:
    """Clipped after decoding, a rounded or hostile file is bounded by C; noise is C over a thousand."""
    honest = [update_file(one, wire_dtype=wire_dtype) for one in updates(3)]
    largest = {name: torch.full(one.shape, 3e38) for name, one in trained(0.0).items()}
    hostile = update_file(largest, wire_dtype=wire_dtype)
    noise = 1e-3
    without = released(context, honest, wire_dtype=wire_dtype, noise=noise, **rule)
    beside = released(context, [*honest, hostile], wire_dtype=wire_dtype, noise=noise, **rule)
    moved = float(torch.linalg.vector_norm(beside - without))
    slack = 6 * noise * 2 * len(without) ** 0.5
    assert moved <= 1.0 + slack
    if not rule:  # a trimmed sum leaves it out
        assert moved >= 1.0 - slack


@pytest.mark.parametrize("bad", [torch.nan, torch.inf])
@pytest.mark.parametrize("wire_dtype", sorted(DTYPES))
def test_under_central_what_is_not_finite_counts_as_zero(
    context: Context, wire_dtype: str, bad: float
) -> None:
    honest = [update_file(one, wire_dtype=wire_dtype) for one in updates(3)]
    held = load(honest[0])
    name = next(name for name in sorted(held) if name.endswith(SCALE) == (wire_dtype == "int8"))
    held[name].reshape(-1)[-1] = bad
    noise = 1e-3
    without = released(context, honest, wire_dtype=wire_dtype, noise=noise)
    beside = released(context, [*honest, save(held)], wire_dtype=wire_dtype, noise=noise)
    assert float(torch.linalg.vector_norm(beside - without)) <= 6 * noise * 2 * len(without) ** 0.5
