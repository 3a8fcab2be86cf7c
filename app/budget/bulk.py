"""Booking one thing on many accounts at once: a run's reservation, and a round that charges every client.

The same rules and the same hash-chained entries as in ledger.py, in a number of statements that does not
grow with the number of accounts. All accounts or none: what is refused leaves nothing. It commits nothing.
"""

from __future__ import annotations

from collections.abc import Collection, Mapping, Sequence
from dataclasses import dataclass
from datetime import datetime
from typing import Any
from uuid import UUID

import sqlalchemy as sa
from sqlalchemy.dialects.postgresql import ARRAY
from sqlalchemy.orm import Session

from app.budget import arithmetic, chain
from app.budget.errors import BudgetExceeded, LedgerConflict, NotReserved
from app.budget.models import Account, Entry, EntryKind
from app.core.clock import now
from app.core.errors import Invalid, NotFound
from app.core.i18n import _

Amounts = tuple[int, int]
"""An amount and a delta in the ledger's units."""


@dataclass(frozen=True, slots=True, kw_only=True)
class _Held:
    """An account's row, under its lock."""

    id: UUID
    seq: int
    head_hash: bytes
    left: int
    delta_left: int


@dataclass(frozen=True, slots=True, kw_only=True)
class _Drawn:
    """What was booked on a reservation so far."""

    parts: int = 0
    amount: int = 0
    delta_amount: int = 0
    voided: bool = False


def reserve_run(
    session: Session, *, charges: Mapping[UUID, Amounts], ref: str, event: dict[str, Any], actor: str
) -> int:
    """Reserve on every account, by account id, or on none; returns how many entries were added.

    An account on which `ref` was reserved before, with the same amounts, is left as it is.

    Raises:
        BudgetExceeded: at least one account does not cover it. Says how many, never whose.
        LedgerConflict: the reference was booked with other amounts.
        Invalid: an amount is negative or too large; NotFound: there is no such account.
    """
    for amounts in charges.values():
        _require_sound(amounts)
    held = _lock(session, charges)
    known = _booked(session, charges, EntryKind.RESERVE, ref)
    if any(known[account_id] != charges[account_id] for account_id in known):
        raise LedgerConflict(_("{ref} was booked before with other amounts"), ref=ref)
    fresh = [row for row in held if row.id not in known]
    uncovered = sum(charges[row.id][0] > row.left or charges[row.id][1] > row.delta_left for row in fresh)
    if uncovered:
        raise BudgetExceeded(_("{accounts} account(s) do not cover this"), accounts=uncovered)
    at = now()
    entries = [
        _entry(row, EntryKind.RESERVE, ref, charges[row.id], event=event, actor=actor, at=at) for row in fresh
    ]
    _add(session, entries)
    return len(entries)


def spend_round(
    session: Session,
    *,
    account_ids: Collection[UUID],
    ref: str,
    reserve_ref: str,
    parts: Sequence[Amounts],
    event: dict[str, Any],
    actor: str,
) -> int:
    """Spend the next of a reservation's parts on every account; returns how many entries were added.

    What `ledger.spend_next` does on one account: each account's own first spend takes the first part, and
    an account on which `ref` was spent before is left as it is.

    Raises:
        NotReserved: an account has no such reservation, or has spent, or given back, all of it.
        NotFound: there is no such account.
    """
    held = _lock(session, account_ids)
    known = _booked(session, account_ids, EntryKind.SPEND, ref)
    reserved = _booked(session, account_ids, EntryKind.RESERVE, reserve_ref)
    drawn = _drawn(session, account_ids, reserve_ref)
    at = now()
    entries = []
    for row in held:
        if row.id in known:
            continue
        so_far = drawn.get(row.id, _Drawn())
        amounts = _next_part(parts, so_far, reserved.get(row.id))
        numbered = {**event, "part": so_far.parts + 1, "parts": len(parts)}
        entry = _entry(row, EntryKind.SPEND, ref, amounts, event=numbered, actor=actor, at=at)
        entries.append(entry | {"reserve_ref": reserve_ref})
    _add(session, entries)
    return len(entries)


def _next_part(parts: Sequence[Amounts], drawn: _Drawn, reserved: Amounts | None) -> Amounts:
    """The part that an account pays now; never more than its reservation still holds."""
    if reserved is None or drawn.voided:
        raise NotReserved(_("there is no such reservation"))
    if drawn.parts >= len(parts):
        raise NotReserved(_("every part of this reservation is spent"))
    amount, delta_amount = parts[drawn.parts]
    _require_sound((amount, delta_amount))
    if drawn.amount + amount > reserved[0] or drawn.delta_amount + delta_amount > reserved[1]:
        raise NotReserved(_("the reservation does not hold that much any more"))
    return amount, delta_amount


def _require_sound(amounts: Amounts) -> None:
    if not all(0 <= amount <= arithmetic.MAX_AMOUNT for amount in amounts):
        raise Invalid(_("an amount is negative or too large for the ledger"))


