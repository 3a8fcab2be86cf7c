"""Bodies of the endpoints of updates."""

from __future__ import annotations

from datetime import datetime
from typing import Annotated, Self
from uuid import UUID

from pydantic import BaseModel, ConfigDict, Field, StringConstraints

from app.budget.queries import AccountView
from app.budget.schemas import AccountOut
from app.core.strict import StrictModel
from app.updates.models import Update, UpdateState

_ID = "01976c5e-8d2b-7c3a-9f4e-2b6d1a0c9e77"
_STATEMENT = f"nothing was sent for run {_ID} by client {_ID} and nothing will be"


class Receipt(BaseModel):
    """The server has the update, whole; the same again for the same bytes."""

    update_id: UUID
    round_id: UUID
    state: UpdateState
    sha256: str
    size_bytes: int
    received_at: datetime
    account: AccountOut | None
    """Where the data set's budget stands on the server; null where the run uses none."""
    audit_entry_id: UUID | None
    """The update's entry in the audit log, whose receipt GET /v1/audit/entries/{entry_id} gives; null of a
    secret cohort, whose members are in no log."""

    @classmethod
    def of(cls, update: Update, account: AccountView | None, *, audit_entry_id: UUID | None) -> Self:
        """From an update that was received."""
        return cls.model_validate(
            {
                "update_id": update.id,
                "round_id": update.round_id,
                "state": update.state,
                "sha256": update.declared_sha256,
                "size_bytes": update.size_bytes,
                "received_at": update.received_at,
                "account": None if account is None else AccountOut.of(account),
                "audit_entry_id": audit_entry_id,
            }
        )


class UpdateView(BaseModel):
    """Where an update is."""

    model_config = ConfigDict(from_attributes=True)

    id: UUID
    round_id: UUID
    client_id: UUID
    base_round_id: UUID | None
    """In a buffered run, the round from whose adapter it was trained; null: from its own round's."""
    state: UpdateState
    """`receiving`: its PUT began and the budget is spent, but the bytes are not whole; send them again."""
    declared_sha256: str
    size_bytes: int | None
    reject_code: str | None
    created_at: datetime
    received_at: datetime | None


class DisclaimerIn(StrictModel):
    """A client's signed word that it sent nothing at all for a run."""

    model_config = ConfigDict(
        json_schema_extra={
            "examples": [
                {"statement": _STATEMENT, "signature": "A" * 86},
            ]
        }
    )

    statement: Annotated[str, Field(strict=True, min_length=1, max_length=200, pattern=r"^[\x20-\x7e]+$")]
    """Exactly `nothing was sent for run <run id> by client <client id> and nothing will be`."""
    signature: Annotated[str, StringConstraints(strict=True, pattern=r"^[A-Za-z0-9_-]{86}(==)?$")]
    """base64url of the Ed25519 signature over the statement's bytes."""
