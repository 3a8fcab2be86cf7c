"""What workers do to a round, on real files and true commits."""

from __future__ import annotations

import os
import time
from datetime import timedelta
from pathlib import Path
from typing import Any
from uuid import UUID

import pytest
import sqlalchemy as sa
import torch
from safetensors.torch import load, save_file

from app.core.blobs import LocalStore
from app.core.db import Database
from app.core.ids import new_id
from app.http.models import StoredAnswer
from app.jobs import leases
from app.jobs.models import Job, JobState
from app.releases.models import Release
from app.rounds import lifecycle
from app.rounds.models import Round
from app.rounds.states import RoundState
from app.runs.manifest import Manifest
from app.runs.models import Run
from app.runs.states import RunState
from app.updates.models import Update, UpdateState
from tests.builders import HOME, tiny_manifest
from tests.worker_bench import (
    age_blobs,
    ask_and_claim,
    build_sealed,
    context_for,
    is_kept,
    job_of,
    round_of,
    run_of,
    trained,
    work,
)
from workers.context import Context
from workers.handlers import aggregate, deadline, publish, purge, sweep, validate
from workers.tensors import BrokenTensors, open_tensors, write_tensors


@pytest.fixture
def context(database: Database, tmp_path: Path) -> Context:
    return context_for(database, tmp_path)


def candidate(context: Context, round_id: UUID) -> dict[str, torch.Tensor]:
    row = round_of(context.database, round_id)
    assert row.candidate_sha256 is not None
    return load(context.blobs.of(HOME).read(row.candidate_sha256))


def test_the_aggregate_is_the_start_plus_the_mean_of_the_updates(context: Context) -> None:
    round_id = build_sealed(context, [trained(1.0), trained(4.0), trained(1.0)], start=10.0)
    work(context, aggregate.run, "aggregate", round_id)
    assert all(bool((tensor == 12.0).all()) for tensor in candidate(context, round_id).values())
    row = round_of(context.database, round_id)
    assert row.state is RoundState.VALIDATING
    assert (row.device or "").startswith("cpu ")
    with context.database.run_tx("test") as session:
        assert (job_of(session, "aggregate", round_id) or Job()).state is JobState.DONE
        assert (job_of(session, "validate", round_id) or Job()).state is JobState.QUEUED


def test_a_non_finite_update_is_rejected_and_the_rest_is_aggregated(context: Context) -> None:
    broken = trained(1.0)
    next(iter(broken.values())).view(-1)[-1] = torch.nan
    round_id = build_sealed(context, [trained(1.0), broken, trained(3.0)])
    work(context, aggregate.run, "aggregate", round_id)
    assert all(bool((tensor == 2.0).all()) for tensor in candidate(context, round_id).values())
    with context.database.run_tx("test") as session:
        rows = session.scalars(
            sa.select(Update).where(Update.round_id == round_id).order_by(Update.client_id)
        ).all()
    assert [(row.state, row.reject_code) for row in rows] == [
        (UpdateState.RECEIVED, None),
        (UpdateState.REJECTED, "non_finite"),
        (UpdateState.RECEIVED, None),
    ]


def test_a_quorum_that_is_lost_to_rejection_aborts_the_round_and_pauses_the_run(context: Context) -> None:
    round_id = build_sealed(context, [trained(1.0), trained(torch.inf)])
    work(context, aggregate.run, "aggregate", round_id)
    row, run = round_of(context.database, round_id), run_of(context.database, round_id)
    assert (row.state, row.abort_code) == (RoundState.ABORTED, "quorum_lost")
    assert (run.state, run.reason_code) == (RunState.PAUSED, "quorum_lost")


def test_a_declared_clip_bounds_each_update_before_the_mean(context: Context) -> None:
    manifest = tiny_manifest(aggregation={"clip_norm": 2.0})
    round_id = build_sealed(context, [trained(100.0), trained(0.0)], manifest=manifest)
    work(context, aggregate.run, "aggregate", round_id)
    flat = torch.cat([tensor.reshape(-1) for tensor in candidate(context, round_id).values()])
    assert float(flat.double().norm()) == pytest.approx(1.0, rel=1e-5)
    work(context, validate.run, "validate", round_id)
    assert round_of(context.database, round_id).state is RoundState.VALIDATING


