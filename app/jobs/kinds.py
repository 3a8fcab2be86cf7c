"""The kinds of job and their limits, in one table. A kind's handler lives in workers/handlers/<kind>.py."""

from __future__ import annotations

from dataclasses import dataclass

LIMIT_OF_LEASE = 0.8
"""Celery kills a job at this share of its lease, so that no lease is lent again to a job that still runs."""


CPU, GPU = "cpu", "gpu"
"""The two queues."""


@dataclass(frozen=True, slots=True)
class JobKind:
    """What may be asked for, and how often it is tried."""

    name: str
    lease_s: float
    """The longest that one attempt may hold the job; the setting `lease_s` caps it."""
    max_attempts: int = 5
    backoff_s: float = 1.0
    """Wait before the second attempt; it doubles with each further one."""
    on_gpu: bool = False
    """Whether a worker with a GPU, where there is one, is offered the job first."""
    every_s: float | None = None
    """Set for periodic work: the dispatcher asks for it once in each slot of this length."""


KINDS: dict[str, JobKind] = {
    kind.name: kind
    for kind in (
        JobKind("price", lease_s=300),
        JobKind("aggregate", lease_s=600, on_gpu=True),
        JobKind("validate", lease_s=120),
        JobKind("publish", lease_s=120),
        JobKind("purge", lease_s=120, max_attempts=8, backoff_s=30),
        JobKind("deadline", lease_s=60),
        JobKind("sweep", lease_s=60, max_attempts=2, every_s=60),
        JobKind("rewrap", lease_s=120, max_attempts=2, every_s=300),
        JobKind("audit_privacy", lease_s=300, max_attempts=2),
        JobKind("recheck", lease_s=600, max_attempts=2, backoff_s=60, every_s=86_400),
    )
}


def lease_s(kind: JobKind, *, ceiling_s: float) -> float:
    """How long an attempt holds the job, in seconds."""
    return min(kind.lease_s, ceiling_s)


def time_limit_s(kind: JobKind, *, ceiling_s: float) -> int:
    """When a running attempt is killed, in whole seconds: before its lease ends."""
    return max(1, int(LIMIT_OF_LEASE * lease_s(kind, ceiling_s=ceiling_s)))


def backoff_s(kind: JobKind, *, attempt: int) -> float:
    """The wait after a failed attempt, in seconds: doubling, at most ten minutes."""
    return min(kind.backoff_s * 2.0 ** (attempt - 1), 600.0)
