"""The table of releases: published adapters with their certificate and lineage."""

from __future__ import annotations

from datetime import datetime
from typing import Any
from uuid import UUID

import sqlalchemy as sa
from sqlalchemy.orm import Mapped, mapped_column

from app.core.db import Base
from app.core.ids import new_id


class Release(Base):
    """A published adapter. Rows are inserted by the publish job; only a roll-back's mark is added, once."""

    __tablename__ = "releases"
    __table_args__ = (
        sa.CheckConstraint(
            "num_nulls(rolled_back_at, rolled_back_by, rollback_reason) IN (0, 3)", name="rollback"
        ),
    )

    id: Mapped[UUID] = mapped_column(primary_key=True, default=new_id)
    run_id: Mapped[UUID] = mapped_column(sa.ForeignKey("runs.id"), index=True)
    round_id: Mapped[UUID] = mapped_column(sa.ForeignKey("rounds.id"), unique=True)
    organisation_id: Mapped[UUID] = mapped_column(sa.ForeignKey("organisations.id"), index=True)
    number: Mapped[int]
    """The round's number within its run."""
    adapter_sha256: Mapped[str] = mapped_column(sa.String(64))
    """Blob of adapter_model.safetensors, frozen factors included."""
    size_bytes: Mapped[int]
    optimizer_sha256: Mapped[str | None] = mapped_column(sa.String(64))
    """Blob of the server optimizer's state with which training goes on from here; None without one."""
    adapter_config: Mapped[dict[str, Any]]
    certificate: Mapped[dict[str, Any]]
    parent_id: Mapped[UUID | None] = mapped_column(sa.ForeignKey("releases.id"))
    rolled_back_at: Mapped[datetime | None]
    """When training was taken back to before it; a trigger refuses to change the mark."""
    rolled_back_by: Mapped[str | None] = mapped_column(sa.String(100))
    rollback_reason: Mapped[str | None]
    created_at: Mapped[datetime] = mapped_column(server_default=sa.func.now())
