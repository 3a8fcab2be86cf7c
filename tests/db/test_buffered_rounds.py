"""A buffer's aggregate: weighed by age, divided by its constant size, and whoever was turned away is zero."""

from __future__ import annotations

from pathlib import Path
from typing import Any
from uuid import UUID

import pytest
import sqlalchemy as sa
import torch
from safetensors.torch import load
from torch import Tensor

from app.core.db import Database
from app.core.ids import new_id
from app.releases.models import Release
from app.rounds.models import Round
from app.rounds.queries import rounds_of
from app.rounds.states import RoundState
from app.runs.models import Run, RunClient
from app.updates.models import Update, UpdateState
from tests.builders import HOME, build_round, build_run, clients_of, tiny_manifest
from tests.worker_bench import context_for, round_of, trained, work
from workers.context import Context
from workers.handlers import aggregate, publish, validate
from workers.tensors import write_tensors

SIZE = 3
JOBS = ((aggregate, "aggregate"), (validate, "validate"), (publish, "publish"))


class Died(BaseException):
    """Stands for kill -9: nothing after this point runs."""


@pytest.fixture
def context(database: Database, tmp_path: Path) -> Context:
    return context_for(database, tmp_path)


def sealed(
    context: Context,
    updates: list[tuple[int, dict[str, Tensor]]],
    *,
    aborted: tuple[int, ...] = (),
    **aggregation: Any,
) -> UUID:
    """Round 4 of a run, sealed with (base, tensors) of its clients in the order of their ids."""
    manifest = tiny_manifest(
        buffered={"participations": 4, "staleness": 3},
        quorum={"min_updates": SIZE, "max_updates": SIZE},
        rounds=6,
        aggregation=aggregation,
    )
    start, _size = write_tensors(context.blobs.of(HOME), trained(0.5))
    with context.database.run_tx("test") as session:
        run = build_run(session, clients=SIZE, manifest=manifest)
        rounds = [
            build_round(
                session,
                RoundState.ABORTED if number in aborted else RoundState.PUBLISHED,
                run=run,
                number=number,
            )
            for number in (1, 2, 3)
        ]
        rounds.append(build_round(session, run=run, number=4, min_updates=SIZE, adapter_sha256=start))
        for client_id, (base, tensors) in zip(clients_of(session, run), updates, strict=True):
            digest, size_bytes = write_tensors(context.blobs.of(HOME), tensors)
            session.add(
                Update(
                    id=new_id(),
                    round_id=rounds[-1].id,
                    client_id=client_id,
                    organisation_id=run.organisation_id,
                    base_round_id=rounds[base - 1].id,
                    state=UpdateState.RECEIVED,
                    declared_sha256=digest,
                    blob_sha256=digest,
                    size_bytes=size_bytes,
                )
            )
        session.flush()
        session.execute(sa.update(Round).where(Round.id == rounds[-1].id).values(state=RoundState.SEALED))
        return rounds[-1].id


def change_of(context: Context, round_id: UUID) -> float:
    row = round_of(context.database, round_id)
    assert row.candidate_sha256 is not None, row.abort_code
    after = load(context.blobs.of(HOME).read(row.candidate_sha256))
    values = torch.cat([one.reshape(-1) for one in after.values()]) - 0.5
    assert torch.allclose(values, values[:1], rtol=1e-6)
    return float(values[0])


def test_a_buffer_weighs_by_age_and_divides_by_its_size(context: Context) -> None:
    """1, 2 and 3 from adapters that 0, 1 and 3 releases were made since: s = 1, 1/sqrt(2), 1/2."""
    round_id = sealed(context, [(4, trained(1.0)), (3, trained(2.0)), (1, trained(3.0))])
    work(context, aggregate.run, "aggregate", round_id)
    assert change_of(context, round_id) == pytest.approx((1 + 2 / 2**0.5 + 3 / 2) / 3)


def test_a_round_that_was_aborted_makes_no_update_older(context: Context) -> None:
    round_id = sealed(context, [(4, trained(1.0)), (3, trained(2.0)), (1, trained(3.0))], aborted=(1, 3))
    work(context, aggregate.run, "aggregate", round_id)
    assert change_of(context, round_id) == pytest.approx((1 + 2 + 3 / 2**0.5) / 3)


