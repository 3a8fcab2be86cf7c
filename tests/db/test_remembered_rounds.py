"""Clients' mean updates in real rounds: moved by what counted, kept while they are needed, and no longer."""

from __future__ import annotations

from pathlib import Path
from uuid import UUID

import pytest
import sqlalchemy as sa
import torch
from safetensors.torch import load

from app.core.clock import now
from app.core.db import Database
from app.custody.errors import BlobGone
from app.custody.models import BlobKey
from app.rounds.models import Round
from app.rounds.states import RoundState
from app.runs.models import Run
from app.runs.states import RunState
from app.updates.models import UpdateMean
from tests.builders import HOME
from tests.db.test_robust_rounds import aggregated, change_of, honest, next_round, robust
from tests.worker_bench import context_for, round_of, run_of, trained, work
from workers.context import Context
from workers.handlers import aggregate, sweep

MEMORY = 0.5
CLIENTS = 5


@pytest.fixture
def context(database: Database, tmp_path: Path) -> Context:
    return context_for(database, tmp_path)


def first(context: Context, *, clip_norm: float | None = None) -> UUID:
    """A round in which everybody sends ones, and one client's update is not finite."""
    manifest = robust(mixing="nearest_neighbours", settings={"memory": MEMORY}, clip_norm=clip_norm)
    broken = trained(float("inf"))
    return aggregated(context, [*[trained(1.0)] * (CLIENTS - 1), broken], manifest)


def second(context: Context, round_id: UUID, *, value: float = 4.0) -> UUID:
    """The run's next round, in which everybody sends the same."""
    over(context, round_id)
    following = next_round(context, round_id, [trained(value)] * CLIENTS)
    work(context, aggregate.run, "aggregate", following)
    return following


def over(context: Context, round_id: UUID) -> None:
    """The round ends without a release; the next one starts where it had."""
    with context.database.run_tx("test") as session:
        row = session.get_one(Round, round_id)
        session.get_one(Run, row.run_id).start_adapter_sha256 = row.adapter_sha256
        session.execute(sa.update(Round).where(Round.id == round_id).values(state=RoundState.ABORTED))


def means(context: Context, round_id: UUID) -> list[UpdateMean]:
    with context.database.run_tx("test") as session:
        rows = sa.select(UpdateMean).where(UpdateMean.round_id == round_id).order_by(UpdateMean.client_id)
        return list(session.scalars(rows))


def values(context: Context, row: UpdateMean) -> torch.Tensor:
    return load(context.blobs.of(HOME).read(row.blob_sha256))["mean"]


def test_a_mean_moves_by_what_was_admitted_and_a_late_client_begins_with_its_update(context: Context) -> None:
    before = first(context)
    assert [row.weight for row in means(context, before)] == [1.0] * (CLIENTS - 1)  # one was rejected
    after = means(context, second(context, before))
    assert [row.weight for row in after] == [1.5] * (CLIENTS - 1) + [1.0]
    found = [values(context, row) for row in after]
    expected = (4.0 + MEMORY * 1.0) / (1.0 + MEMORY)
    for mean in found[:-1]:
        assert mean == pytest.approx(torch.full_like(mean, expected))
    assert found[-1] == pytest.approx(torch.full_like(found[-1], 4.0))


def test_a_missed_round_makes_what_was_before_it_older(context: Context) -> None:
    before = first(context)
    between = second(context, before)
    third = means(context, second(context, between))
    assert [row.weight for row in third] == [1.75] * (CLIENTS - 1) + [1.5]
    with context.database.run_tx("test") as session:
        session.execute(sa.delete(UpdateMean).where(UpdateMean.round_id.in_([between, third[0].round_id])))
    over(context, third[0].round_id)
    following = means(context, second(context, third[0].round_id))
    assert [row.weight for row in following] == [1.0 + MEMORY**3] * (CLIENTS - 1) + [1.0]


