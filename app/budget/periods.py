"""What a period has cost accounts, from the ledger's entries. Nothing here writes."""

from __future__ import annotations

from collections.abc import Collection
from datetime import datetime
from uuid import UUID

import sqlalchemy as sa
from sqlalchemy.orm import Session

from app.budget.models import Account, Entry, EntryKind


def hold_accounts(session: Session, client_ids: Collection[UUID]) -> None:
    """Let nobody book on these clients' accounts until the transaction ends; locked in the order of bookings.

    What a period has cost is judged before a run reserves: of two that start at once both would fit else.
    """
    statement = sa.select(Account.id).where(Account.client_id.in_(client_ids)).order_by(Account.id)
    session.execute(statement.with_for_update())


def engaged_since(
    session: Session, account_ids: Collection[UUID], *, since: datetime, beside: str
) -> dict[UUID, int]:
    """By account, the amount that was set aside or spent since then, leaving out what `beside` reserved.

    A reservation of the period counts whole unless it was given back; of an older one, what was spent since.
    """
    draws = _draws(account_ids, since=since)
    counted = sa.case(
        (Entry.at >= since, Entry.amount - sa.func.coalesce(draws.c.given_back, 0)),
        else_=sa.func.coalesce(draws.c.spent, 0),
    )
    rows = session.execute(
        sa.select(Entry.account_id, sa.cast(sa.func.sum(counted), sa.BigInteger))
        .outerjoin(draws, sa.and_(draws.c.account_id == Entry.account_id, draws.c.reserve_ref == Entry.ref))
        .where(Entry.account_id.in_(account_ids), Entry.kind == EntryKind.RESERVE, Entry.ref != beside)
        .group_by(Entry.account_id)
    )
    return {row[0]: row[1] for row in rows}


def _draws(account_ids: Collection[UUID], *, since: datetime) -> sa.Subquery:
    """By reservation, what was given back of it, and what was spent of it since then."""
    total, is_recent = sa.func.sum(Entry.amount), Entry.at >= since
    return (
        sa.select(
            Entry.account_id,
            Entry.reserve_ref,
            total.filter(Entry.kind == EntryKind.VOID).label("given_back"),
            total.filter(Entry.kind == EntryKind.SPEND, is_recent).label("spent"),
        )
        .where(Entry.account_id.in_(account_ids), Entry.reserve_ref.is_not(None))
        .group_by(Entry.account_id, Entry.reserve_ref)
        .subquery()
    )
