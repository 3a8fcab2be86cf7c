"""The secret that a sealed round's noise is derived from. Called by the lifecycle and the aggregate job only.

One per round, 32 bytes of the operating system, encrypted under the master key, bound to its round, and
deleted when the round is over. Who has it, and the sealed updates, can take a release's noise away.
"""

from __future__ import annotations

import secrets
from uuid import UUID

import sqlalchemy as sa
from sqlalchemy.orm import Session

from app.core.crypto import Vault
from app.core.errors import Conflict
from app.core.i18n import _
from app.rounds.models import RoundSecret

SECRET_BYTES = 32


def make(session: Session, vault: Vault, round_id: UUID) -> None:
    """Draw a round's secret, in the transaction that seals the round. A second one is refused by its key."""
    plain = secrets.token_bytes(SECRET_BYTES)
    session.add(RoundSecret(round_id=round_id, sealed=vault.seal(_purpose(round_id), plain)))
    session.flush()


def unseal(session: Session, vault: Vault, round_id: UUID) -> bytes:
    """Read a round's secret; raises Conflict when it has none (any more)."""
    row = session.get(RoundSecret, round_id)
    if row is None:
        raise Conflict(_("the round has no noise secret"))
    return vault.unseal(_purpose(round_id), row.sealed)


def destroy(session: Session, round_id: UUID) -> None:
    """Delete a round's secret, if it has one: its noise was drawn, and is never drawn again."""
    session.execute(sa.delete(RoundSecret).where(RoundSecret.round_id == round_id))


def _purpose(round_id: UUID) -> str:
    return f"round-secret/{round_id}"