def _among(ids: Collection[UUID]) -> sa.ColumnElement[Any]:
    """One array instead of thousands of parameters."""
    return sa.any_(sa.literal(list(ids), ARRAY(sa.Uuid())))


def _lock(session: Session, ids: Collection[UUID]) -> list[_Held]:
    """Lock the accounts, in the order of their ids so that two callers never wait for each other."""
    rows = session.execute(
        sa.select(
            Account.id,
            Account.seq,
            Account.head_hash,
            Account.ceiling - Account.spent - Account.reserved,
            Account.delta_ceiling - Account.delta_spent - Account.delta_reserved,
        )
        .where(Account.id == _among(ids))
        .order_by(Account.id)
        .with_for_update()
    ).all()
    if len(rows) != len(set(ids)):
        raise NotFound(_("there is no such account"))
    return [
        _Held(id=id_, seq=seq, head_hash=head_hash, left=left, delta_left=delta_left)
        for id_, seq, head_hash, left, delta_left in rows
    ]


def _booked(session: Session, ids: Collection[UUID], kind: EntryKind, ref: str) -> dict[UUID, Amounts]:
    rows = session.execute(
        sa.select(Entry.account_id, Entry.amount, Entry.delta_amount).where(
            Entry.account_id == _among(ids), Entry.kind == kind, Entry.ref == ref
        )
    )
    return {account_id: (amount, delta_amount) for account_id, amount, delta_amount in rows}


def _drawn(session: Session, ids: Collection[UUID], reserve_ref: str) -> dict[UUID, _Drawn]:
    rows = session.execute(
        sa.select(
            Entry.account_id,
            sa.func.count().filter(Entry.kind == EntryKind.SPEND),
            sa.cast(sa.func.sum(Entry.amount), sa.BigInteger),
            sa.cast(sa.func.sum(Entry.delta_amount), sa.BigInteger),
            sa.func.bool_or(Entry.kind == EntryKind.VOID),
        )
        .where(Entry.account_id == _among(ids), Entry.reserve_ref == reserve_ref)
        .group_by(Entry.account_id)
    )
    return {
        account_id: _Drawn(parts=parts, amount=amount, delta_amount=delta_amount, voided=voided)
        for account_id, parts, amount, delta_amount, voided in rows
    }


def _entry(
    row: _Held,
    kind: EntryKind,
    ref: str,
    amounts: Amounts,
    *,
    event: dict[str, Any],
    actor: str,
    at: datetime,
) -> dict[str, Any]:
    """An entry's columns, all but its hash."""
    return {
        "account_id": row.id,
        "seq": row.seq + 1,
        "kind": kind,
        "ref": ref,
        "reserve_ref": None,
        "amount": amounts[0],
        "delta_amount": amounts[1],
        "event": event,
        "actor": actor,
        "at": at,
        "prev_hash": row.head_hash,
    }


def _add(session: Session, entries: list[dict[str, Any]]) -> None:
    """Chain the entries, add them, and move every account's sums by one UPDATE whose WHERE is the rule."""
    if not entries:
        return
    for entry in entries:
        entry["hash"] = chain.digest_of(**entry)
    moved = session.scalars(_movement(entries)).all()
    if len(moved) != len(entries):
        raise LedgerConflict(_("an account changed under its lock"))
    session.execute(sa.insert(Entry), entries)
    for row in session.identity_map.values():
        if isinstance(row, Account):
            session.expire(row)


def _movement(entries: list[dict[str, Any]]) -> sa.UpdateBase:
    """UPDATE accounts FROM the entries: spends move reserved to spent, reservations add to reserved."""
    is_spend = entries[0]["kind"] is EntryKind.SPEND
    columns: dict[str, Any] = {
        "account_id": sa.Uuid(),
        "seq": sa.BigInteger(),
        "amount": sa.BigInteger(),
        "delta_amount": sa.BigInteger(),
        "hash": sa.LargeBinary(),
    }
    arrays = (sa.literal([entry[name] for entry in entries], ARRAY(kind)) for name, kind in columns.items())
    new = (
        sa.func.unnest(*arrays)
        .table_valued(*(sa.column(name, kind) for name, kind in columns.items()))
        .render_derived(name="booked")
    )
    sign = -1 if is_spend else 1
    change = sa.update(Account).where(Account.id == new.c.account_id, Account.seq == new.c.seq - 1)
    if is_spend:
        change = change.values(
            spent=Account.spent + new.c.amount, delta_spent=Account.delta_spent + new.c.delta_amount
        )
    return (
        change.values(
            reserved=Account.reserved + sign * new.c.amount,
            delta_reserved=Account.delta_reserved + sign * new.c.delta_amount,
            seq=new.c.seq,
            head_hash=new.c.hash,
        )
        .execution_options(synchronize_session=False)
        .returning(Account.id)
    )