def test_an_update_that_is_not_finite_counts_as_zero_and_ends_no_buffer(context: Context) -> None:
    round_id = sealed(context, [(4, trained(1.0)), (4, trained(torch.nan)), (1, trained(3.0))])
    work(context, aggregate.run, "aggregate", round_id)
    assert change_of(context, round_id) == pytest.approx((1 + 3 / 2) / 3)
    with context.database.run_tx("test") as session:
        states = session.scalars(
            sa.select(Update.state).where(Update.round_id == round_id).order_by(Update.client_id)
        ).all()
    assert states == [UpdateState.RECEIVED, UpdateState.REJECTED, UpdateState.RECEIVED]


def test_a_buffer_of_nothing_finite_is_aborted(context: Context) -> None:
    round_id = sealed(context, [(4, trained(torch.nan))] * SIZE)
    work(context, aggregate.run, "aggregate", round_id)
    assert round_of(context.database, round_id).abort_code == "quorum_lost"


def test_a_server_optimizer_steps_with_the_buffers_change(context: Context) -> None:
    updates = [(4, trained(1.0)), (4, trained(2.0)), (4, trained(3.0))]
    round_id = sealed(context, updates, server_optimizer={"kind": "fedavgm", "rate": 0.5})
    work(context, aggregate.run, "aggregate", round_id)
    assert change_of(context, round_id) == pytest.approx(1.0)
    row = round_of(context.database, round_id)
    with context.database.run_tx("test") as session:
        assert session.get_one(Run, row.run_id).manifest["buffered"]["staleness"] == 3
    assert row.optimizer_sha256 is not None


def to_release(context: Context, round_id: UUID) -> None:
    for handler, kind in JOBS:
        work(context, handler.run, kind, round_id)


def participations(context: Context, round_id: UUID) -> dict[UUID, int]:
    """How many updates of each client the run has counted."""
    with context.database.run_tx("test") as session:
        run_id = session.get_one(Round, round_id).run_id
        rows = session.scalars(sa.select(RunClient).where(RunClient.run_id == run_id))
        return {row.client_id: row.participations for row in rows}


@pytest.mark.parametrize(
    "point",
    [
        "aggregate.after_tx1",
        "aggregate.after_blob",
        "aggregate.before_tx2",
        "aggregate.after_tx2",
        "validate.after_compute",
        "publish.after_blob",
        "publish.after_tx",
    ],
)
def test_a_worker_that_dies_between_a_buffers_seal_and_its_release_changes_nothing(
    context: Context, point: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    """No update is folded in, made older or counted twice; one release, one next buffer that goes on."""

    def die(reached: str) -> None:
        if reached == point:
            raise Died

    round_id = sealed(context, [(4, trained(1.0)), (3, trained(2.0)), (1, trained(3.0))])
    with context.database.run_tx("test") as session:
        price = {"noise_multiplier": 2.0, "epsilon": 4.0, "delta": 1e-5, "epsilon_by_round": [1.0, 2, 3, 4]}
        price |= {"accountant": "PLD", "rdp": {}}
        session.execute(sa.update(Run).values(manifest_sha256="a" * 64, price=price))
    counted = participations(context, round_id)
    for handler, _kind in JOBS:
        monkeypatch.setattr(handler, "reach", die)
    with pytest.raises(Died):
        to_release(context, round_id)
    monkeypatch.undo()
    to_release(context, round_id)
    assert change_of(context, round_id) == pytest.approx((1 + 2 / 2**0.5 + 3 / 2) / 3)
    assert participations(context, round_id) == counted == dict.fromkeys(counted, 1)
    with context.database.run_tx("test") as session:
        row = session.get_one(Round, round_id)
        release = session.scalars(sa.select(Release)).one()
        following = [one for one in rounds_of(session, row.run_id) if one.number > 4]
    assert (release.round_id, row.state) == (round_id, RoundState.PUBLISHED)
    assert [(one.number, one.state) for one in following] == [(5, RoundState.OPEN)]
    assert following[0].adapter_sha256 == row.candidate_sha256
