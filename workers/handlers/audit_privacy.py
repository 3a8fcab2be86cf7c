"""The two audits of a mechanism: of one sum by its code, and of a whole run by the canaries in its rounds.

One sum: made-up canaries alone, through the code with the run's own constants, at full participation. No
client takes part and nothing is charged. It is what a run under `local` that asks for an audit waits for
before its first release, and what an administrator may ask for at any time.

A run: the canaries had places in its rounds beside the clients. Their coins are opened here, once the run is
over or only its last release is to come, and held against the claim of the whole schedule.
"""

from __future__ import annotations

import dataclasses
import os
from collections.abc import Iterable
from typing import Any
from uuid import UUID

import numpy as np
import structlog
import torch
from numpy.typing import NDArray
from sqlalchemy.orm import Session

from app.budget import audits
from app.jobs import leases
from app.jobs.leases import Claim
from app.rounds import canaries
from app.rounds.queries import lock_round
from app.rounds.states import RoundState
from app.runs.auditing import NOT_AUDITED, block, release_or_audit
from app.runs.manifest import Manifest
from app.runs.models import Run
from app.runs.queries import lock_run
from engines.privacy.accounting import AccountingFailed
from engines.privacy.adaptive_clip import AdaptiveClip
from engines.privacy.audit_canaries import Canaries
from engines.privacy.audit_in_rounds import OVER
from engines.privacy.audit_mechanism import canaries_alone
from engines.privacy.audit_one_shot import Statistic, cosines
from engines.privacy.audit_reach import claim_of_one_sum
from engines.privacy.audit_report import AuditReport, audit_report
from engines.privacy.central import CentralPlan
from engines.privacy.mechanism import noised_sum
from engines.privacy.noise import NoiseStream
from workers.canaries import report_of_run
from workers.context import ACTOR, Context

log = structlog.get_logger()

CANARIES, DIMENSION = 400, 16_384
"""The first where a run's plan names no number of its own."""


def run(context: Context, claim: Claim) -> None:
    """Make one audit of a started run and keep the report; a run without a mechanism is left alone."""
    run_id = UUID(claim.payload["run_id"])
    with context.database.run_tx("audit read") as session:
        leases.fence(session, claim)
        row = session.get_one(Run, run_id)
        manifest_sha256 = row.manifest_sha256
        if manifest_sha256 is None:  # a draft's numbers may still change: an audit of them is of nothing
            leases.finish(session, claim)
            return
        of_run = claim.payload.get("of") == audits.RUN
        report = report_of_run(session, context.vault, row) if of_run else None
    if not of_run:
        report = report_on(Manifest.model_validate(row.manifest))
    with context.database.run_tx("audit end") as session:
        leases.finish(session, claim)
        if report is not None:
            members: dict[str, Any] = dataclasses.asdict(report)
            audits.record(
                session,
                organisation_id=row.organisation_id,
                run_id=run_id,
                manifest_sha256=manifest_sha256,
                report=members,
            )
        if of_run:
            canaries.forget(session, run_id)
        if "round_id" in claim.payload:
            _go_on(session, run_id, UUID(claim.payload["round_id"]), of=audits.RUN if of_run else audits.SUM)
    if report is not None and report.refuted:
        log.error("claim_refuted", run_id=str(run_id), bound=report.lower_bound, claim=report.claimed_epsilon)


def _go_on(session: Session, run_id: UUID, round_id: UUID, *, of: str) -> None:
    """Release the round that waited for the audit, or block it."""
    run = lock_run(session, run_id)  # always the run before its round
    if lock_round(session, round_id).state is not RoundState.VALIDATING:
        return  # aborted by hand meanwhile
    if audits.first_of(session, run_id, run.manifest_sha256, of=of) is not None:
        release_or_audit(session, run, round_id, actor=ACTOR)
    else:
        block(session, run, round_id, why=NOT_AUDITED, actor=ACTOR)


def report_on(manifest: Manifest) -> AuditReport | None:
    """Audit one noised sum with a manifest's constants; None where there is no noise or no claim for it."""
    privacy = manifest.privacy
    if privacy.noise_multiplier is None or privacy.clip_norm is None or privacy.delta is None:
        return None
    try:
        claimed = claim_of_one_sum(privacy.noise_multiplier, delta=privacy.delta)
    except AccountingFailed:
        return None
    alone = Canaries.fresh(privacy.audit.canaries if privacy.audit else CANARIES, DIMENSION)
    return audit_report(
        alone,
        cosines(alone.directions(), _released(alone, manifest)),
        statistic=Statistic.FINAL_ITERATE,
        claimed_epsilon=claimed,
        claimed_delta=privacy.delta,
    )


def _released(alone: Canaries, manifest: Manifest) -> NDArray[np.float64]:
    """What the run's own mechanism lets out of the canaries that are in, shape (d,)."""
    privacy = manifest.privacy
    clip_norm, multiplier = privacy.clip_norm or 0.0, privacy.noise_multiplier or 0.0
    stream = NoiseStream.from_key(os.urandom(32))
    if privacy.trust == "central":
        plan = CentralPlan(
            clip_norm=clip_norm,
            noise_multiplier=multiplier,
            divisor=privacy.divisor,
            most_updates=alone.count,
            adaptive=_adaptive(manifest, canaries=alone.count),
        )
        return _only(canaries_alone(alone, plan=plan, norm=OVER * clip_norm, rounds=1, stream=stream))
    inside = [int(index) for index in np.flatnonzero(alone.coins())]
    rows = torch.from_numpy(np.stack([alone.direction(index) for index in inside]))
    (released,) = noised_sum(
        [rows * (OVER * clip_norm)], clip_norm=clip_norm, noise_multiplier=multiplier, stream=stream
    )
    return released.numpy().astype(np.float64)


def _only(releases: Iterable[NDArray[np.float64]]) -> NDArray[np.float64]:
    (release,) = releases
    return release


def _adaptive(manifest: Manifest, *, canaries: int) -> AdaptiveClip | None:
    bound = manifest.privacy.adaptive_clip
    if bound is None:
        return None
    return AdaptiveClip(
        bit_std=bound.bit_noise,
        expected_cohort=canaries / 2.0,
        target=bound.quantile,
        learning_rate=bound.learning_rate,
    )
