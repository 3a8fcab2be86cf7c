"""The hash chain over an account's entries: what it covers, and where it was broken. Writes nothing."""

from __future__ import annotations

import hashlib
from dataclasses import dataclass
from datetime import UTC, datetime
from typing import Any
from uuid import UUID

import sqlalchemy as sa
from sqlalchemy.orm import Session

from app.budget.models import Account, AccountKind, AccountUnit, Entry, EntryKind
from app.core.canonical import canonical_bytes
from app.core.errors import NotFound


@dataclass(frozen=True)
class ChainCheck:
    """The result of walking a chain. `broken_seq` is the first entry that does not hold."""

    entries: int
    broken_seq: int | None = None
    fault: str | None = None

    @property
    def holds(self) -> bool:
        """True if every entry, the head and the sums agree."""
        return self.fault is None


def genesis(
    account_id: UUID, *, kind: AccountKind, order: float | None, population: str, unit: AccountUnit
) -> bytes:
    """What the first entry follows: the account itself, so that its kind cannot be changed unseen.

    The unit that accounts have by default is left out: accounts older than units keep their chains.
    """
    root = {"account_id": str(account_id), "kind": kind.value, "order": order, "population": population}
    if unit is not AccountUnit.EXAMPLE:
        root["unit"] = unit.value
    return hashlib.sha256(canonical_bytes(_plain(root))).digest()


def digest(entry: Entry) -> bytes:
    """SHA-256 of the canonical form of everything in the entry, the previous digest included."""
    columns = ("account_id", "seq", "kind", "ref", "reserve_ref", "amount", "delta_amount")
    rest = ("event", "actor", "at", "prev_hash")
    return digest_of(**{name: getattr(entry, name) for name in (*columns, *rest)})


def digest_of(*, account_id: UUID, kind: EntryKind, at: datetime, prev_hash: bytes, **plain: Any) -> bytes:
    """The digest of an entry by its columns, all but `hash`."""
    covered = plain | {
        "account_id": str(account_id),
        "kind": kind.value,
        "at": at.astimezone(UTC).isoformat(timespec="microseconds"),
        "prev_hash": prev_hash.hex(),
    }
    return hashlib.sha256(canonical_bytes(_plain(covered))).digest()


def _plain(value: Any) -> Any:
    """Whole floats become integers: JSONB does not keep the two apart (1e16 comes back whole)."""
    if isinstance(value, float) and value.is_integer():
        return int(value)
    if isinstance(value, dict):
        return {key: _plain(inner) for key, inner in value.items()}
    if isinstance(value, list | tuple):
        return [_plain(inner) for inner in value]
    return value


def verify_chain(session: Session, account_id: UUID) -> ChainCheck:
    """Walk the chain from the first entry and name the first one that was changed, added or removed."""
    account = session.scalar(
        sa.select(Account).where(Account.id == account_id).execution_options(populate_existing=True)
    )
    if account is None:
        raise NotFound
    head = genesis(
        account.id,
        kind=account.kind,
        order=account.order,
        population=account.population,
        unit=account.unit,
    )
    sums = _Sums()
    rows = session.scalars(
        sa.select(Entry)
        .where(Entry.account_id == account_id)
        .order_by(Entry.seq)
        .execution_options(populate_existing=True)
    ).all()
    seq = 0
    for seq, entry in enumerate(rows, start=1):
        if entry.seq != seq:
            return ChainCheck(seq - 1, seq, "an entry is missing")
        if entry.prev_hash != head:
            return ChainCheck(seq - 1, seq, "the entry does not follow the one before")
        if digest(entry) != entry.hash:
            return ChainCheck(seq - 1, seq, "the entry was changed")
        head = entry.hash
        sums.add(entry)
    if (account.seq, account.head_hash) != (seq, head):
        return ChainCheck(seq, seq + 1, "entries are missing at the end")
    if not sums.match(account):
        return ChainCheck(seq, seq, "the account's sums are not those of its entries")
    return ChainCheck(seq)


@dataclass
class _Sums:
    """The account's columns, added up again from its entries."""

    ceiling: int = 0
    reserved: int = 0
    spent: int = 0
    delta_ceiling: int = 0
    delta_reserved: int = 0
    delta_spent: int = 0

    def add(self, entry: Entry) -> None:
        a, d = entry.amount, entry.delta_amount
        match entry.kind:
            case EntryKind.GRANT:
                self.ceiling, self.delta_ceiling = self.ceiling + a, self.delta_ceiling + d
            case EntryKind.RESERVE:
                self.reserved, self.delta_reserved = self.reserved + a, self.delta_reserved + d
            case EntryKind.SPEND:
                self.reserved, self.delta_reserved = self.reserved - a, self.delta_reserved - d
                self.spent, self.delta_spent = self.spent + a, self.delta_spent + d
            case EntryKind.VOID:
                self.reserved, self.delta_reserved = self.reserved - a, self.delta_reserved - d

    def match(self, account: Account) -> bool:
        return (
            self.ceiling == account.ceiling
            and self.reserved == account.reserved
            and self.spent == account.spent
            and self.delta_ceiling == account.delta_ceiling
            and self.delta_reserved == account.delta_reserved
            and self.delta_spent == account.delta_spent
        )