def test_the_same_updates_give_the_same_digest_and_the_order_is_that_of_client_ids(context: Context) -> None:
    generator = torch.Generator().manual_seed(5)
    updates = [
        {name: torch.randn(tensor.shape, generator=generator) for name, tensor in trained(0.0).items()}
        for _client in range(4)
    ]
    digests = set()
    for _time in range(2):
        round_id = build_sealed(context, updates, start=0.5)
        work(context, aggregate.run, "aggregate", round_id)
        digests.add(round_of(context.database, round_id).candidate_sha256)
    assert len(digests) == 1


@pytest.mark.parametrize(
    "point", ["before_tx1", "after_tx1", "after_compute", "after_blob", "before_tx2", "after_tx2"]
)
def test_an_aggregation_that_dies_anywhere_and_is_run_again_ends_the_same(
    context: Context, point: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    class Died(BaseException):
        """Stands for kill -9: nothing after this point runs."""

    def die(reached: str) -> None:
        if reached == f"aggregate.{point}":
            raise Died

    undisturbed = build_sealed(context, [trained(1.0), trained(2.0)])
    work(context, aggregate.run, "aggregate", undisturbed)
    round_id = build_sealed(context, [trained(1.0), trained(2.0)])
    monkeypatch.setattr(aggregate, "reach", die)
    with pytest.raises(Died):
        work(context, aggregate.run, "aggregate", round_id)
    monkeypatch.undo()
    work(context, aggregate.run, "aggregate", round_id)
    row = round_of(context.database, round_id)
    assert row.state is RoundState.VALIDATING
    assert row.candidate_sha256 == round_of(context.database, undisturbed).candidate_sha256
    with context.database.run_tx("test") as session:
        assert session.scalar(sa.select(sa.func.count()).where(Job.kind == "validate")) == 2


def test_a_zombie_that_finishes_late_changes_nothing(
    context: Context, monkeypatch: pytest.MonkeyPatch
) -> None:
    round_id = build_sealed(context, [trained(1.0), trained(2.0)])

    def overtaken(point: str) -> None:
        if point == "aggregate.before_tx2":
            monkeypatch.undo()
            work(context, aggregate.run, "aggregate", round_id)

    monkeypatch.setattr(aggregate, "reach", overtaken)
    with pytest.raises(leases.LeaseLost):
        work(context, aggregate.run, "aggregate", round_id)
    assert round_of(context.database, round_id).state is RoundState.VALIDATING


def test_a_round_that_is_aborted_while_it_is_computed_stays_aborted(
    context: Context, monkeypatch: pytest.MonkeyPatch
) -> None:
    round_id = build_sealed(context, [trained(1.0), trained(2.0)])

    def abort(point: str) -> None:
        if point == "aggregate.before_tx2":
            with context.database.run_tx("test") as session:
                lifecycle.abort(session, round_id, code="by_hand", reason="why", actor="test")

    monkeypatch.setattr(aggregate, "reach", abort)
    work(context, aggregate.run, "aggregate", round_id)
    row = round_of(context.database, round_id)
    assert (row.state, row.candidate_sha256) == (RoundState.ABORTED, None)


@pytest.mark.parametrize("fault", ["non_finite", "huge", "keys", "shape", "no_safetensors"])
def test_an_unfit_candidate_is_not_published(context: Context, fault: str) -> None:
    tensors = trained(1.0)
    name = next(iter(tensors))
    if fault == "non_finite":
        tensors[name].view(-1)[0] = torch.inf
    elif fault == "huge":
        tensors[name].view(-1)[0] = 1e9
    elif fault == "keys":
        tensors["odd"] = tensors.pop(name)
    elif fault == "shape":
        tensors[name] = tensors[name].reshape(-1)
    digest, _size = write_tensors(context.blobs.of(HOME), tensors)
    if fault == "no_safetensors":
        digest = context.blobs.of(HOME).put(b"something else")
    round_id = build_sealed(context, [trained(1.0), trained(2.0)], state=RoundState.VALIDATING)
    with context.database.run_tx("test") as session:
        session.execute(sa.update(Round).where(Round.id == round_id).values(candidate_sha256=digest))
    work(context, validate.run, "validate", round_id)
    row = round_of(context.database, round_id)
    assert (row.state, row.abort_code) == (RoundState.ABORTED, "validation_failed")
    assert run_of(context.database, round_id).state is RunState.PAUSED


def test_a_candidate_further_from_the_start_than_the_clip_is_unfit(context: Context) -> None:
    manifest = Manifest.model_validate(tiny_manifest(aggregation={"clip_norm": 1.0}))
    start, _size = write_tensors(context.blobs.of(HOME), trained(0.0))
    near, _size = write_tensors(context.blobs.of(HOME), trained(0.2))  # 16 values of .2: norm .8
    far, _size = write_tensors(context.blobs.of(HOME), trained(0.3))  # norm 1.2
    assert validate.is_fit(context.blobs.of(HOME), near, manifest=manifest, start_sha256=start)
    assert not validate.is_fit(context.blobs.of(HOME), far, manifest=manifest, start_sha256=start)


def _overdue(context: Context, round_id: UUID) -> None:
    with context.database.run_tx("test") as session:
        session.execute(
            sa.update(Round).where(Round.id == round_id).values(deadline=sa.func.now() - timedelta(seconds=1))
        )


def test_the_deadline_seals_a_round_with_a_quorum(context: Context) -> None:
    round_id = build_sealed(context, [trained(1.0), trained(1.0)], state=RoundState.OPEN)
    _overdue(context, round_id)
    work(context, deadline.run, "deadline", round_id)
    assert round_of(context.database, round_id).state is RoundState.SEALED


def test_the_deadline_aborts_a_round_without_a_quorum_and_pauses_its_run(context: Context) -> None:
    round_id = build_sealed(context, [trained(1.0)], min_updates=2, state=RoundState.OPEN)
    _overdue(context, round_id)
    work(context, deadline.run, "deadline", round_id)
    row, run = round_of(context.database, round_id), run_of(context.database, round_id)
    assert (row.state, row.abort_code) == (RoundState.ABORTED, "quorum_missing")
    assert (run.state, run.reason_code) == (RunState.PAUSED, "quorum_missing")


def test_a_deadline_that_has_not_come_closes_nothing(context: Context) -> None:
    round_id = build_sealed(context, [trained(1.0), trained(1.0)], state=RoundState.OPEN)
    work(context, deadline.run, "deadline", round_id)
    assert round_of(context.database, round_id).state is RoundState.OPEN


def local(context: Context) -> LocalStore:
    assert isinstance(context.blobs.store, LocalStore)
    return context.blobs.store


def _finish(context: Context, round_id: UUID) -> list[str]:
    with context.database.run_tx("test") as session:
        lifecycle.abort(session, round_id, code="x", reason="x", actor="test")
        return [
            str(digest)
            for digest in session.scalars(sa.select(Update.blob_sha256).where(Update.round_id == round_id))
        ]


def test_the_purge_deletes_the_updates_of_a_finished_round(context: Context) -> None:
    round_id = build_sealed(context, [trained(1.0), trained(2.0)])
    digests = _finish(context, round_id)
    age_blobs(context)
    work(context, purge.run, "purge", round_id)
    assert not any(is_kept(context, digest) for digest in digests)
    assert is_kept(context, round_of(context.database, round_id).adapter_sha256)


def test_the_purge_deletes_bytes_that_arrived_whole_and_too_late_for_the_round(context: Context) -> None:
    round_id = build_sealed(context, [trained(1.0), trained(2.0)])
    with context.database.run_tx("test") as session:
        update = session.scalars(sa.select(Update).where(Update.round_id == round_id).limit(1)).one()
        update.state, update.blob_sha256, late = UpdateState.RECEIVING, None, update.declared_sha256
    assert is_kept(context, late)
    _finish(context, round_id)
    age_blobs(context)
    work(context, purge.run, "purge", round_id)
    assert not is_kept(context, late)


def test_the_purge_spares_what_another_round_or_an_adapter_needs(context: Context) -> None:
    round_id = build_sealed(context, [trained(1.0), trained(0.0)], start=0.0)
    build_sealed(context, [trained(1.0), trained(3.0)])
    digests = _finish(context, round_id)
    age_blobs(context)
    work(context, purge.run, "purge", round_id)
    assert all(is_kept(context, digest) for digest in digests)


def test_the_purge_waits_while_a_file_is_young(context: Context) -> None:
    round_id = build_sealed(context, [trained(1.0), trained(2.0)])
    digests = _finish(context, round_id)
    with pytest.raises(purge.TooYoung):
        work(context, purge.run, "purge", round_id)
    assert all(is_kept(context, digest) for digest in digests)


def test_the_purge_of_a_round_that_is_not_over_deletes_nothing(context: Context) -> None:
    round_id = build_sealed(context, [trained(1.0), trained(2.0)])
    age_blobs(context)
    work(context, purge.run, "purge", round_id)
    assert len(list(local(context).folder.glob("??/*"))) == 3


def test_the_sweep_removes_stale_temporary_files_and_no_others(context: Context) -> None:
    stale, fresh = local(context).aside / "stale", local(context).aside / "fresh"
    stale.write_bytes(b"x")
    fresh.write_bytes(b"x")
    os.utime(stale, (time.time() - 7200, time.time() - 7200))
    assert context.blobs.tidy() == 1
    assert fresh.exists()


def test_the_sweep_ends_a_round_whose_job_has_been_dead_for_the_grace(context: Context) -> None:
    round_id = build_sealed(context, [trained(1.0), trained(2.0)])
    ask_and_claim(context.database, "aggregate", round_id)
    for age, state in ((timedelta(minutes=59), RoundState.SEALED), (timedelta(hours=2), RoundState.ABORTED)):
        with context.database.run_tx("test") as session:
            session.execute(sa.update(Job).values(state=JobState.DEAD, finished_at=sa.func.now() - age))
        with context.database.run_tx("test") as session:
            dead = sweep._dead(session)
        for kind, payload in dead:
            with context.database.run_tx("test") as session:
                sweep._end(session, kind, payload)
        assert round_of(context.database, round_id).state is state
    assert run_of(context.database, round_id).reason_code == "job_failed"


def test_the_sweep_forgets_stored_answers_after_a_day_and_not_before(context: Context) -> None:
    with context.database.run_tx("test") as session:
        for key, hours in (("old", 25), ("new", 23)):
            created_at = sa.func.now() - timedelta(hours=hours)
            session.add(
                StoredAnswer(
                    principal_id=new_id(),
                    route="POST /v1/api-keys",
                    key=key,
                    body_sha256="0" * 64,
                    status=201,
                    body=b"sealed",
                    created_at=created_at,
                )
            )
        session.flush()
        sweep._forget(session)
        assert session.scalars(sa.select(StoredAnswer.key)).all() == ["new"]


def _sweep_dead(context: Context) -> None:
    """Let every job be dead for longer than the grace, and end what waits for it."""
    with context.database.run_tx("test") as session:
        then = sa.func.now() - 2 * sweep.GRACE
        session.execute(sa.update(Job).values(state=JobState.DEAD, finished_at=then))
    with context.database.run_tx("test") as session:
        dead = sweep._dead(session)
    for kind, payload in dead:
        with context.database.run_tx("test") as session:
            sweep._end(session, kind, payload)


def test_an_open_round_whose_deadline_nobody_could_close_is_ended(context: Context) -> None:
    round_id = build_sealed(context, [trained(1.0)], state=RoundState.OPEN)
    ask_and_claim(context.database, "deadline", round_id)
    _sweep_dead(context)
    row, run = round_of(context.database, round_id), run_of(context.database, round_id)
    assert (row.state, row.abort_code) == (RoundState.ABORTED, "job_failed")
    assert (run.state, run.reason_code) == (RunState.PAUSED, "job_failed")


def test_a_dead_deadline_does_not_end_a_round_that_was_sealed_since(context: Context) -> None:
    round_id = build_sealed(context, [trained(1.0), trained(2.0)], state=RoundState.SEALED)
    ask_and_claim(context.database, "deadline", round_id)
    _sweep_dead(context)
    assert round_of(context.database, round_id).state is RoundState.SEALED


def test_tensors_are_read_back_as_written_by_us_and_by_the_library(context: Context, tmp_path: Path) -> None:
    tensors = {"b": torch.arange(6.0).reshape(2, 3), "a": torch.ones(1), "c": torch.zeros(2, 0)}
    shapes = {name: tuple(tensor.shape) for name, tensor in tensors.items()}
    ours, size_bytes = write_tensors(context.blobs.of(HOME), tensors)
    with context.blobs.of(HOME).open(ours) as blob:
        assert blob.size_bytes == size_bytes
    save_file(tensors, tmp_path / "theirs")
    theirs = context.blobs.of(HOME).put((tmp_path / "theirs").read_bytes())
    for digest in (ours, theirs):
        with open_tensors(context.blobs.of(HOME), digest) as file:
            assert list(file.shapes.items()) == sorted(shapes.items())
            assert all(torch.equal(file.tensor(name), tensors[name]) for name in tensors)


def test_tensors_of_another_dtype_are_refused(context: Context, tmp_path: Path) -> None:
    save_file({"a": torch.ones(2, dtype=torch.float64)}, tmp_path / "f")
    digest = context.blobs.of(HOME).put((tmp_path / "f").read_bytes())
    with (
        open_tensors(context.blobs.of(HOME), digest) as file,
        pytest.raises(BrokenTensors, match="a is not float32"),
    ):
        file.tensor("a")


def _to_publication(context: Context, **changes: Any) -> UUID:
    """A run as it is after its start, with a round whose candidate was found fit."""
    manifest = tiny_manifest(**changes)
    round_id = build_sealed(context, [trained(1.0), trained(3.0)], manifest=manifest)
    with context.database.run_tx("test") as session:
        price = {"noise_multiplier": 2.0, "epsilon": 4.0, "delta": 1e-5, "epsilon_by_round": [3.0, 4.0]}
        session.execute(
            sa.update(Run).values(manifest_sha256="a" * 64, price=price | {"accountant": "PLD", "rdp": {}})
        )
    work(context, aggregate.run, "aggregate", round_id)
    work(context, validate.run, "validate", round_id)
    return round_id


def test_a_published_round_is_a_release_and_the_next_round_starts_from_it(context: Context) -> None:
    round_id = _to_publication(context)
    work(context, publish.run, "publish", round_id)
    row = round_of(context.database, round_id)
    with context.database.run_tx("test") as session:
        release = session.scalars(sa.select(Release)).one()
        following = session.scalars(sa.select(Round).where(Round.number == 2)).one()
    whole = load(context.blobs.of(HOME).read(release.adapter_sha256))
    assert row.state is RoundState.PUBLISHED
    assert sorted(whole) == [tensor["name"] for tensor in tiny_manifest()["tensors"]]
    assert release.adapter_config["r"] == 2
    assert release.certificate["release"]["adapter_sha256"] == release.adapter_sha256
    assert (following.state, following.adapter_sha256) == (RoundState.OPEN, row.candidate_sha256)


def test_after_the_last_round_the_run_is_finished(context: Context) -> None:
    round_id = _to_publication(context, rounds=1)
    work(context, publish.run, "publish", round_id)
    assert run_of(context.database, round_id).state is RunState.FINISHED


@pytest.mark.parametrize("point", ["before_read", "after_blob", "after_tx"])
def test_a_publication_that_dies_anywhere_and_is_run_again_is_one_release(
    context: Context, point: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    round_id = _to_publication(context)

    def die(reached: str) -> None:
        if reached == f"publish.{point}":
            raise KeyboardInterrupt

    monkeypatch.setattr(publish, "reach", die)
    with pytest.raises(KeyboardInterrupt):
        work(context, publish.run, "publish", round_id)
    monkeypatch.undo()
    work(context, publish.run, "publish", round_id)
    with context.database.run_tx("test") as session:
        assert session.scalar(sa.select(sa.func.count()).select_from(Release)) == 1
        assert session.scalar(sa.select(sa.func.count()).select_from(Round)) == 2
