"""Asking for work: a row in the caller's transaction, so that the work exists exactly if its cause does."""

from __future__ import annotations

from datetime import datetime
from typing import Any
from uuid import UUID

import sqlalchemy as sa
from sqlalchemy.dialects.postgresql import insert
from sqlalchemy.orm import Session

from app.core.db import notify
from app.core.errors import Conflict, NotFound
from app.core.i18n import _
from app.core.ids import new_id
from app.jobs.kinds import KINDS
from app.jobs.models import Job, JobState

CHANNEL = "dpfl_jobs"


class JobNotDead(Conflict):
    """Only a job that was given up can be retried."""

    code, title = "job_not_dead", _("The job was not given up")
    meaning = _("Only a job that failed as often as its kind allows can be retried by hand.")


def enqueue(
    session: Session, kind: str, *, key: str, payload: dict[str, Any], run_at: datetime | None = None
) -> None:
    """Ask for a job, once per (kind, key): asking again is no error and changes nothing.

    `payload` holds ids, never data. Without `run_at` the job is due as soon as this transaction commits.
    """
    if kind not in KINDS:
        raise ValueError(f"no such kind of job: {kind}")
    values: dict[str, Any] = {"id": new_id(), "kind": kind, "key": key, "payload": payload}
    if run_at is not None:
        values["run_at"] = run_at
    added = session.scalar(
        insert(Job)
        .values(values)
        .on_conflict_do_nothing(index_elements=[Job.kind, Job.key])
        .returning(Job.id)
    )
    if added is not None:
        notify(session, CHANNEL, kind)


def retry(session: Session, job_id: UUID) -> Job:
    """Put a dead job back into the queue with fresh attempts."""
    job = session.scalar(
        sa.update(Job)
        .where(Job.id == job_id, Job.state == JobState.DEAD)
        .values(
            state=JobState.QUEUED,
            attempts=0,
            run_at=sa.func.now(),
            sent_at=None,
            lease_token=None,
            lease_until=None,
            finished_at=None,
        )
        .returning(Job)
        .execution_options(populate_existing=True)
    )
    if job is None:
        if session.get(Job, job_id) is None:
            raise NotFound(_("there is no such job"))
        raise JobNotDead(_("the job is not dead"))
    notify(session, CHANNEL, job.kind)
    return job
