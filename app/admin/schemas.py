"""What operators see of jobs, and say of rounds."""

from __future__ import annotations

from datetime import datetime
from typing import Any
from uuid import UUID

from pydantic import BaseModel, ConfigDict

from app.core.strict import Reason, StrictModel
from app.jobs.models import JobState


class JobOut(BaseModel):
    """A piece of background work. `payload` holds ids, never data."""

    model_config = ConfigDict(
        from_attributes=True,
        json_schema_extra={
            "examples": [
                {
                    "id": "01976c5e-8d2b-7c3a-9f4e-2b6d1a0c9e77",
                    "kind": "aggregate",
                    "key": "01976c5e-0000-7c3a-9f4e-2b6d1a0c9e01",
                    "payload": {"round_id": "01976c5e-0000-7c3a-9f4e-2b6d1a0c9e01"},
                    "state": "dead",
                    "attempts": 5,
                    "run_at": "2026-11-25T12:00:00Z",
                    "sent_at": "2026-11-25T12:00:00Z",
                    "lease_until": None,
                    "last_error": "StorageFull (storage_full) at commit:104",
                    "created_at": "2026-11-25T12:00:00Z",
                    "finished_at": "2026-11-25T12:01:00Z",
                }
            ]
        },
    )

    id: UUID
    kind: str
    key: str
    payload: dict[str, Any]
    state: JobState
    attempts: int
    run_at: datetime
    sent_at: datetime | None
    lease_until: datetime | None
    last_error: str | None
    """Class and place of the last failure; never its text, which may hold data."""
    created_at: datetime
    finished_at: datetime | None


class AbortIn(StrictModel):
    """Why a round is ended."""

    model_config = ConfigDict(
        json_schema_extra={"examples": [{"reason": "A client reported a broken disk."}]}
    )

    reason: Reason


class AuditIn(StrictModel):
    """Which run's mechanism is audited."""

    model_config = ConfigDict(
        json_schema_extra={"examples": [{"run_id": "01976c5e-8d2b-7c3a-9f4e-2b6d1a0c9e77"}]}
    )

    run_id: UUID
