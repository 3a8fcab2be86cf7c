"""What the endpoints of the audit log answer."""

from __future__ import annotations

import json
from datetime import datetime
from typing import Any, Self
from uuid import UUID

from pydantic import BaseModel

from app.audit.keys import public
from app.audit.models import AuditEntry, AuditKey
from app.audit.queries import Receipt


class AuditEntryOut(BaseModel):
    """One act, as it was logged."""

    id: UUID
    at: datetime
    actor: str
    organisation_id: UUID | None
    """Whose act it is; null for the federation's own."""
    action: str
    subject: str
    """What was acted on, as `kind:id`."""
    details: dict[str, Any]
    commitments: dict[str, str]
    """By name, SHA-256 commitments (hex) to what may have to be erased, or is not shown."""
    leaf_index: int | None
    """The entry's place in the tree; null until it has one."""

    @classmethod
    def of(cls, row: AuditEntry) -> Self:
        """From the logged bytes, not from the columns that repeat them."""
        logged = json.loads(row.canonical)
        members = {name: logged[name] for name in cls.model_fields if name != "leaf_index"}
        return cls(**members, leaf_index=row.leaf_index)


class OpeningOut(BaseModel):
    """What a commitment was made to: SHA-256 of prefix, salt, name, a zero byte and the value's bytes."""

    salt: str
    value: Any


class AuditReceiptOut(BaseModel):
    """That an entry is in the log, for whoever knows the log's public key (RFC 9162, 2.1.3)."""

    leaf_index: int
    path: list[str]
    """Hashes (hex) from the leaf's sibling up to the root."""
    checkpoint: str
    """The signed text with the root over it (C2SP tlog-checkpoint)."""

    @classmethod
    def of(cls, receipt: Receipt) -> Self:
        """From a receipt."""
        path = [one.hex() for one in receipt.path]
        return cls(leaf_index=receipt.leaf_index, path=path, checkpoint=receipt.checkpoint)


class AuditEntryInFull(BaseModel):
    """An entry with what proves it."""

    entry: AuditEntryOut
    canonical: str
    """The logged bytes; the leaf is the SHA-256 of a zero byte and them."""
    leaf_hash: str
    openings: dict[str, OpeningOut]
    """What is behind the commitments, without what was erased or is for the operator alone."""
    receipt: AuditReceiptOut | None
    """Null until the entry has its place, within seconds; ask again, or with `wait`."""


class InclusionOut(BaseModel):
    """The proof that a leaf is in the tree of `size` entries."""

    index: int
    size: int
    leaf_hash: str
    path: list[str]


class ConsistencyOut(BaseModel):
    """The proof that the tree of `second` entries begins with that of `first` (RFC 9162, 2.1.4)."""

    first: int
    second: int
    path: list[str]


class AuditKeyOut(BaseModel):
    """A public key of the log."""

    name: str
    public_key: str
    """Raw Ed25519, hex."""
    verifier_key: str
    """The same as tools for signed notes take it."""
    signs_until: datetime | None
    """Null of the current key; a former one signs beside it until then."""

    @classmethod
    def of(cls, row: AuditKey) -> Self:
        """From a row."""
        key = public(row)
        return cls(
            name=key.name, public_key=key.raw.hex(), verifier_key=key.text, signs_until=row.signs_until
        )


class AuditKeySet(BaseModel):
    """Every key that ever signed, the newest first."""

    keys: list[AuditKeyOut]
