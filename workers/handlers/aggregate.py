"""The aggregate of a sealed round: the start adapter plus the mean of its updates.

Updates are taken one at a time in the order of client ids and summed in float64, so that the same files
give the same bytes. An update is looked at only to tell whether it is finite, and to bound its norm.
"""

from __future__ import annotations

import platform
from dataclasses import dataclass
from uuid import UUID

import sqlalchemy as sa
import torch
from sqlalchemy.orm import Session

from app.core.i18n import _
from app.jobs import leases
from app.jobs.leases import Claim
from app.rounds import lifecycle
from app.rounds.queries import get_round, lock_round
from app.rounds.states import RoundState
from app.runs.manifest import Manifest
from app.runs.models import Run
from app.runs.queries import lock_run
from app.runs.service import after_abort
from app.updates.models import Update, UpdateState
from engines.aggregation.checks import clip_update, is_finite
from engines.aggregation.mean import StreamingMean
from workers.checkpoints import reach
from workers.context import ACTOR, Context
from workers.layout import trained_shapes
from workers.tensors import read_tensors, write_tensors

QUORUM_LOST = (
    "quorum_lost",
    _("Updates that were not finite were rejected, and too few are left."),
)
NON_FINITE = "non_finite"


@dataclass(frozen=True, slots=True)
class Sealed:
    """A sealed round, as it will be for ever."""

    round_id: UUID
    run_id: UUID
    manifest: Manifest
    min_updates: int
    adapter_sha256: str
    updates: tuple[tuple[UUID, str], ...]
    """(update id, blob), in the order of client ids."""


@dataclass(frozen=True, slots=True)
class Outcome:
    """What was computed: an adapter, unless too few updates were fit."""

    rejected: tuple[UUID, ...]
    candidate_sha256: str | None


def run(context: Context, claim: Claim) -> None:
    """Aggregate one round; a round that is past it is left alone."""
    reach("aggregate.before_tx1")
    sealed = _begin(context, claim, UUID(claim.payload["round_id"]))
    if sealed is None:
        return
    reach("aggregate.after_tx1")
    outcome = _compute(context, sealed)
    reach("aggregate.before_tx2")
    with context.database.run_tx("aggregate end") as session:
        leases.finish(session, claim)
        lock_run(session, sealed.run_id)  # always the run before its round
        _record(session, sealed, outcome)
    reach("aggregate.after_tx2")


def _begin(context: Context, claim: Claim, round_id: UUID) -> Sealed | None:
    with context.database.run_tx("aggregate begin") as session:
        leases.fence(session, claim)
        row = lock_round(session, round_id)
        if row.state is RoundState.SEALED:
            lifecycle.begin_aggregation(session, round_id, actor=ACTOR)
        elif row.state is not RoundState.AGGREGATING:
            leases.finish(session, claim)
            return None
        updates = session.execute(
            sa.select(Update.id, Update.blob_sha256)
            .where(Update.round_id == round_id, Update.state == UpdateState.RECEIVED)
            .order_by(Update.client_id)
        )
        return Sealed(
            round_id=round_id,
            run_id=row.run_id,
            manifest=Manifest.model_validate(session.get_one(Run, row.run_id).manifest),
            min_updates=row.min_updates,
            adapter_sha256=row.adapter_sha256,
            updates=tuple((update_id, str(digest)) for update_id, digest in updates),
        )


def _compute(context: Context, sealed: Sealed) -> Outcome:
    shapes = trained_shapes(sealed.manifest)
    clip_norm = sealed.manifest.aggregation.clip_norm
    mean, rejected = StreamingMean(shapes), []
    for update_id, digest in sealed.updates:
        update = read_tensors(context.blobs, digest, shapes)
        if not is_finite(update):
            rejected.append(update_id)
            continue
        if clip_norm is not None:
            update, _norm = clip_update(update, clip_norm)
        mean.add(update, weight=1.0)
    if mean.updates < sealed.min_updates:
        return Outcome(tuple(rejected), None)
    start = read_tensors(context.blobs, sealed.adapter_sha256, shapes)
    reach("aggregate.after_compute")
    step = mean.result()
    digest, _size_bytes = write_tensors(context.blobs, {name: start[name] + step[name] for name in shapes})
    reach("aggregate.after_blob")
    return Outcome(tuple(rejected), digest)


def _record(session: Session, sealed: Sealed, outcome: Outcome) -> None:
    if get_round(session, sealed.round_id).state is not RoundState.AGGREGATING:
        return  # aborted by hand meanwhile
    if outcome.rejected:
        session.execute(
            sa.update(Update)
            .where(Update.id.in_(outcome.rejected))
            .values(state=UpdateState.REJECTED, reject_code=NON_FINITE)
        )
    if outcome.candidate_sha256 is None:
        code, reason = QUORUM_LOST
        lifecycle.abort(session, sealed.round_id, code=code, reason=reason, actor=ACTOR)
        after_abort(session, sealed.run_id, code=code, reason=reason, actor=ACTOR)
        return
    lifecycle.record_candidate(
        session,
        sealed.round_id,
        candidate_sha256=outcome.candidate_sha256,
        device=f"cpu {platform.machine()}, torch {torch.__version__}"[:100],
        actor=ACTOR,
    )
