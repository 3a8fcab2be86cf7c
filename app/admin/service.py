"""What an operator asks of the background jobs."""

from __future__ import annotations

from uuid import UUID

from sqlalchemy.orm import Session

from app.audit.record import Action, record
from app.core.ids import new_id
from app.identity.roles import Principal
from app.jobs import queue
from app.jobs.models import Job


def retry_job(session: Session, principal: Principal, job_id: UUID) -> Job:
    """Put a dead job back into the queue; raises NotFound or JobNotDead."""
    job = queue.retry(session, job_id)
    record(
        session,
        action=Action.JOB_RETRIED,
        actor=principal.actor,
        organisation_id=None,
        subject=f"job:{job_id}",
        details={"kind": job.kind},
    )
    return job


def recheck_ledger(session: Session, principal: Principal) -> None:
    """Have every account replayed and every run priced again."""
    asked = new_id()
    queue.enqueue(session, "recheck", key=f"asked:{asked}", payload={})
    record(
        session,
        action=Action.BUDGET_RECHECK_ASKED,
        actor=principal.actor,
        organisation_id=None,
        subject=f"recheck:{asked}",
    )
