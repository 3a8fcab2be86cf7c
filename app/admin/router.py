"""Operator endpoints: background jobs, and ending a round by hand."""

from __future__ import annotations

from typing import Annotated
from uuid import UUID

from fastapi import APIRouter, Query

from app.admin import service
from app.admin.schemas import AbortIn, AuditIn, JobOut
from app.http.deps import SessionDep, requires
from app.http.idempotency import IdempotentRoute
from app.http.pagination import Page, PageDep, page
from app.identity.roles import Principal
from app.jobs import queries
from app.jobs.models import Job, JobState
from app.rounds import lifecycle
from app.rounds.queries import lock_round, round_for, show
from app.rounds.schemas import RoundOut
from app.runs.auditing import ask_by_hand
from app.runs.queries import lock_run, run_for
from app.runs.service import after_abort

router = APIRouter(tags=["operation"], route_class=IdempotentRoute)
ABORTED_BY_HAND = "aborted_by_hand"

CanReadJobs = Annotated[Principal, requires("jobs:read")]
CanRetryJobs = Annotated[Principal, requires("jobs:retry")]
CanRecheck = Annotated[Principal, requires("budgets:recheck")]
CanAbortRounds = Annotated[Principal, requires("rounds:abort")]


@router.get("/admin/jobs")
def list_jobs(
    session: SessionDep,
    principal: CanReadJobs,
    params: PageDep,
    state: Annotated[JobState | None, Query(description="Only jobs in this state.")] = None,
    kind: Annotated[str | None, Query(max_length=64, pattern=r"^[a-z_]*$")] = None,
) -> Page[JobOut]:
    """List background jobs, newest first."""
    statement = queries.jobs(state=state, kind=kind)
    rows, cursor = page(session, statement, Job.id, params, newest_first=True)
    return Page(items=[JobOut.model_validate(row) for row in rows], next_cursor=cursor)


@router.post("/admin/jobs/{job_id}/retry", status_code=202)
def retry_job(job_id: UUID, session: SessionDep, principal: CanRetryJobs) -> JobOut:
    """Put a job that was given up back into the queue, with fresh attempts."""
    return JobOut.model_validate(service.retry_job(session, principal, job_id))


@router.post("/privacy/recheck", status_code=202, tags=["budgets"])
def recheck_ledger(session: SessionDep, principal: CanRecheck) -> None:
    """Have every account replayed and every run priced again now, as it is done once a day."""
    service.recheck_ledger(session, principal)


@router.post("/privacy/audits", status_code=202, tags=["budgets"])
def audit_run(body: AuditIn, session: SessionDep, principal: CanRecheck) -> None:
    """Send made-up canaries through a started run's mechanism, with nobody's data and at nobody's cost."""
    ask_by_hand(session, run_for(session, principal, body.run_id), actor=principal.actor)


@router.post("/rounds/{round_id}/abort", status_code=202, tags=["rounds"])
def abort_round(round_id: UUID, body: AbortIn, session: SessionDep, principal: CanAbortRounds) -> RoundOut:
    """End a round without an adapter, and pause its run. What was spent for it stays spent."""
    row = round_for(session, principal, round_id, "rounds:abort")
    lock_run(session, row.run_id)  # always the run before its round
    lifecycle.abort(session, round_id, code=ABORTED_BY_HAND, reason=body.reason, actor=principal.actor)
    after_abort(session, row.run_id, code=ABORTED_BY_HAND, reason=body.reason, actor=principal.actor)
    return show(session, lock_round(session, round_id))
