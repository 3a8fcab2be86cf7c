"""Running handlers directly: a context on a real database, and rounds with ready-made update files."""

from __future__ import annotations

from datetime import timedelta
from pathlib import Path
from typing import Any
from uuid import UUID

import sqlalchemy as sa
import torch
from sqlalchemy.orm import Session
from torch import Tensor

from app.core.crypto import Vault
from app.core.db import Database
from app.custody.errors import BlobGone
from app.custody.models import BlobKey
from app.identity.keys import ensure_signing_keys
from app.jobs import leases
from app.jobs.models import Job, JobState
from app.jobs.queue import enqueue
from app.rounds.models import Round
from app.rounds.states import RoundState
from app.runs.models import Run
from tests.builders import HOME, build_round, build_run, build_update, clients_of, tiny_manifest
from tests.database import settings_for
from workers.context import Context, Handler
from workers.tensors import write_tensors

LEASE_S = 3.0


def context_for(database: Database, folder: Path) -> Context:
    """A worker's context on this database, with blobs of its own."""
    url = database.engine.url.render_as_string(hide_password=False)
    settings = settings_for(url, folder / "blobs", lease_s=LEASE_S)
    with database.run_tx("test") as session:
        ensure_signing_keys(session, Vault(settings.master_key_bytes))
    return Context.open(settings, database)


def is_kept(context: Context, digest: str) -> bool:
    """Whether both the key and the object of a blob are there."""
    try:
        context.blobs.of(HOME).open(digest).close()
    except BlobGone:
        return False
    return True


def age_blobs(context: Context, *digests: str) -> None:
    """Let these blobs, or all, have come an hour ago."""
    with context.database.run_tx("test") as session:
        aged = sa.update(BlobKey).values(put_at=sa.func.now() - timedelta(hours=1))
        session.execute(aged.where(BlobKey.sha256.in_(digests)) if digests else aged)


def trained(value: float, manifest: dict[str, Any] | None = None) -> dict[str, Tensor]:
    """Tensors of the tiny manifest's trained shapes, all of one value."""
    entries = (manifest or tiny_manifest())["tensors"]
    return {entry["name"]: torch.full(entry["shape"], value) for entry in entries if entry["trained"]}


def build_sealed(
    context: Context,
    updates: list[dict[str, Tensor]],
    *,
    start: float = 0.0,
    min_updates: int = 2,
    state: RoundState = RoundState.SEALED,
    manifest: dict[str, Any] | None = None,
) -> UUID:
    """A round whose clients, in the order of their ids, sent these updates; returns its id."""
    start_sha256, _size = write_tensors(context.blobs.of(HOME), trained(start))
    with context.database.run_tx("test") as session:
        run = build_run(session, clients=len(updates), manifest=manifest or tiny_manifest())
        row = build_round(
            session, RoundState.OPEN, run=run, min_updates=min_updates, adapter_sha256=start_sha256
        )
        for client_id, tensors in zip(clients_of(session, run), updates, strict=True):
            digest, size_bytes = write_tensors(context.blobs.of(HOME), tensors)
            build_update(session, row, client_id, blob_sha256=digest, size_bytes=size_bytes)
        for step in (RoundState.SEALED, RoundState.AGGREGATING, RoundState.VALIDATING):
            if row.state is not state:
                session.execute(sa.update(Round).where(Round.id == row.id).values(state=step))
        return row.id


def ask_and_claim(database: Database, kind: str, round_id: UUID) -> leases.Claim:
    """Queue a round's job if nobody has, and claim it, whatever lease there was."""
    with database.run_tx("test") as session:
        enqueue(session, kind, key=str(round_id), payload={"round_id": str(round_id)})
        session.execute(
            sa.update(Job)
            .where(Job.kind == kind, Job.key == str(round_id))
            .values(lease_until=None, run_at=sa.func.now(), state=JobState.QUEUED)
        )
        job_id = session.scalar(sa.select(Job.id).where(Job.kind == kind, Job.key == str(round_id)))
    assert job_id is not None
    claim = leases.claim(database, job_id, ceiling_s=LEASE_S)
    assert claim is not None
    return claim


def work(context: Context, handler: Handler, kind: str, round_id: UUID) -> None:
    """Do a round's job here and now; what it raises comes out."""
    handler(context, ask_and_claim(context.database, kind, round_id))


def round_of(database: Database, round_id: UUID) -> Round:
    """A round as it is committed."""
    with database.run_tx("test") as session:
        return session.get_one(Round, round_id)


def run_of(database: Database, round_id: UUID) -> Run:
    """The run of a round as it is committed."""
    with database.run_tx("test") as session:
        return session.get_one(Run, session.get_one(Round, round_id).run_id)


def job_of(session: Session, kind: str, round_id: UUID) -> Job | None:
    """A round's job of a kind."""
    return session.scalar(sa.select(Job).where(Job.kind == kind, Job.key == str(round_id)))
