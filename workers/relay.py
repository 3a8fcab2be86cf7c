"""The outbox relay: sends a hint for every job that is due, free, and was not hinted at lately."""

from __future__ import annotations

from datetime import timedelta

import sqlalchemy as sa
import structlog
from celery import Celery
from kombu.exceptions import OperationalError as BrokerError
from sqlalchemy.orm import Session

from app.jobs.kinds import CPU, GPU, KINDS
from app.jobs.models import Job, JobState

BATCH = 100
log = structlog.get_logger()


class Relay:
    """Remembers only whether the broker answered last time, so that an outage is logged once."""

    def __init__(self, celery: Celery, *, resend_s: float, gpu_workers: bool = False) -> None:
        self._celery = celery
        self._gpu_workers = gpu_workers
        self._resend = timedelta(seconds=resend_s)
        self._broken = False

    def send_due(self, session: Session) -> int:
        """Send hints and record when; returns how many left. Several relays at once share the work.

        A crash between the sending and the commit sends twice, which the claim makes harmless.
        """
        sent = []
        for job in session.scalars(self._due()).all():
            if not self._send(job):
                break
            sent.append(job.id)
        if sent:
            session.execute(
                sa.update(Job)
                .where(Job.id.in_(sent))
                .values(sent_at=sa.func.clock_timestamp())
                .execution_options(synchronize_session=False)
            )
        return len(sent)

    def _due(self) -> sa.Select[Job]:
        now = sa.func.now()
        return (
            sa.select(Job)
            .where(
                Job.state == JobState.QUEUED,
                Job.kind.in_(KINDS),  # a newer release may have asked for kinds that are not known here
                Job.run_at <= now,
                sa.or_(Job.lease_until.is_(None), Job.lease_until < now),
                sa.or_(Job.sent_at.is_(None), Job.sent_at < now - self._resend),
            )
            .order_by(Job.run_at)
            .limit(BATCH)
            .with_for_update(skip_locked=True)
        )

    def _send(self, job: Job) -> bool:
        try:
            self._celery.send_task(
                f"job.{job.kind}",
                args=[str(job.id)],
                queue=self._queue(job),
                retry=False,
                ignore_result=True,
            )
        except (BrokerError, OSError) as error:
            if not self._broken:
                log.error("broker_unreachable", error=type(error).__name__)
            self._broken = True
            return False
        if self._broken:
            log.info("broker_answers_again")
        self._broken = False
        return True

    def _queue(self, job: Job) -> str:
        """Return where to ring: a GPU is offered its jobs once, then anybody; the claim settles who works."""
        offered = self._gpu_workers and job.sent_at is None
        return GPU if KINDS[job.kind].on_gpu and offered else CPU
