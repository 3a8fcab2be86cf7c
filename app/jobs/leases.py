"""Who may work on a job now, and whose results count. Every decision is made by the database's clock.

A claim is a random token in the job's row. Results are written in a transaction that also checks the token
(`fence`, `finish`): a worker that lost its lease finds another token, and its transaction rolls back.
"""

from __future__ import annotations

import traceback
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from dataclasses import dataclass
from datetime import timedelta
from typing import Any
from uuid import UUID, uuid4

import sqlalchemy as sa
import structlog
from sqlalchemy.orm import Session

from app.core.db import Database, notify
from app.core.errors import DomainError
from app.jobs.kinds import KINDS, backoff_s, lease_s
from app.jobs.models import Job, JobState
from app.jobs.queue import CHANNEL

log = structlog.get_logger()

OUT_OF_ATTEMPTS = "the worker died or ran out of time at the last attempt"


class LeaseLost(Exception):
    """The job is done already, or another worker holds it: nothing of this attempt may be kept."""


@dataclass(frozen=True, slots=True)
class Claim:
    """The right to work on a job until its lease ends."""

    job_id: UUID
    kind: str
    key: str
    payload: dict[str, Any]
    token: UUID
    attempt: int
    """1 for the first attempt."""


def claim(database: Database, job_id: UUID, *, ceiling_s: float) -> Claim | None:
    """Take the job's lease, or None when there is nothing to do or another worker holds it.

    A job whose attempts all ended without a word (killed, out of time) is given up here. The row's lock
    is waited for: its holder may be the dispatcher, which commits right after it sent the very hint that
    led here.
    """
    with database.run_tx("claim") as session:
        job = session.scalar(
            sa.select(Job)
            .where(
                Job.id == job_id,
                Job.state == JobState.QUEUED,
                Job.run_at <= sa.func.now(),
                sa.or_(Job.lease_until.is_(None), Job.lease_until < sa.func.now()),
            )
            .with_for_update()
        )
        if job is None:
            return None
        kind = KINDS[job.kind]
        if job.attempts >= kind.max_attempts:
            _give_up(session, job.id, error=OUT_OF_ATTEMPTS)
            return None
        token, held_s = uuid4(), lease_s(kind, ceiling_s=ceiling_s)
        attempt = session.scalar(
            sa.update(Job)
            .where(Job.id == job_id)
            .values(
                attempts=Job.attempts + 1,
                lease_token=token,
                lease_until=sa.func.clock_timestamp() + timedelta(seconds=held_s),
            )
            .returning(Job.attempts)
        )
        return Claim(job.id, job.kind, job.key, dict(job.payload), token, attempt or 1)


def fence(session: Session, claim: Claim) -> None:
    """Hold the job's row until this transaction ends; raises LeaseLost when the lease went to another."""
    mine = session.scalar(
        sa.select(Job.id)
        .where(Job.id == claim.job_id, Job.lease_token == claim.token, Job.state == JobState.QUEUED)
        .with_for_update()
    )
    if mine is None:
        raise LeaseLost(claim.kind)


def finish(session: Session, claim: Claim) -> None:
    """Mark the job done in the transaction that holds its results; raises LeaseLost."""
    done = session.scalar(
        sa.update(Job)
        .where(Job.id == claim.job_id, Job.lease_token == claim.token, Job.state == JobState.QUEUED)
        .values(state=JobState.DONE, finished_at=sa.func.now(), lease_until=None, last_error=None)
        .returning(Job.id)
    )
    if done is None:
        raise LeaseLost(claim.kind)


@contextmanager
def settle(database: Database, claim: Claim) -> Iterator[None]:
    """Run an attempt in this block: what it raises is recorded, and tried again or given up.

    A handler that has results finishes its job itself, in their transaction; for the others it is done here.
    """
    try:
        yield
        _finish_if_mine(database, claim)
    except LeaseLost:
        log.warning("lease_lost", job=str(claim.job_id), kind=claim.kind)
    except Exception as error:  # noqa: BLE001  whatever a handler raises must end in the job's row
        brief, stack = _brief(error), "".join(traceback.format_tb(error.__traceback__)[-8:])
        log.error("job_failed", attempt=claim.attempt, error=brief, stack=stack, job=str(claim.job_id))
        _record_failure(database, claim, brief)


def _finish_if_mine(database: Database, claim: Claim) -> None:
    with database.run_tx("settle") as session, suppress(LeaseLost):
        finish(session, claim)


def _record_failure(database: Database, claim: Claim, error: str) -> None:
    kind = KINDS[claim.kind]
    with database.run_tx("settle") as session:
        try:
            fence(session, claim)
        except LeaseLost:
            return
        if claim.attempt >= kind.max_attempts:
            _give_up(session, claim.job_id, error=error)
            return
        wait = timedelta(seconds=backoff_s(kind, attempt=claim.attempt))
        session.execute(
            sa.update(Job)
            .where(Job.id == claim.job_id)
            .values(
                run_at=sa.func.clock_timestamp() + wait,
                sent_at=None,
                lease_token=None,
                lease_until=None,
                last_error=error,
            )
        )
        notify(session, CHANNEL, claim.kind)


def _give_up(session: Session, job_id: UUID, *, error: str) -> None:
    log.error("job_dead", job=str(job_id), error=error)
    session.execute(
        sa.update(Job)
        .where(Job.id == job_id)
        .values(
            state=JobState.DEAD,
            finished_at=sa.func.now(),
            lease_token=None,
            lease_until=None,
            last_error=error,
        )
    )


def _brief(error: BaseException) -> str:
    """The error's class and place. Never its text, which may hold data."""
    frames = traceback.extract_tb(error.__traceback__)
    place = f" at {frames[-1].name}:{frames[-1].lineno}" if frames else ""
    code = f" ({error.code})" if isinstance(error, DomainError) else ""
    return f"{type(error).__name__}{code}{place}"[:200]
