"""What the API shows of releases."""

from __future__ import annotations

from datetime import datetime
from typing import Self
from uuid import UUID

from pydantic import BaseModel

from app.releases.models import Release


class Links(BaseModel):
    """Where the parts of a release are."""

    adapter: str
    config: str
    certificate: str


class ReleaseOut(BaseModel):
    """A published adapter."""

    id: UUID
    run_id: UUID
    round_id: UUID
    number: int
    """The round's number within its run."""
    adapter_sha256: str
    size_bytes: int
    optimizer_sha256: str | None
    """Digest of the server optimizer's state with which training goes on from here; null without one."""
    parent_id: UUID | None
    """The release that training went on from: of the same run, or the one that the run started from."""
    rolled_back_at: datetime | None
    """When training was taken back to before this release; null of one that holds."""
    rollback_reason: str | None
    privacy_claimed: bool
    epsilon: float | None
    """Of this run's whole schedule at `delta`; read the certificate for what it covers."""
    delta: float | None
    unit: str | None
    relation: str | None
    basis: str | None
    accountant: str | None
    links: Links
    created_at: datetime

    @classmethod
    def of(cls, row: Release) -> Self:
        """From a row; what is claimed is read from the signed certificate."""
        privacy = row.certificate["privacy"]
        this_run = privacy.get("this_run", {})
        here = f"/v1/releases/{row.id}"
        return cls(
            id=row.id,
            run_id=row.run_id,
            round_id=row.round_id,
            number=row.number,
            adapter_sha256=row.adapter_sha256,
            size_bytes=row.size_bytes,
            optimizer_sha256=row.optimizer_sha256,
            parent_id=row.parent_id,
            rolled_back_at=row.rolled_back_at,
            rollback_reason=row.rollback_reason,
            privacy_claimed=privacy["claimed"],
            epsilon=this_run.get("epsilon"),
            delta=this_run.get("delta"),
            unit=privacy.get("unit"),
            relation=privacy.get("relation"),
            basis=privacy.get("basis"),
            accountant=this_run.get("accountant"),
            links=Links(
                adapter=f"{here}/adapter", config=f"{here}/config", certificate=f"{here}/certificate"
            ),
            created_at=row.created_at,
        )
