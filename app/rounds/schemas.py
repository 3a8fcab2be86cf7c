"""What the API shows of rounds."""

from __future__ import annotations

from datetime import datetime
from typing import Any, Self
from uuid import UUID

from pydantic import BaseModel, ConfigDict

from app.jobs.models import Job, JobState
from app.rounds.models import Round, RoundLog
from app.rounds.states import RoundState

_ROUND: dict[str, Any] = {
    "id": "01976c5e-8d2b-7c3a-9f4e-2b6d1a0c9e77",
    "run_id": "01976c5e-0000-7c3a-9f4e-2b6d1a0c9e01",
    "number": 1,
    "state": "open",
    "version": 2,
    "min_updates": 4,
    "max_updates": 8,
    "updates": {"receiving": 0, "received": 3, "rejected": 0},
    "deadline": "2026-11-25T12:10:00Z",
    "clip_norm": None,
    "adapter_sha256": "0" * 64,
    "candidate_sha256": None,
    "target_norm": None,
    "missed_norm": None,
    "device": None,
    "waits_for": None,
    "abort_code": None,
    "abort_reason": None,
    "created_at": "2026-11-25T12:00:00Z",
    "opened_at": "2026-11-25T12:00:00Z",
    "sealed_at": None,
    "finished_at": None,
}


class UpdateCounts(BaseModel):
    """How many updates of the cohort are in each state."""

    receiving: int = 0
    received: int = 0
    rejected: int = 0


class WaitsFor(BaseModel):
    """The job that has to end before the round goes on."""

    kind: str
    state: JobState
    attempts: int

    @classmethod
    def of(cls, job: Job) -> Self:
        """From a row; its error is for operators only."""
        return cls(kind=job.kind, state=job.state, attempts=job.attempts)


class RoundOut(BaseModel):
    """One training round."""

    model_config = ConfigDict(json_schema_extra={"examples": [_ROUND]})

    id: UUID
    run_id: UUID
    number: int
    state: RoundState
    version: int
    """Grows with every change of state."""
    min_updates: int
    max_updates: int
    updates: UpdateCounts | None
    """Null where the cohort is secret: neither its members nor their number are shown to anybody."""
    clip_norm: float | None
    """C of this round where the server clips and adds the noise; null under every other trust."""
    deadline: datetime | None
    """When the round is sealed with what it has, or aborted for want of a quorum."""
    adapter_sha256: str
    """Digest of the adapter that clients start from."""
    candidate_sha256: str | None
    """Digest of the aggregated adapter's trained tensors."""
    target_norm: float | None
    """Norm of the clients' mean weight change, where the LoRA method forms it from products of factors."""
    missed_norm: float | None
    """What of it the adapter does not hold: for `flexlora` directions over the rank, for `fedit` the
    covariance of the factors."""
    device: str | None
    """Where the aggregate was computed."""
    waits_for: WaitsFor | None
    abort_code: str | None
    abort_reason: str | None
    created_at: datetime
    opened_at: datetime | None
    sealed_at: datetime | None
    finished_at: datetime | None

    @classmethod
    def of(cls, row: Round, *, updates: dict[str, int] | None, job: Job | None) -> Self:
        """From a row, the counts of its updates unless they are secret, and the job that it waits for."""
        return cls(
            id=row.id,
            run_id=row.run_id,
            number=row.number,
            state=row.state,
            version=row.version,
            min_updates=row.min_updates,
            max_updates=row.max_updates,
            updates=None if updates is None else UpdateCounts(**updates),
            clip_norm=row.clip_norm,
            target_norm=row.target_norm,
            missed_norm=row.missed_norm,
            deadline=row.deadline,
            adapter_sha256=row.adapter_sha256,
            candidate_sha256=row.candidate_sha256,
            device=row.device,
            waits_for=WaitsFor.of(job) if job is not None else None,
            abort_code=row.abort_code,
            abort_reason=row.abort_reason,
            created_at=row.created_at,
            opened_at=row.opened_at,
            sealed_at=row.sealed_at,
            finished_at=row.finished_at,
        )

    @property
    def tag(self) -> str:
        """Changes with everything that is shown, except how often a job was tried."""
        counts = self.updates
        if counts is None:
            return str(self.version)
        return f"{self.version}.{counts.receiving}.{counts.received}.{counts.rejected}"


class RoundStep(BaseModel):
    """One step in a round's life."""

    src: str
    dst: str
    actor: str
    at: datetime

    @classmethod
    def of(cls, row: RoundLog) -> Self:
        """From a row of the log."""
        return cls(src=row.src, dst=row.dst, actor=row.actor, at=row.at)


class RoundHistory(BaseModel):
    """What happened to a round, oldest first."""

    model_config = ConfigDict(
        json_schema_extra={
            "examples": [
                {
                    "items": [
                        {"src": "new", "dst": "planned", "actor": "worker", "at": "2026-11-25T12:00:00Z"},
                        {"src": "planned", "dst": "open", "actor": "worker", "at": "2026-11-25T12:00:00Z"},
                    ]
                }
            ]
        }
    )

    items: list[RoundStep]
