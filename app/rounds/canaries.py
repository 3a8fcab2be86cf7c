"""The canaries of a run's rounds: who was drawn, and how all of them score, until the run is over.

Called by the lifecycle, the aggregate job and the audit job only. Who was drawn is as secret as a cohort, the
scores more so: they are encrypted, bound to their round. Coins and directions are kept nowhere.
"""

from __future__ import annotations

from collections.abc import Sequence
from uuid import UUID

import sqlalchemy as sa
from sqlalchemy.orm import Session

from app.core.crypto import Vault
from app.rounds.models import Round, RoundCanaries


def keep_draw(session: Session, round_id: UUID, drawn: Sequence[int]) -> None:
    """Keep which canaries are in a round, in the transaction that plans it."""
    session.add(RoundCanaries(round_id=round_id, drawn=list(drawn)))
    session.flush()


def drawn_for(session: Session, round_id: UUID) -> tuple[int, ...]:
    """The numbers of the canaries in a round; none where its run has none."""
    row = session.get(RoundCanaries, round_id)
    return () if row is None else tuple(row.drawn)


def keep_scores(session: Session, vault: Vault, round_id: UUID, plain: bytes) -> None:
    """Keep how every canary of the run scores in a round, in the transaction that records its candidate."""
    session.get_one(RoundCanaries, round_id).scores = vault.seal(_purpose(round_id), plain)
    session.flush()


def scores_of(session: Session, vault: Vault, run_id: UUID) -> list[bytes]:
    """The scores of all rounds of a run whose noise was drawn, published or not, in the order of rounds."""
    rows = session.scalars(
        sa.select(RoundCanaries)
        .join(Round, Round.id == RoundCanaries.round_id)
        .where(Round.run_id == run_id, RoundCanaries.scores.is_not(None))
        .order_by(Round.number)
    )
    return [vault.unseal(_purpose(row.round_id), row.scores) for row in rows if row.scores is not None]


def forget(session: Session, run_id: UUID) -> None:
    """Delete draws and scores of a run that is over: its audit has been made."""
    of_run = sa.select(Round.id).where(Round.run_id == run_id)
    session.execute(sa.delete(RoundCanaries).where(RoundCanaries.round_id.in_(of_run)))


def _purpose(round_id: UUID) -> str:
    return f"canary-scores/{round_id}"
