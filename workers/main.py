"""The Celery application: `python -m celery -A workers.main worker -Q cpu`.

The parent process imports neither torch nor opens the database: each child does, after the fork.
"""

from __future__ import annotations

import os
import signal
import warnings
from collections.abc import Mapping
from uuid import UUID

import structlog
from celery.exceptions import SecurityWarning
from celery.signals import setup_logging, worker_process_init

from app.core.logs import configure_logs
from app.core.settings import Settings
from app.jobs.kinds import KINDS, JobKind, time_limit_s
from workers.broker import build_celery
from workers.context import Context, Handler
from workers.shell import run_job

settings = Settings.load()
if settings.redis_url is None:
    raise SystemExit("REDIS_URL is not set")
# As root Celery warns of pickled messages; only JSON is accepted here.
warnings.filterwarnings("ignore", category=SecurityWarning)
celery = build_celery(settings.redis_url.get_secret_value())
log = structlog.get_logger()
PARENT = os.getpid()
"""Who imported this before the fork; a child's parent unless it died meanwhile."""


class Process:
    """What a child process made at its start."""

    context: Context
    handlers: Mapping[str, Handler]


@setup_logging.connect
def _set_up_logging(**_kwargs: object) -> None:
    configure_logs(settings.environment)


@worker_process_init.connect
def _start(**_kwargs: object) -> None:
    """Prepare this child, or end the whole worker: Celery would log the error and let every job fail."""
    try:
        _prepare()
    except Exception as error:  # whatever it is: without its tools no child of this worker can do a job
        log.critical("worker_cannot_start", error=type(error).__name__, reason=str(error)[:300])
        if os.getppid() == PARENT:
            os.kill(PARENT, signal.SIGTERM)
        raise SystemExit(1) from error


def _prepare() -> None:
    import torch  # noqa: PLC0415  after the fork, and not in the parent

    from engines.aggregation.device import choose  # noqa: PLC0415  imports torch as well
    from workers.registry import HANDLERS  # noqa: PLC0415

    torch.set_num_threads(1)
    choose(settings.device)
    Process.context = Context.open(settings)
    Process.handlers = HANDLERS


def _register(kind: JobKind) -> None:
    @celery.task(
        name=f"job.{kind.name}",
        shared=False,
        ignore_result=True,
        time_limit=time_limit_s(kind, ceiling_s=settings.lease_s),
    )
    def run(job_id: str) -> None:
        run_job(Process.context, UUID(job_id), handlers=Process.handlers)


for _kind in KINDS.values():
    _register(_kind)
