"""Reading accounts. Nothing here writes; other features see views, never the tables."""

from __future__ import annotations

from collections.abc import Iterable
from dataclasses import dataclass
from datetime import datetime
from decimal import Decimal
from typing import Any
from uuid import UUID

import sqlalchemy as sa
from sqlalchemy.orm import Session

from app.budget import arithmetic
from app.budget.models import Account, AccountUnit, Entry, EntryKind
from app.core.errors import NotFound
from app.core.i18n import _


@dataclass(frozen=True, slots=True)
class AccountView:
    """An account as other features and readers see it. Integers are the ledger's own units."""

    id: UUID
    organisation_id: UUID
    client_id: UUID | None
    population: str
    kind: str
    unit: str
    order: float | None
    epsilon: float
    delta: float
    ceiling: int
    reserved: int
    spent: int
    delta_ceiling: int
    delta_reserved: int
    delta_spent: int
    entries: int
    head_hash: str
    """Hash of the last entry, which chains all before it."""
    created_at: datetime

    @property
    def left(self) -> int:
        """What a new run may still reserve."""
        return self.ceiling - self.reserved - self.spent

    @property
    def delta_left(self) -> int:
        """The delta that a new run may still reserve."""
        return self.delta_ceiling - self.delta_reserved - self.delta_spent

    def implied_epsilon(self, amount: int) -> Decimal:
        """What an amount of this account means as an epsilon at the account's delta, rounded up."""
        if self.order is None:
            return Decimal(amount).scaleb(-arithmetic.NANO)
        return arithmetic.renyi_epsilon(amount, self.delta, order=self.order)


def covers(unit: str, account_unit: str) -> bool:
    """Say whether a charge for `unit` is one for what the account stands for: a coarser unit covers a finer.

    Whoever protects a client's whole data set protects every person and record in it, not the other way.
    """
    fineness = [member.value for member in AccountUnit]
    return fineness.index(unit) >= fineness.index(account_unit)


def view_of(account: Account) -> AccountView:
    """The view of a row."""
    return AccountView(
        id=account.id,
        organisation_id=account.organisation_id,
        client_id=account.client_id,
        population=account.population,
        kind=account.kind.value,
        unit=account.unit.value,
        order=account.order,
        epsilon=account.epsilon,
        delta=account.delta,
        ceiling=account.ceiling,
        reserved=account.reserved,
        spent=account.spent,
        delta_ceiling=account.delta_ceiling,
        delta_reserved=account.delta_reserved,
        delta_spent=account.delta_spent,
        entries=account.seq,
        head_hash=account.head_hash.hex(),
        created_at=account.created_at,
    )


def account_view(session: Session, account_id: UUID) -> AccountView:
    """One account by id, read afresh; raises NotFound."""
    account = session.scalar(
        sa.select(Account).where(Account.id == account_id).execution_options(populate_existing=True)
    )
    if account is None:
        raise NotFound(_("there is no such account"))
    return view_of(account)


def account_of_client(session: Session, client_id: UUID) -> AccountView:
    """The account that pays for a training client; raises NotFound."""
    account = session.scalar(
        sa.select(Account).where(Account.client_id == client_id).execution_options(populate_existing=True)
    )
    if account is None:
        raise NotFound(_("this client has no privacy account"))
    return view_of(account)


def accounts_of_clients(session: Session, client_ids: list[UUID]) -> dict[UUID, AccountView]:
    """The accounts of several clients, by client; clients without one are missing."""
    rows = session.scalars(sa.select(Account).where(Account.client_id.in_(client_ids)))
    return {row.client_id: view_of(row) for row in rows if row.client_id is not None}


def accounts_reserving(session: Session, ref: str) -> list[AccountView]:
    """The accounts on which something was reserved under `ref`, whoever uses them today."""
    rows = session.scalars(
        sa.select(Account)
        .join(Entry, Entry.account_id == Account.id)
        .where(Entry.kind == EntryKind.RESERVE, Entry.ref == ref)
        .order_by(Account.id)
        .execution_options(populate_existing=True)
    )
    return [view_of(row) for row in rows]


@dataclass(frozen=True, slots=True)
class Reservation:
    """What was set aside on an account, and the parameters that it was priced from."""

    account_id: UUID
    organisation_id: UUID
    order: float | None
    ref: str
    amount: int
    delta_amount: int
    event: dict[str, Any]


def account_ids(session: Session) -> list[UUID]:
    """Every account, in the order of ids."""
    return list(session.scalars(sa.select(Account.id).order_by(Account.id)))


def hold(session: Session, account_id: UUID) -> None:
    """Let nobody write to an account until the transaction ends; others may read it and hold it as well."""
    session.execute(sa.select(Account.id).where(Account.id == account_id).with_for_update(read=True))


def reservations_of(session: Session, account_id: UUID) -> list[Reservation]:
    """Everything that was ever reserved on an account, oldest first."""
    rows = session.execute(
        sa.select(Account, Entry)
        .join(Entry, Entry.account_id == Account.id)
        .where(Account.id == account_id, Entry.kind == EntryKind.RESERVE)
        .order_by(Entry.seq)
    )
    return [
        Reservation(
            account_id=account.id,
            organisation_id=account.organisation_id,
            order=account.order,
            ref=entry.ref,
            amount=entry.amount,
            delta_amount=entry.delta_amount,
            event=entry.event,
        )
        for account, entry in rows
    ]


def clients_on_same_data(session: Session, client_ids: Iterable[UUID]) -> set[UUID]:
    """These clients, and every client that ever used the account of one of them.

    A data set that was enrolled again has another client and the same account: what was done with it before
    counts for whoever holds it now.
    """
    known = set(client_ids)
    takeovers = session.execute(
        sa.select(Entry.account_id, Entry.event["client_id"].as_string(), Entry.event["former"].as_string())
        .where(Entry.kind == EntryKind.GRANT, Entry.ref.startswith("takeover:"))
        .order_by(Entry.account_id, Entry.seq)
    ).all()
    users: dict[UUID, set[UUID]] = {}
    for account_id, heir, former in takeovers:
        users.setdefault(account_id, set()).update(UUID(text) for text in (heir, former) if text)
    for of_one_account in users.values():
        if not known.isdisjoint(of_one_account):
            known |= of_one_account
    return known


def claimed_epsilon(view: AccountView) -> Decimal:
    """What all runs on the population may have cost together, spent and reserved: an upper bound."""
    return view.implied_epsilon(view.spent + view.reserved)
