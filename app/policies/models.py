"""The table of organisations' data rules: versions that stay as they were set."""

from __future__ import annotations

from datetime import datetime
from typing import Any
from uuid import UUID

import sqlalchemy as sa
from sqlalchemy.orm import Mapped, mapped_column

from app.core.db import Base
from app.core.ids import new_id


class DataRules(Base):
    """One version of an organisation's data rules; the highest is in force. Append-only, by trigger.

    Written by app.policies.service alone.
    """

    __tablename__ = "data_rules"
    __table_args__ = (
        sa.UniqueConstraint("organisation_id", "version"),
        sa.CheckConstraint("version >= 1", name="version"),
    )

    id: Mapped[UUID] = mapped_column(primary_key=True, default=new_id)
    organisation_id: Mapped[UUID] = mapped_column(sa.ForeignKey("organisations.id"))
    version: Mapped[int]
    rules: Mapped[dict[str, Any]]
    sha256: Mapped[str] = mapped_column(sa.String(64))
    """Of the rules' canonical form, as decisions name it."""
    created_by: Mapped[str] = mapped_column(sa.String(100))
    created_at: Mapped[datetime] = mapped_column(server_default=sa.func.now())
