"""The table of updates: what a client sent for a round."""

from __future__ import annotations

from datetime import datetime
from enum import StrEnum
from uuid import UUID

import sqlalchemy as sa
from sqlalchemy.orm import Mapped, mapped_column

from app.core.db import Base, enum_type


class UpdateState(StrEnum):
    """Where an update is."""

    RECEIVING = "receiving"  # the PUT began: the budget is spent, the bytes are not whole yet
    RECEIVED = "received"  # whole, checked and part of the round
    REJECTED = "rejected"  # not part of the aggregate; the row says why


class Update(Base):
    """One client's contribution to one round, at most one ever. Written by updates.service.

    Of a buffered run it may move on to a later round as long as its bytes are not whole; never after.
    """

    __tablename__ = "updates"
    __table_args__ = (
        sa.UniqueConstraint("round_id", "client_id"),
        sa.UniqueConstraint("base_round_id", "client_id"),
        sa.UniqueConstraint("client_id", "signature_nonce"),
        sa.CheckConstraint("state <> 'received' OR blob_sha256 IS NOT NULL", name="received_has_bytes"),
    )

    id: Mapped[UUID] = mapped_column(primary_key=True)
    """Chosen by the client, so that a repeated PUT is the same PUT."""
    round_id: Mapped[UUID] = mapped_column(sa.ForeignKey("rounds.id"))
    client_id: Mapped[UUID] = mapped_column(sa.ForeignKey("clients.id"), index=True)
    organisation_id: Mapped[UUID] = mapped_column(sa.ForeignKey("organisations.id"))
    """Whose bytes these are, and under whose key they lie: the client's organisation when it sent them."""
    base_round_id: Mapped[UUID | None] = mapped_column(sa.ForeignKey("rounds.id"))
    """In buffered runs, the round from whose adapter it was trained; None: from its own round's."""
    state: Mapped[UpdateState] = mapped_column(enum_type(UpdateState), default=UpdateState.RECEIVING)
    declared_sha256: Mapped[str] = mapped_column(sa.String(64))
    """The digest that the first PUT announced; only these bytes are ever taken."""
    blob_sha256: Mapped[str | None] = mapped_column(sa.String(64), index=True)
    size_bytes: Mapped[int | None]
    signature_input: Mapped[str | None] = mapped_column(sa.String(1000))
    """What the client's key signed of the request's head (RFC 9421); with `signature` and the digest it is
    evidence of who sent which bytes. None where development goes without."""
    signature: Mapped[str | None] = mapped_column(sa.String(1000))
    signature_nonce: Mapped[str | None] = mapped_column(sa.String(100))
    reject_code: Mapped[str | None] = mapped_column(sa.String(64))
    created_at: Mapped[datetime] = mapped_column(server_default=sa.func.now())
    received_at: Mapped[datetime | None]


class UpdateMean(Base):
    """A client's mean update after a round of a run whose rule remembers; its bytes are in a blob.

    Written by the aggregate job. The sweep deletes it with its bytes once a later round has another, or the
    run is over: app/updates/means.py.
    """

    __tablename__ = "update_means"
    __table_args__ = (sa.CheckConstraint("weight >= 1", name="weight"),)

    round_id: Mapped[UUID] = mapped_column(sa.ForeignKey("rounds.id"), primary_key=True)
    client_id: Mapped[UUID] = mapped_column(sa.ForeignKey("clients.id"), primary_key=True, index=True)
    organisation_id: Mapped[UUID] = mapped_column(sa.ForeignKey("organisations.id"))
    """Under whose key the bytes lie: the client's organisation when it sent the round's update."""
    blob_sha256: Mapped[str] = mapped_column(sa.String(64))
    weight: Mapped[float]
    """Of all rounds in it together, where the last one counts 1."""
