"""The aggregate of a sealed round: the start adapter plus what a rule makes of its updates, or a noised sum.

Updates are read in pieces in the order of client ids and added in float64, so that the same files give the
same bytes (workers/merging.py). What is odd about an update is evidence for operators and moves its client on
the ladder (workers/standings.py); a server optimizer may make the step of it (workers/optimizing.py).

Under trust `central` the order is: spend, for every client of the run and committed; only then draw the noise
(workers/central.py). From the spend on nothing leads back to a void, and no update is rejected: what is not
finite counts as zero, what is too long is clipped, and neither is told to anybody.
"""

from __future__ import annotations

import math
import platform
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from uuid import UUID

import sqlalchemy as sa
import torch
from sqlalchemy.orm import Session
from torch import Tensor

from app.audit.record import Action, record
from app.budget import violations
from app.budget.violations import ViolationKind
from app.core.crypto import Vault
from app.custody.blobs import TenantBlobs
from app.custody.keys import BlobRef
from app.jobs import leases
from app.jobs.leases import Claim
from app.rounds import canaries, lifecycle, noise_secrets, sealed_evidence
from app.rounds.models import Round
from app.rounds.queries import get_round, lock_round, ranks_in
from app.rounds.states import RoundState
from app.runs.manifest import Manifest
from app.runs.models import Run
from app.runs.queries import client_ids_of, lock_run
from app.runs.reserving import spend_for_all
from app.runs.rounds import optimizer_state
from app.runs.service import after_abort
from app.updates import means as update_means
from app.updates.buffered import ages_of
from app.updates.models import Update, UpdateMean, UpdateState
from engines.aggregation.device import chosen
from engines.aggregation.kernels import Numbers
from engines.lora.methods import TWO_TURNS
from engines.lora.spectrum import Projection
from workers import standings
from workers.canaries import seated_in
from workers.central import NoisedRound, Step, noised_step
from workers.checkpoints import reach
from workers.context import ACTOR, Context
from workers.layout import read_state, update_shapes
from workers.means import Mean
from workers.merging import QUORUM_LOST, Began, Judged, Refusal, merged
from workers.optimizing import optimized, stepped
from workers.sketches import next_state
from workers.tensors import Shapes, write_tensors
from workers.variates import moved_variates

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
    updates: tuple[tuple[UUID, BlobRef], ...]
    """(client id, blob), in the order of client ids."""
    optimizer_state: BlobRef | None
    """The server optimizer's state so far."""
    worth: Mapping[UUID, float]
    """What clients' updates count by their standing; 1 where it is missing."""
    ages: Mapping[UUID, int]
    """In a buffered run, how many releases the adapter of each client's update is behind."""
    noised: NoisedRound | None
    """Where the server adds the noise: with what."""
    clients: int
    """Of the whole run."""
    ranks: Mapping[UUID, int]
    """LoRA ranks of clients that do not train at the run's."""
    means: Mapping[UUID, Mean]
    """What clients had sent before, where the rule remembers it."""


@dataclass(frozen=True, slots=True)
class Outcome:
    """What was computed: an adapter, or why there is none."""

    candidate_sha256: str | None
    refusal: Refusal | None = None
    judged: tuple[Judged, ...] = ()
    """Nothing under `central`: what is found about single updates there is told to nobody."""
    next_clip_norm: float | None = None
    optimizer_sha256: str | None = None
    missed: Projection | None = None
    """What of the clients' mean weight change the adapter does not hold, where that is formed."""
    means: Mapping[UUID, Mean] = field(default_factory=dict)
    """What clients have sent so far."""
    noised: Step | None = field(default=None, repr=False)
    """Under `central`: what was seen, for its seal alone, and how canaries score."""


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
        _record(context, session, sealed, outcome)
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
        updates = _received(session, round_id)
        manifest = Manifest.model_validate(run.manifest)
        return Sealed(
            round_id=round_id,
            run_id=row.run_id,
            organisation_id=row.organisation_id,
            number=row.number,
            manifest=manifest,
            min_updates=row.min_updates if manifest.buffered is None else 1,  # the others count as zero
            adapter_sha256=row.adapter_sha256,
            updates=updates,
            optimizer_state=optimizer_state(session, run),
            worth=_worths(session, manifest, [client_id for client_id, _ref in updates]),
            ages=ages_of(session, row),
            noised=_spend(context, session, run, row),
            clients=len(client_ids_of(session, run.id)),
            ranks=ranks_in(session, round_id),
            means=_means(context, session, manifest, row, [client_id for client_id, _ref in updates]),
        )


def _received(session: Session, round_id: UUID) -> tuple[tuple[UUID, BlobRef], ...]:
    rows = session.execute(
        sa.select(Update.client_id, Update.organisation_id, Update.blob_sha256)
        .where(Update.round_id == round_id, Update.state == UpdateState.RECEIVED)
        .order_by(Update.client_id)
    )
    return tuple((client_id, BlobRef(tenant, str(digest))) for client_id, tenant, digest in rows)


