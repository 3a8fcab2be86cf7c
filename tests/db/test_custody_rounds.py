"""Rounds over several organisations: whose bytes an update and an adapter are, from the job's view."""

from __future__ import annotations

from pathlib import Path
from uuid import UUID

import pytest
import sqlalchemy as sa
import torch
from safetensors.torch import load

from app.core.db import Database
from app.custody import keys
from app.custody.errors import BlobGone
from app.rounds import lifecycle
from app.rounds.models import Round
from app.rounds.states import RoundState
from app.runs.models import RunClient
from tests.builders import HOME, build_client, build_organisation, build_round, build_run, build_update
from tests.worker_bench import age_blobs, context_for, round_of, trained, work
from workers.context import Context
from workers.handlers import aggregate, purge, validate
from workers.sketches import start_of
from workers.tensors import write_tensors


@pytest.fixture
def context(database: Database, tmp_path: Path) -> Context:
    return context_for(database, tmp_path)


def sealed_round(context: Context) -> tuple[UUID, dict[UUID, str]]:
    """A round of HOME's run whose two clients are of other organisations; and each one's update."""
    start, _size = write_tensors(context.blobs.of(HOME), trained(0.25))
    with context.database.run_tx("test") as session:
        run = build_run(session, clients=0)
        clients = [build_client(session, build_organisation(session)) for _ in range(2)]
        session.add_all(RunClient(run_id=run.id, client_id=client.id) for client in clients)
        session.flush()
        row = build_round(session, run=run, adapter_sha256=start)
        sent = {}
        for client in clients:  # the same bytes from both
            digest, size = write_tensors(context.blobs.of(client.organisation_id), trained(1.0))
            build_update(session, row, client.id, blob_sha256=digest, size_bytes=size)
            sent[client.organisation_id] = digest
        session.execute(sa.update(Round).where(Round.id == row.id).values(state=RoundState.SEALED))
        return row.id, sent


def test_a_round_reads_each_organisations_updates_and_keeps_its_adapter_for_the_runs_owner(
    context: Context,
) -> None:
    round_id, sent = sealed_round(context)
    work(context, aggregate.run, "aggregate", round_id)
    work(context, validate.run, "validate", round_id)
    row = round_of(context.database, round_id)
    assert row.state is RoundState.VALIDATING
    candidate = load(context.blobs.of(HOME).read(str(row.candidate_sha256)))
    assert all(torch.equal(one, 1.25 * torch.ones_like(one)) for one in candidate.values())
    for tenant, digest in sent.items():
        with pytest.raises(BlobGone):
            context.blobs.of(tenant).read(str(row.candidate_sha256))
        with pytest.raises(BlobGone):
            context.blobs.of(HOME).read(digest)
        assert context.blobs.of(tenant).read(digest)
    with context.database.run_tx("test") as session:
        lifecycle.abort(session, round_id, code="x", reason="x", actor="test")
    age_blobs(context)
    work(context, purge.run, "purge", round_id)
    for tenant, digest in sent.items():
        with pytest.raises(BlobGone):
            context.blobs.of(tenant).read(digest)
    assert context.blobs.of(HOME).read(str(row.candidate_sha256))


def test_an_update_whose_organisation_was_shredded_ends_its_round_and_no_other(context: Context) -> None:
    round_id, sent = sealed_round(context)
    other_id, _others = sealed_round(context)
    with context.database.run_tx("test") as session:
        keys.shred(session, next(iter(sent)))
    with pytest.raises(BlobGone):
        work(context, aggregate.run, "aggregate", round_id)
    work(context, aggregate.run, "aggregate", other_id)
    assert round_of(context.database, other_id).state is RoundState.VALIDATING


def test_a_run_from_another_organisations_release_starts_from_a_copy_under_its_own_key(
    context: Context,
) -> None:
    with context.database.run_tx("test") as session:
        tenant = build_organisation(session).id
    theirs, ours = context.blobs.of(tenant), context.blobs.of(HOME)
    digest, _size = write_tensors(theirs, trained(0.5))
    with pytest.raises(BlobGone):
        ours.read(digest)
    assert start_of(theirs, digest, blobs=ours) == digest
    with context.database.run_tx("test") as session:
        keys.shred(session, tenant)
    assert set(load(ours.read(digest))) == set(trained(0.5))
