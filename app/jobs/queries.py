"""Reading jobs. Nothing here writes."""

from __future__ import annotations

import sqlalchemy as sa

from app.jobs.models import Job, JobState


def jobs(*, state: JobState | None = None, kind: str | None = None) -> sa.Select[Job]:
    """Jobs, all or those of a state and a kind."""
    statement = sa.select(Job)
    if state is not None:
        statement = statement.where(Job.state == state)
    if kind is not None:
        statement = statement.where(Job.kind == kind)
    return statement