def _means(
    context: Context, session: Session, manifest: Manifest, row: Round, client_ids: list[UUID]
) -> Mapping[UUID, Mean]:
    if manifest.aggregation.settings.memory is None:
        return {}
    found = update_means.latest(session, row.run_id, client_ids)
    files = context.blobs.locate([update_means.ref_of(mean) for mean, _number in found], session=session)
    return {
        mean.client_id: Mean(file, mean.weight, number)
        for (mean, number), file in zip(found, files, strict=True)
    }


def _worths(session: Session, manifest: Manifest, client_ids: list[UUID]) -> Mapping[UUID, float]:
    """What updates count; with control variates whole, or a client's c_i would not be what is in c."""
    return {} if manifest.training.control_variates != "none" else standings.worths(session, client_ids)


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
        canaries=seated_in(session, context.vault, run, row.id),
    )


def _noise(context: Context, sealed: Sealed, noised: NoisedRound) -> Outcome:
    began = _began(sealed)
    step = noised_step(context.blobs, sealed.manifest, noised, sealed.updates, began=began)
    reach("aggregate.after_noise")
    shapes = update_shapes(sealed.manifest, number=sealed.number)
    flat = torch.cat([step.update[name].reshape(-1) for name in shapes]).numpy()
    change, optimizer_sha256 = optimized(
        _own(context, sealed), sealed.manifest.aggregation.server_optimizer, sealed.optimizer_state, flat
    )
    digest = _store(context, sealed, _by_name(torch.from_numpy(change), shapes))
    reach("aggregate.after_blob")
    return Outcome(digest, next_clip_norm=step.next_clip_norm, optimizer_sha256=optimizer_sha256, noised=step)


def _began(sealed: Sealed) -> Began:
    adapter = BlobRef(sealed.organisation_id, sealed.adapter_sha256)
    return Began(
        round_id=sealed.round_id,
        number=sealed.number,
        adapter=adapter,
        ranks=sealed.ranks,
        ages=sealed.ages,
        means=sealed.means,
    )


def _own(context: Context, sealed: Sealed) -> TenantBlobs:
    """The blobs of the run's owner, whose the adapters are."""
    return context.blobs.of(sealed.organisation_id)


def _compute(context: Context, sealed: Sealed) -> Outcome:
    if not sealed.updates:
        return Outcome(None, QUORUM_LOST)
    found = merged(
        context.blobs,
        sealed.manifest,
        sealed.updates,
        began=_began(sealed),
        min_updates=sealed.min_updates,
        worth=sealed.worth,
        lot=lambda client_id: context.vault.fingerprint("bucket", f"{sealed.round_id}/{client_id}"),
    )
    if found.change is None:
        return Outcome(None, found.refusal, found.judged, means=found.means)
    reach("aggregate.after_compute")
    optimizer_sha256, missed = None, found.missed
    if found.state is not None:
        digest, _size_bytes = write_tensors(_own(context, sealed), found.state)
    elif sealed.manifest.lora.method in TWO_TURNS:
        digest, missed = _sketched(context, sealed, found.change)
    else:
        change, optimizer_sha256 = stepped(
            _own(context, sealed), sealed.manifest, sealed.optimizer_state, found.change, found.judged
        )
        shapes = update_shapes(sealed.manifest, number=sealed.number)
        counted = sum(one.finite for one in found.judged)
        digest = _store(context, sealed, _by_name(torch.from_numpy(change), shapes), counted=counted)
    reach("aggregate.after_blob")
    return Outcome(
        digest, None, found.judged, optimizer_sha256=optimizer_sha256, missed=missed, means=found.means
    )


def _sketched(context: Context, sealed: Sealed, change: Numbers) -> tuple[str, Projection | None]:
    shapes = update_shapes(sealed.manifest, number=sealed.number)
    start = read_state(_own(context, sealed), sealed.adapter_sha256, sealed.manifest)
    mean = _by_name(torch.from_numpy(change), shapes)
    state, missed = next_state(sealed.manifest, start, mean, number=sealed.number)
    return write_tensors(_own(context, sealed), state)[0], missed


def _store(context: Context, sealed: Sealed, step: Mapping[str, Tensor], *, counted: int = 0) -> str:
    """Put the start plus a step of what this round trained as the candidate's blob.

    With control variates the step is the mean change of `counted` updates, and moves c as well.
    """
    start = read_state(_own(context, sealed), sealed.adapter_sha256, sealed.manifest)
    moved = {name: start[name] + step[name] for name in step}
    if sealed.manifest.training.control_variates != "none":
        moved |= moved_variates(
            sealed.manifest.training, start, step, counted=counted, clients=sealed.clients
        )
    digest, _size_bytes = write_tensors(_own(context, sealed), {**start, **moved})
    return digest


