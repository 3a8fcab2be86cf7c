"""The aggregate of a sealed round: the start adapter plus the mean of its updates, or their noised sum.

Updates are taken one at a time in the order of client ids and summed in float64, so that the same files
give the same bytes. An update is looked at only to tell whether it is finite, and to bound its norm.

Under trust `central` the order is: spend, for every client of the run and committed; only then draw the noise
(workers/central.py). From the spend on nothing leads back to a void, and no update is rejected: what is not
finite counts as zero, what is too long is clipped, and neither is told to anybody.
"""

from __future__ import annotations

import platform
from dataclasses import dataclass
from uuid import UUID

import sqlalchemy as sa
import torch
from sqlalchemy.orm import Session

from app.budget import violations
from app.budget.violations import ViolationKind
from app.core.i18n import _
from app.jobs import leases
from app.jobs.leases import Claim
from app.rounds import lifecycle, noise_secrets
from app.rounds.models import Round
from app.rounds.queries import get_round, lock_round
from app.rounds.states import RoundState
from app.runs.manifest import Manifest
from app.runs.models import Run
from app.runs.queries import client_ids_of, lock_run
from app.runs.reserving import spend_for_all
from app.runs.service import after_abort
from app.updates.models import Update, UpdateState
from engines.aggregation.checks import clip_update, is_finite
from engines.aggregation.mean import StreamingMean
from workers.central import NoisedRound, noised_step
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
    organisation_id: UUID
    number: int
    manifest: Manifest
    min_updates: int
    adapter_sha256: str
    updates: tuple[tuple[UUID, str], ...]
    """(client id, blob), in the order of client ids."""
    noised: NoisedRound | None
    """Where the server adds the noise: with what."""


@dataclass(frozen=True, slots=True)
class Outcome:
    """What was computed: an adapter, unless too few updates were fit."""

    candidate_sha256: str | None
    rejected: tuple[UUID, ...] = ()
    """Clients whose update is not finite."""
    too_long: tuple[UUID, ...] = ()
    """Clients whose update was longer than the declared clip, and was clipped."""
    next_clip_norm: float | None = None


def run(context: Context, claim: Claim) -> None:
    """Aggregate one round; a round that is past it is left alone."""
    reach("aggregate.before_tx1")
    sealed = _begin(context, claim, UUID(claim.payload["round_id"]))
    if sealed is None:
        return
    reach("aggregate.after_tx1")
    outcome = _compute(context, sealed) if sealed.noised is None else _noise(context, sealed, sealed.noised)
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
        run = session.get_one(Run, row.run_id)
        updates = session.execute(
            sa.select(Update.client_id, Update.blob_sha256)
            .where(Update.round_id == round_id, Update.state == UpdateState.RECEIVED)
            .order_by(Update.client_id)
        )
        return Sealed(
            round_id=round_id,
            run_id=row.run_id,
            organisation_id=row.organisation_id,
            number=row.number,
            manifest=Manifest.model_validate(run.manifest),
            min_updates=row.min_updates,
            adapter_sha256=row.adapter_sha256,
            updates=tuple((client_id, str(digest)) for client_id, digest in updates),
            noised=_spend(context, session, run, row),
        )


def _spend(context: Context, session: Session, run: Run, row: Round) -> NoisedRound | None:
    """Charge every client of a `central` run for the round, and read what its noise is drawn from."""
    if row.clip_norm is None:
        return None
    spend_for_all(session, run, row, actor=ACTOR)
    return NoisedRound(
        round_id=row.id,
        clip_norm=row.clip_norm,
        clients=len(client_ids_of(session, run.id)),
        secret=noise_secrets.unseal(session, context.vault, row.id),
    )


def _noise(context: Context, sealed: Sealed, noised: NoisedRound) -> Outcome:
    step = noised_step(context.blobs, sealed.manifest, noised, sealed.updates)
    reach("aggregate.after_noise")
    start = read_tensors(context.blobs, sealed.adapter_sha256, trained_shapes(sealed.manifest))
    adapter = {name: start[name] + step.update[name] for name in step.update}
    digest, _size_bytes = write_tensors(context.blobs, adapter)
    reach("aggregate.after_blob")
    return Outcome(digest, next_clip_norm=step.next_clip_norm)


def _compute(context: Context, sealed: Sealed) -> Outcome:
    shapes = trained_shapes(sealed.manifest)
    clip_norm = sealed.manifest.aggregation.clip_norm
    mean, rejected, too_long = StreamingMean(shapes), [], []
    for client_id, digest in sealed.updates:
        update = read_tensors(context.blobs, digest, shapes)
        if not is_finite(update):
            rejected.append(client_id)
            continue
        if clip_norm is not None:
            update, norm = clip_update(update, clip_norm)
            if norm > clip_norm:
                too_long.append(client_id)
        mean.add(update, weight=1.0)
    if mean.updates < sealed.min_updates:
        return Outcome(None, tuple(rejected), tuple(too_long))
    start = read_tensors(context.blobs, sealed.adapter_sha256, shapes)
    reach("aggregate.after_compute")
    step = mean.result()
    digest, _size_bytes = write_tensors(context.blobs, {name: start[name] + step[name] for name in shapes})
    reach("aggregate.after_blob")
    return Outcome(digest, tuple(rejected), tuple(too_long))


def _record(session: Session, sealed: Sealed, outcome: Outcome) -> None:
    if get_round(session, sealed.round_id).state is not RoundState.AGGREGATING:
        return  # aborted by hand meanwhile
    if outcome.rejected:
        session.execute(
            sa.update(Update)
            .where(Update.round_id == sealed.round_id, Update.client_id.in_(outcome.rejected))
            .values(state=UpdateState.REJECTED, reject_code=NON_FINITE)
        )
    for client_id in outcome.too_long:
        violations.record(
            session,
            ViolationKind.BOUND_EXCEEDED,
            organisation_id=sealed.organisation_id,
            run_id=sealed.run_id,
            client_id=client_id,
            detail={"round": sealed.number, "clip_norm": sealed.manifest.aggregation.clip_norm},
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
        next_clip_norm=outcome.next_clip_norm,
    )
