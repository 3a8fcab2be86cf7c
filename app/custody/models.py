"""Tables of keys, each wrapped under the one above it: region, tenant, object. The root is in no table.

Deleting a row of `blob_keys` makes one object unreadable for ever, deleting those of `tenant_keys` all of a
tenant's. Backups that keep these tables keep what they open: docs/guides/encryption.md says for how long.
"""

from __future__ import annotations

from datetime import datetime
from uuid import UUID

import sqlalchemy as sa
from sqlalchemy.orm import Mapped, mapped_column

from app.core.db import Base
from app.core.ids import new_id

_CURRENT = sa.text("retired_at IS NULL")


class RegionKey(Base):
    """A region's key, wrapped under the root that only processes of the region hold."""

    __tablename__ = "region_keys"
    __table_args__ = (
        sa.Index("uq_region_keys_current", "region", unique=True, postgresql_where=_CURRENT),
        sa.CheckConstraint("octet_length(wrapped_key) = 60", name="wrapped_key"),
    )

    id: Mapped[UUID] = mapped_column(primary_key=True, default=new_id)
    region: Mapped[str] = mapped_column(sa.String(64))
    wrapped_key: Mapped[bytes]
    since: Mapped[datetime] = mapped_column(server_default=sa.func.now())
    """When the region's first key was made; a rotation hands it on. Of an older object without a key these
    tables know nothing: they may have been restored without their rows, and the sweep leaves it."""
    created_at: Mapped[datetime] = mapped_column(server_default=sa.func.now())
    retired_at: Mapped[datetime | None]
    """Wraps nothing new; the row goes when nothing is wrapped under it any more."""


class TenantKey(Base):
    """A tenant's key in a region. The tenant is an organisation; this feature does not know what that is."""

    __tablename__ = "tenant_keys"
    __table_args__ = (
        sa.Index("uq_tenant_keys_current", "tenant_id", "region", unique=True, postgresql_where=_CURRENT),
        sa.CheckConstraint("octet_length(wrapped_key) = 60", name="wrapped_key"),
    )

    id: Mapped[UUID] = mapped_column(primary_key=True, default=new_id)
    tenant_id: Mapped[UUID]
    region: Mapped[str] = mapped_column(sa.String(64))
    region_key_id: Mapped[UUID] = mapped_column(sa.ForeignKey("region_keys.id"), index=True)
    wrapped_key: Mapped[bytes]
    created_at: Mapped[datetime] = mapped_column(server_default=sa.func.now())
    retired_at: Mapped[datetime | None]


class BlobKey(Base):
    """An object's key, and what it opens. Rows are inserted, wrapped anew and deleted by custody alone."""

    __tablename__ = "blob_keys"
    __table_args__ = (
        sa.UniqueConstraint("tenant_id", "region", "sha256"),
        sa.CheckConstraint("octet_length(wrapped_key) = 60", name="wrapped_key"),
    )

    object_id: Mapped[UUID] = mapped_column(primary_key=True)
    """The object's name in the store; random, so that it tells nothing of the bytes."""
    tenant_id: Mapped[UUID]
    region: Mapped[str] = mapped_column(sa.String(64))
    tenant_key_id: Mapped[UUID] = mapped_column(sa.ForeignKey("tenant_keys.id"), index=True)
    sha256: Mapped[str] = mapped_column(sa.String(64))
    """Of the plain bytes: how everybody else names them. Within a tenant the same bytes are kept once."""
    size_bytes: Mapped[int]
    """Of the plain bytes."""
    wrapped_key: Mapped[bytes]
    put_at: Mapped[datetime] = mapped_column(server_default=sa.func.now())
    """When these bytes came last."""