def test_a_mean_is_of_updates_as_they_were_clipped(context: Context) -> None:
    (row, *_others) = means(context, first(context, clip_norm=0.5))
    assert float(values(context, row).norm()) == pytest.approx(0.5)


def test_a_client_that_was_away_from_all_is_left_out_though_it_comes_back(context: Context) -> None:
    """Without a memory its second update, which is like the others', would be mixed into theirs."""
    manifest = robust(mixing="nearest_neighbours", settings={"memory": 1.0})
    round_id = aggregated(context, [*honest(7), trained(-10.0)], manifest)
    over(context, round_id)
    later = [*honest(7, seed=2), trained(1.0)]
    following = next_round(context, round_id, later)
    work(context, aggregate.run, "aggregate", following)
    with_memory, without = (
        aggregated(context, [*later[:7], trained(value)], robust(mixing="nearest_neighbours"))
        for value in (-10.0, 1.0)
    )
    assert torch.equal(change_of(context, following), change_of(context, with_memory))
    assert not torch.equal(change_of(context, following), change_of(context, without))


def test_a_job_that_died_leaves_no_mean_that_can_be_read(
    context: Context, monkeypatch: pytest.MonkeyPatch
) -> None:
    def die(point: str) -> None:
        if point == "aggregate.before_tx2":
            raise InterruptedError

    with monkeypatch.context() as patched:
        patched.setattr(aggregate, "reach", die)
        with pytest.raises(InterruptedError):
            first(context)
    with context.database.run_tx("test") as session:
        round_id = session.scalars(sa.select(Round.id)).one()
        readable = set(session.scalars(sa.select(BlobKey.sha256)))
    work(context, aggregate.run, "aggregate", round_id)
    kept = {row.blob_sha256 for row in means(context, round_id)}
    assert len(kept) == CLIENTS - 1
    assert not kept & readable  # of what died nobody has a key
    with context.database.run_tx("test") as session:
        assert set(session.scalars(sa.select(BlobKey.sha256))) == readable | kept


def test_equal_means_are_kept_by_themselves_so_that_one_can_go_without_the_other(context: Context) -> None:
    assert len({row.blob_sha256 for row in means(context, first(context))}) == CLIENTS - 1


def test_whose_keys_were_erased_begins_anew(context: Context) -> None:
    before = first(context)
    with context.database.run_tx("test") as session:
        digests = [row.blob_sha256 for row in means(context, before)[:2]]
        session.execute(sa.delete(BlobKey).where(BlobKey.sha256.in_(digests)))
    assert [row.weight for row in means(context, second(context, before))] == [1.0, 1.0, 1.5, 1.5, 1.0]


def test_the_sweep_deletes_what_a_later_round_has_replaced_and_everything_of_a_run_that_is_over(
    context: Context,
) -> None:
    before = first(context)
    after = second(context, before)
    old, new = means(context, before), means(context, after)
    sweep._forget_means(context)
    assert (means(context, before), len(means(context, after))) == ([], CLIENTS)
    for row in old:
        with pytest.raises(BlobGone):
            context.blobs.of(HOME).open(row.blob_sha256)
    end_run(context, after)
    sweep._forget_means(context)
    assert len(means(context, after)) == CLIENTS  # its last round is still under way
    over(context, after)
    sweep._forget_means(context)
    assert means(context, after) == []
    with pytest.raises(BlobGone):
        context.blobs.of(HOME).open(new[0].blob_sha256)


def end_run(context: Context, round_id: UUID) -> None:
    with context.database.run_tx("test") as session:
        session.execute(
            sa.update(Run)
            .where(Run.id == run_of(context.database, round_id).id)
            .values(state=RunState.ABORTED, finished_at=now())
        )


def test_a_plan_without_a_memory_keeps_nothing(context: Context) -> None:
    round_id = aggregated(context, [trained(1.0)] * CLIENTS, robust(mixing="nearest_neighbours"))
    assert round_of(context.database, round_id).candidate_sha256 is not None
    assert means(context, round_id) == []
