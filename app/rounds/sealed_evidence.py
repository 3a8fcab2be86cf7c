"""What a `central` round saw of single updates: encrypted, for whoever holds the master key alone.

No endpoint, role, log or metric shows any of it: a norm before clipping is not noised, so that whoever else
saw it would be outside the round's claim. A row has the same length whoever sent, and exists for every round.
All evidence about updates, this and that of other trusts, is deleted after its time.
"""

from __future__ import annotations

import math
import struct
from collections.abc import Sequence
from datetime import timedelta
from uuid import UUID

import sqlalchemy as sa
from sqlalchemy.orm import Session

from app.core.crypto import Vault
from app.core.errors import NotFound
from app.core.i18n import _
from app.rounds.models import Evidence, SealedEvidence

_COUNT, _ENTRY = struct.Struct("<I"), struct.Struct("<16sd")


def keep(
    session: Session,
    vault: Vault,
    round_id: UUID,
    norms: Sequence[tuple[UUID, float | None]],
    *,
    most: int,
) -> None:
    """Keep what was found, in the transaction that ends the aggregation.

    Args:
        norms: client and L2 norm before clipping, parameter units; None where the update is not finite.
        most: the most updates that the round could have had; the row is as long as for so many.
    """
    entries = [_ENTRY.pack(one.bytes, math.nan if norm is None else norm) for one, norm in norms]
    plain = (_COUNT.pack(len(entries)) + b"".join(entries)).ljust(_COUNT.size + _ENTRY.size * most, b"\0")
    session.add(SealedEvidence(round_id=round_id, sealed=vault.seal(_purpose(round_id), plain)))
    session.flush()


def unsealed(session: Session, vault: Vault, round_id: UUID) -> list[tuple[UUID, float | None]]:
    """What was found, by client; raises NotFound where there is nothing (any more), or SealBroken."""
    row = session.get(SealedEvidence, round_id)
    if row is None:
        raise NotFound(_("there is no evidence of this round, or its time is over"))
    plain = vault.unseal(_purpose(round_id), row.sealed)
    (count,) = _COUNT.unpack_from(plain)
    found = [_ENTRY.unpack_from(plain, _COUNT.size + _ENTRY.size * number) for number in range(count)]
    return [(UUID(bytes=raw), None if math.isnan(norm) else norm) for raw, norm in found]


def forget(session: Session, *, older_than: timedelta) -> None:
    """Delete all evidence about updates, sealed or not, whose time is over. Steps of the ladder stay."""
    for table in (SealedEvidence, Evidence):
        session.execute(sa.delete(table).where(table.at < sa.func.now() - older_than))


def _purpose(round_id: UUID) -> str:
    return f"evidence/{round_id}"
