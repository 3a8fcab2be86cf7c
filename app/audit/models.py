"""Tables of the audit log: entries and the Merkle tree over them. The database refuses to change either.

A leaf is the SHA-256 of an entry's bytes. What has to be erasable one day, or is for the operator's eyes
alone, lies beside the log: the leaf holds a salted commitment to it.
"""

from __future__ import annotations

from datetime import datetime
from uuid import UUID

import sqlalchemy as sa
from sqlalchemy.orm import Mapped, mapped_column

from app.core.db import Base
from app.core.ids import new_id

MOST_BYTES = 8192
"""An entry's bytes, at most."""


class AuditEntry(Base):
    """One act, in the bytes that its leaf is the hash of. Written by audit.record, placed by audit.sequencer.

    The columns beside `canonical` repeat members of it, to be searched by; what is shown is `canonical`.
    """

    __tablename__ = "audit_entries"
    __table_args__ = (
        sa.CheckConstraint(r"leaf_hash = sha256('\x00'::bytea || canonical)", name="leaf_of_these_bytes"),
        sa.CheckConstraint(f"octet_length(canonical) <= {MOST_BYTES}", name="bounded"),
        sa.CheckConstraint("leaf_index >= 0", name="leaf_index"),
        sa.Index(
            "ix_audit_entries_waiting", "transaction_id", "id", postgresql_where=sa.text("leaf_index IS NULL")
        ),
        sa.Index("ix_audit_entries_organisation", "organisation_id", "id"),
        sa.Index("ix_audit_entries_action", "action", "id"),
        sa.Index("ix_audit_entries_subject", "subject", "id"),
        sa.Index("ix_audit_entries_actor", "actor", "id"),
        sa.Index("ix_audit_entries_at", "at", postgresql_using="brin"),
    )

    id: Mapped[UUID] = mapped_column(primary_key=True, default=new_id)
    at: Mapped[datetime]
    actor: Mapped[str] = mapped_column(sa.String(100))
    organisation_id: Mapped[UUID | None]
    """Whose members may read it; None is the federation's. No foreign key: the log outlives what it tells."""
    action: Mapped[str] = mapped_column(sa.String(64))
    subject: Mapped[str] = mapped_column(sa.String(200))
    """What was acted on, as `kind:id`."""
    canonical: Mapped[bytes]
    """The entry as JSON in its one byte form (RFC 8785)."""
    leaf_hash: Mapped[bytes]
    transaction_id: Mapped[int] = mapped_column(server_default=sa.text("pg_current_xact_id()::text::bigint"))
    """The transaction of the act: entries take their place in the order of transactions."""
    leaf_index: Mapped[int | None] = mapped_column(unique=True)
    """Its place in the tree, from 0; None until the sequencer has come by. Set once."""


class AuditPersonal(Base):
    """The opening of a commitment in an entry. Deleting the row erases it, and leaves the tree valid."""

    __tablename__ = "audit_personal"
    __table_args__ = (sa.CheckConstraint("octet_length(salt) = 32", name="salt"),)

    entry_id: Mapped[UUID] = mapped_column(sa.ForeignKey("audit_entries.id"), primary_key=True)
    name: Mapped[str] = mapped_column(sa.String(40), primary_key=True)
    salt: Mapped[bytes]
    clear: Mapped[bytes]
    """The value as JSON in its one byte form."""
    concealed: Mapped[bool]
    """For the operator alone: no endpoint, export or role shows it."""


class AuditNode(Base):
    """The hash over 2^level leaves, from leaf `index` * 2^level on. Leaves are in their entries."""

    __tablename__ = "audit_nodes"
    __table_args__ = (
        sa.CheckConstraint("octet_length(hash) = 32", name="sha256"),
        sa.CheckConstraint('level > 0 AND "index" >= 0', name="place"),
    )

    level: Mapped[int] = mapped_column(sa.SmallInteger, primary_key=True, autoincrement=False)
    index: Mapped[int] = mapped_column(primary_key=True, autoincrement=False)
    hash: Mapped[bytes]


class AuditCheckpoint(Base):
    """The tree at one size, signed. There is one for each size that it was ever shown at."""

    __tablename__ = "audit_checkpoints"
    __table_args__ = (
        sa.CheckConstraint("octet_length(root) = 32", name="sha256"),
        sa.CheckConstraint("size > 0", name="size"),
    )

    size: Mapped[int] = mapped_column(primary_key=True, autoincrement=False)
    root: Mapped[bytes]
    note: Mapped[str]
    """The signed text (C2SP tlog-checkpoint)."""
    at: Mapped[datetime] = mapped_column(server_default=sa.func.clock_timestamp())


class AuditKey(Base):
    """An Ed25519 key that signs checkpoints: one without end, and former ones for as long as they overlap."""

    __tablename__ = "audit_keys"
    __table_args__ = (
        sa.CheckConstraint("octet_length(public_key) = 32", name="ed25519_key"),
        sa.Index(
            "uq_audit_keys_current",
            sa.text("(true)"),
            unique=True,
            postgresql_where=sa.text("signs_until IS NULL"),
        ),
    )

    id: Mapped[UUID] = mapped_column(primary_key=True, default=new_id)
    name: Mapped[str] = mapped_column(sa.String(200))
    """The origin of the log, which its signatures name."""
    public_key: Mapped[bytes]
    sealed_private_key: Mapped[bytes]
    signs_until: Mapped[datetime | None]
    created_at: Mapped[datetime] = mapped_column(server_default=sa.func.now())
