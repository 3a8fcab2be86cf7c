"""The one wrapper around every job: claim, handle, settle."""

from __future__ import annotations

from collections.abc import Mapping
from uuid import UUID

import structlog

from app.jobs import leases
from workers.context import Context, Handler

log = structlog.get_logger()


def run_job(context: Context, job_id: UUID, *, handlers: Mapping[str, Handler]) -> None:
    """Work on a job if it is there to be had; a spare hint ends at the claim, and is harmless."""
    claim = leases.claim(context.database, job_id, ceiling_s=context.settings.lease_s)
    if claim is None:
        return
    with (
        structlog.contextvars.bound_contextvars(job=str(claim.job_id), kind=claim.kind),
        leases.settle(context.database, claim),
    ):
        handlers[claim.kind](context, claim)
        log.info("job_handled", attempt=claim.attempt)