def _by_name(flat: Tensor, shapes: Shapes) -> dict[str, Tensor]:
    parts = torch.split(flat, [math.prod(shape) for shape in shapes.values()])
    return {name: part.reshape(shape) for (name, shape), part in zip(shapes.items(), parts, strict=True)}


def _record(context: Context, session: Session, sealed: Sealed, outcome: Outcome) -> None:
    _keep_means(context, session, sealed, outcome)
    if get_round(session, sealed.round_id).state is not RoundState.AGGREGATING:
        return  # aborted by hand meanwhile
    if rejected := [one.client_id for one in outcome.judged if not one.finite]:
        session.execute(
            sa.update(Update)
            .where(Update.round_id == sealed.round_id, Update.client_id.in_(rejected))
            .values(state=UpdateState.REJECTED, reject_code=NON_FINITE)
        )
        _note_rejected(session, sealed, rejected)
    standings.keep(
        session,
        sealed.round_id,
        outcome.judged,
        trust=sealed.manifest.privacy.trust,
        expects_hostile=sealed.manifest.aggregation.faulty >= 1,
    )
    if outcome.noised is not None:
        _seal_evidence(session, context.vault, sealed, outcome.noised)
    _record_clipped(session, sealed, outcome)
    if outcome.candidate_sha256 is None:
        code, reason = outcome.refusal or QUORUM_LOST
        lifecycle.abort(session, sealed.round_id, code=code, reason=reason, actor=ACTOR)
        after_abort(session, sealed.run_id, code=code, reason=reason, actor=ACTOR)
        return
    if outcome.noised is not None and outcome.noised.scores is not None:
        canaries.keep_scores(session, context.vault, sealed.round_id, outcome.noised.scores)
    lifecycle.record_candidate(
        session,
        sealed.round_id,
        candidate_sha256=outcome.candidate_sha256,
        device=_device(sealed),
        actor=ACTOR,
        next_clip_norm=outcome.next_clip_norm,
        optimizer_sha256=outcome.optimizer_sha256,
        target_norm=None if outcome.missed is None else outcome.missed.whole_norm,
        missed_norm=None if outcome.missed is None else outcome.missed.error_norm,
    )


def _keep_means(context: Context, session: Session, sealed: Sealed, outcome: Outcome) -> None:
    """Keep what clients have sent so far, and its keys; of a round that was aborted as well."""
    for client_id, mean in outcome.means.items():
        context.blobs.keep(mean.file, session=session)
        row = UpdateMean(
            round_id=sealed.round_id,
            client_id=client_id,
            organisation_id=mean.file.place.tenant,
            blob_sha256=mean.file.sha256,
            weight=mean.weight,
        )
        session.add(row)


def _note_rejected(session: Session, sealed: Sealed, client_ids: Sequence[UUID]) -> None:
    """Where the server adds the noise, that an update is not finite is sealed evidence, and no entry."""
    if sealed.noised is not None:
        return
    rows = session.scalars(
        sa.select(Update).where(Update.round_id == sealed.round_id, Update.client_id.in_(client_ids))
    )
    for row in rows.all():
        record(
            session,
            action=Action.UPDATE_REJECTED,
            actor=ACTOR,
            organisation_id=sealed.organisation_id,
            subject=f"update:{row.id}",
            details={"round_id": str(sealed.round_id), "client_id": str(row.client_id), "code": NON_FINITE},
        )


def _record_clipped(session: Session, sealed: Sealed, outcome: Outcome) -> None:
    for client_id in [one.client_id for one in outcome.judged if one.clipped]:
        violations.record(
            session,
            ViolationKind.BOUND_EXCEEDED,
            organisation_id=sealed.organisation_id,
            run_id=sealed.run_id,
            client_id=client_id,
            detail={"round": sealed.number, "clip_norm": sealed.manifest.aggregation.clip_norm},
        )


def _device(sealed: Sealed) -> str:
    """Return what computed the round; a noised sum is of exact integers, and always the processor's."""
    gpu = chosen() if sealed.noised is None else None
    where = f"cpu {platform.machine()}" if gpu is None else f"gpu {gpu.name}"
    return f"{where}, torch {torch.__version__}"[:100]


def _seal_evidence(session: Session, vault: Vault, sealed: Sealed, step: Step) -> None:
    """Keep what was seen of single updates where only the holder of the master key finds it."""
    norms = [
        (client_id, one.norm if one.finite else None)
        for (client_id, _digest), one in zip(sealed.updates, step.admitted, strict=True)
    ]
    sealed_evidence.keep(session, vault, sealed.round_id, norms, most=step.most_updates)
