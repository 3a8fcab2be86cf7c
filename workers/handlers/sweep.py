"""Housekeeping, once a minute: what died is ended with a reason, what is stale is removed."""

from __future__ import annotations

import time
from datetime import timedelta
from uuid import UUID

import sqlalchemy as sa
from sqlalchemy.orm import Session

from app.core.i18n import _
from app.identity.models import Attempts, UsedAssertion, UsedProof
from app.jobs import leases
from app.jobs.kinds import KINDS
from app.jobs.leases import Claim
from app.jobs.models import Job, JobState
from app.rounds import lifecycle, sealed_evidence
from app.rounds.queries import get_round, lock_round
from app.rounds.states import RoundState
from app.runs.queries import lock_run
from app.runs.service import after_abort, refuse
from app.security import events
from app.updates import means as update_means
from workers.context import ACTOR, Context

KEEP_PERIODIC = timedelta(hours=1)
KEEP_ANSWERS = timedelta(hours=24)
ANSWERS = sa.table("stored_answers", sa.column("created_at", sa.DateTime(timezone=True)))
"""Answers for Idempotency-Key, which may hold a secret. Their table belongs to HTTP and is read by name."""
GRACE = timedelta(hours=1)
"""How long an operator has to retry the dead job of a round before the round is aborted."""
WAITS_FOR: dict[str, frozenset[RoundState]] = {
    "deadline": frozenset({RoundState.OPEN}),
    "aggregate": frozenset({RoundState.SEALED, RoundState.AGGREGATING}),
    "validate": frozenset({RoundState.VALIDATING}),
    "audit_privacy": frozenset({RoundState.VALIDATING}),
    "publish": frozenset({RoundState.VALIDATING}),
}
"""The jobs without which a round in one of these states would stay there for ever."""

MEANS_AT_ONCE, MEANS_S = 100, 20.0
"""How many are deleted together, and how long a sweep goes on with it: far less than its time limit."""
JOB_FAILED = (
    "job_failed",
    _("A background job failed as often as it may be tried. The operator sees why in the list of jobs."),
)


def run(context: Context, claim: Claim) -> None:
    """Do everything that is due; each part is harmless to repeat."""
    with context.database.run_tx("sweep jobs") as session:
        leases.fence(session, claim)
        _forget(session)
        kept_for = timedelta(days=context.settings.evidence_days)
        sealed_evidence.forget(session, older_than=kept_for)
        events.forget(session, older_than=kept_for)
        dead = _dead(session)
    for kind, payload in dead:
        with context.database.run_tx("sweep dead") as session:
            _end(session, kind, payload)
    context.blobs.tidy()
    _forget_means(context)


def _forget(session: Session) -> None:
    """Delete rows that only ever served for a while."""
    periodic = [kind.name for kind in KINDS.values() if kind.every_s is not None]
    session.execute(
        sa.delete(Job).where(
            Job.kind.in_(periodic),
            Job.state != JobState.QUEUED,
            Job.finished_at < sa.func.now() - KEEP_PERIODIC,
        )
    )
    session.execute(sa.delete(ANSWERS).where(ANSWERS.c.created_at < sa.func.now() - KEEP_ANSWERS))
    session.execute(sa.delete(UsedAssertion).where(UsedAssertion.expires_at < sa.func.now() - GRACE))
    session.execute(sa.delete(UsedProof).where(UsedProof.ends_at < sa.func.now() - GRACE))
    session.execute(sa.delete(Attempts).where(Attempts.last_at < sa.func.now() - KEEP_ANSWERS))


def _forget_means(context: Context) -> None:
    """Delete what clients had sent up to rounds that nobody goes on from: the bytes, then the row."""
    ends = time.monotonic() + MEANS_S
    while time.monotonic() < ends:
        with context.database.run_tx("sweep means") as session:
            stale = update_means.stale(session, at_most=MEANS_AT_ONCE)
        for _round_id, _client_id, ref in stale:
            context.blobs.delete_old(ref, min_age_s=0.0)
        with context.database.run_tx("sweep means end") as session:
            update_means.forget(session, [(round_id, client_id) for round_id, client_id, _ref in stale])
        if len(stale) < MEANS_AT_ONCE:
            return


def _dead(session: Session) -> list[tuple[str, dict[str, str]]]:
    """Dead jobs that somebody still waits for: prices at once, rounds' jobs after the grace."""
    rows = session.scalars(
        sa.select(Job).where(
            Job.state == JobState.DEAD,
            sa.or_(
                Job.kind == "price",
                sa.and_(Job.kind.in_(WAITS_FOR), Job.finished_at < sa.func.now() - GRACE),
            ),
        )
    )
    waited_for = (job for job in rows if job.kind == "price" or "round_id" in job.payload)
    return [(job.kind, job.payload) for job in waited_for]  # for an audit by hand no round waits


def _end(session: Session, kind: str, payload: dict[str, str]) -> None:
    code, reason = JOB_FAILED
    if kind == "price":
        version = int(payload["version"])
        refuse(session, UUID(payload["run_id"]), version=version, code=code, reason=reason, actor=ACTOR)
        return
    round_id = UUID(payload["round_id"])
    lock_run(session, get_round(session, round_id).run_id)  # always the run before its round
    row = lock_round(session, round_id)
    if row.state in WAITS_FOR[kind]:
        lifecycle.abort(session, round_id, code=code, reason=reason, actor=ACTOR)
        after_abort(session, row.run_id, code=code, reason=reason, actor=ACTOR)
