"""Evidence of `central` rounds: sealed, of one length, for the holder of the master key, and gone in time."""

from __future__ import annotations

import json
from datetime import timedelta
from pathlib import Path
from typing import Any
from uuid import UUID

import pytest
import sqlalchemy as sa
import torch
from torch import Tensor

from app import __main__ as command
from app.core.crypto import SealBroken, Vault
from app.core.db import Database
from app.core.errors import NotFound
from app.core.settings import Settings
from app.jobs import leases
from app.jobs.models import Job, JobState
from app.jobs.queue import enqueue
from app.rounds import sealed_evidence
from app.rounds.models import Evidence, Round, SealedEvidence, Standing
from app.rounds.queries import cohort_of
from tests.builders import HOME, tiny_manifest
from tests.central import EVERYONE, first_round, send_and_seal, start_central_run
from tests.worker_bench import LEASE_S, build_sealed, context_for, trained, work
from workers.context import Context
from workers.handlers import aggregate, sweep
from workers.tensors import write_tensors

TRIMS = {"aggregation": {"rule": "trimmed_mean", "faulty": 1}}


@pytest.fixture
def context(database: Database, tmp_path: Path) -> Context:
    return context_for(database, tmp_path)


def aggregated(context: Context, updates: list[dict[str, Tensor]], **plan: Any) -> UUID:
    """A `central` round of these updates of its cohort's first clients, through the real job."""
    start, _size = write_tensors(context.blobs.of(HOME), trained(0.25))
    with context.database.run_tx("test") as session:
        run = start_central_run(session, context.settings, start_adapter_sha256=start, **plan)
        row = first_round(session, run, cohort=range(6))
        send_and_seal(session, context.blobs, row, updates)
        round_id = row.id
    work(context, aggregate.run, "aggregate", round_id)
    return round_id


def length(context: Context, round_id: UUID) -> int:
    with context.database.run_tx("test") as session:
        return len(session.get_one(SealedEvidence, round_id).sealed)


@pytest.mark.parametrize("plan", [{}, EVERYONE, EVERYONE | TRIMS], ids=["drawn", "everyone", "trimmed"])
def test_the_operator_finds_each_updates_norm_and_whether_it_was_finite(
    context: Context, plan: dict[str, Any]
) -> None:
    round_id = aggregated(context, [trained(3.0), trained(torch.nan), trained(0.0)], **plan)
    size = sum(part.numel() for part in trained(0.0).values())
    with context.database.run_tx("test") as session:
        found = sealed_evidence.unsealed(session, context.vault, round_id)
        assert [client_id for client_id, _norm in found] == sorted(cohort_of(session, round_id))[:3]
        assert [norm for _client_id, norm in found] == [pytest.approx(3.0 * size**0.5), None, 0.0]
        assert not session.scalars(sa.select(Evidence)).all()
        assert not session.scalars(sa.select(Standing)).all()


def test_a_row_is_as_long_whoever_sent(context: Context) -> None:
    lengths = {length(context, aggregated(context, [trained(1.0)] * count)) for count in (0, 1, 4)}
    assert len(lengths) == 1


def test_another_key_or_round_opens_nothing(context: Context) -> None:
    first, second = (aggregated(context, [trained(1.0)]) for _round in range(2))
    with context.database.run_tx("test") as session:
        with pytest.raises(SealBroken):
            sealed_evidence.unsealed(session, Vault(bytes(32)), first)
        moved = session.get_one(SealedEvidence, second).sealed
        session.execute(
            sa.update(SealedEvidence).where(SealedEvidence.round_id == first).values(sealed=moved)
        )
        session.expire_all()
        with pytest.raises(SealBroken):
            sealed_evidence.unsealed(session, context.vault, first)


def swept(context: Context, *, key: str) -> None:
    with context.database.run_tx("test") as session:
        enqueue(session, "sweep", key=key, payload={})
        job_id = session.scalars(
            sa.select(Job.id).where(Job.kind == "sweep", Job.state == JobState.QUEUED)
        ).one()
    claim = leases.claim(context.database, job_id, ceiling_s=LEASE_S)
    assert claim is not None
    sweep.run(context, claim)
    with context.database.run_tx("test") as session:
        leases.finish(session, claim)


def aged(context: Context, age: timedelta) -> None:
    with context.database.run_tx("test") as session:
        for table in (Evidence, SealedEvidence):
            session.execute(sa.update(table).values(at=sa.func.now() - age))


def kept(context: Context) -> tuple[int, int]:
    with context.database.run_tx("test") as session:
        return tuple(  # type: ignore[return-value]  # two of them
            session.scalar(sa.select(sa.func.count()).select_from(table))
            for table in (Evidence, SealedEvidence)
        )


def test_all_evidence_is_deleted_after_its_time_and_not_before(database: Database, tmp_path: Path) -> None:
    usual = context_for(database, tmp_path)
    context = Context(
        database=usual.database,
        blobs=usual.blobs,
        keys=usual.keys,
        settings=usual.settings.model_copy(update={"evidence_days": 2.0}),
        vault=usual.vault,
    )
    sealed = aggregated(context, [trained(1.0)])
    wary = tiny_manifest(aggregation={"faulty": 1})  # nobody moves on the ladder where nobody may be hostile
    plain = build_sealed(context, [trained(1.0), trained(1.0), trained(torch.nan)], manifest=wary)
    work(context, aggregate.run, "aggregate", plain)
    assert kept(context) == (3, 1)
    aged(context, timedelta(days=1, hours=23))
    swept(context, key="young")
    assert kept(context) == (3, 1)
    aged(context, timedelta(days=2, minutes=1))
    swept(context, key="old")
    assert kept(context) == (0, 0)
    with context.database.run_tx("test") as session:
        assert session.scalars(sa.select(Standing.round_id)).all() == [plain]
        assert session.get(Round, sealed) is not None
        with pytest.raises(NotFound):
            sealed_evidence.unsealed(session, context.vault, sealed)


def test_the_command_prints_it_for_the_holder_of_the_master_key(
    context: Context, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    round_id = aggregated(context, [trained(torch.inf), trained(0.0)])
    monkeypatch.setattr(Settings, "load", lambda: context.settings)
    monkeypatch.setattr("sys.argv", ["app", "evidence", str(round_id)])
    command.main()
    lines = [json.loads(line) for line in capsys.readouterr().out.splitlines()]
    assert [(line["finite"], line["norm"]) for line in lines] == [(False, None), (True, 0.0)]
    for word in (str(UUID(int=0)), "no-round"):
        monkeypatch.setattr("sys.argv", ["app", "evidence", word])
        with pytest.raises(SystemExit) as ended:
            command.main()
        assert str(ended.value.code).startswith("no evidence: ")
