"""Reading accounts. Nothing here writes; other features see views, never the tables."""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from datetime import datetime
from decimal import Decimal
from typing import Any
from uuid import UUID

import sqlalchemy as sa
from sqlalchemy.orm import Session

from app.budget import arithmetic
from app.budget.joint import ZERO_OUT, Paid, Terms
from app.budget.models import Account, Entry, EntryKind
from app.core.errors import NotFound
from app.core.i18n import _
from app.identity.permissions import Scope, scope_of
from app.identity.roles import Principal


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
    def amounts_in(self) -> str:
        """The unit of this account's amounts; costs of the two never mix."""
        return "epsilon" if self.order is None else "renyi_divergence"

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


def covers(terms: Terms, account_unit: str) -> bool:
    """Say whether an account takes charges for a run of these terms: they have to hold for its own unit too.

    So the sum over an account is a guarantee at least for its unit under zero-out.
    """
    return terms.implies(Terms(account_unit, ZERO_OUT))


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


def accounts(principal: Principal, permission: str = "budgets:read") -> sa.Select[Account]:
    """The accounts within the caller's scope; a training client sees its own."""
    statement = sa.select(Account)
    match scope_of(principal, permission):
        case Scope.FEDERATION:
            return statement
        case Scope.ORGANISATION:
            return statement.where(Account.organisation_id == principal.organisation_id)
        case Scope.OWN:
            return statement.where(Account.client_id == principal.id)


def account_for(
    session: Session, principal: Principal, account_id: UUID, permission: str = "budgets:read"
) -> AccountView:
    """One account that the caller may see, read afresh; raises NotFound."""
    statement = accounts(principal, permission).where(Account.id == account_id)
    account = session.scalar(statement.execution_options(populate_existing=True))
    if account is None:
        raise NotFound(_("there is no such account"))
    return view_of(account)


def seen_among(session: Session, principal: Principal, account_ids: Iterable[UUID]) -> set[UUID]:
    """Those of these accounts that the caller may see."""
    statement = accounts(principal).where(Account.id.in_(list(account_ids)))
    return set(session.scalars(statement.with_only_columns(Account.id)))


@dataclass(frozen=True, slots=True, kw_only=True)
class Spending:
    """What one reservation has become. Integers are the ledger's own units."""

    seq: int
    ref: str
    event: dict[str, Any]
    at: datetime
    reserved: int
    """Still set aside."""
    spent: int
    delta_reserved: int
    delta_spent: int
    charges: int
    """How many parts were spent."""
    given_back: bool
    """The client signed that nothing was sent."""


def spendings(session: Session, account_id: UUID, reservations: Sequence[Entry]) -> list[Spending]:
    """What these reservations of an account have become, in their order."""
    drawn = _draws(session, account_id, [one.ref for one in reservations])
    found = []
    for one in reservations:
        charges, spent, delta_spent, given_back = drawn.get(one.ref, (0, 0, 0, False))
        found.append(
            Spending(
                seq=one.seq,
                ref=one.ref,
                event=one.event,
                at=one.at,
                reserved=0 if given_back else one.amount - spent,
                spent=spent,
                delta_reserved=0 if given_back else one.delta_amount - delta_spent,
                delta_spent=delta_spent,
                charges=charges,
                given_back=given_back,
            )
        )
    return found


def spending_under(session: Session, account_id: UUID, ref: str) -> Spending | None:
    """What the reservation of this reference has become; None where there is none."""
    found = session.scalars(
        sa.select(Entry).where(
            Entry.account_id == account_id, Entry.kind == EntryKind.RESERVE, Entry.ref == ref
        )
    ).all()
    return next(iter(spendings(session, account_id, found)), None)


def _draws(session: Session, account_id: UUID, refs: Sequence[str]) -> dict[str, tuple[int, int, int, bool]]:
    """By reservation: parts spent, their amounts and deltas, and whether the rest was given back."""
    is_spend = Entry.kind == EntryKind.SPEND
    rows = session.execute(
        sa.select(
            Entry.reserve_ref,
            sa.func.count().filter(is_spend),
            sa.cast(sa.func.coalesce(sa.func.sum(Entry.amount).filter(is_spend), 0), sa.BigInteger),
            sa.cast(sa.func.coalesce(sa.func.sum(Entry.delta_amount).filter(is_spend), 0), sa.BigInteger),
            sa.func.bool_or(Entry.kind == EntryKind.VOID),
        )
        .where(Entry.account_id == account_id, Entry.reserve_ref.in_(refs))
        .group_by(Entry.reserve_ref)
    )
    return {ref: (charges, spent, delta, voided) for ref, charges, spent, delta, voided in rows}


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


def paid_beside(session: Session, ref: str) -> set[Paid]:
    """What the runs are about, `ref` included, that ever reserved on an account that `ref` reserved on."""
    event, is_reserve = Entry.event, Entry.kind == EntryKind.RESERVE
    same_accounts = sa.select(Entry.account_id).where(is_reserve, Entry.ref == ref)
    rows = session.execute(
        sa.select(
            event["unit"].as_string(),
            event["relation"].as_string(),
            event["trust"].as_string(),
            event["cohort"]["kind"].as_string(),
        )
        .where(Entry.account_id.in_(same_accounts), is_reserve)
        .distinct()
    )
    return {
        Paid(unit, relation, trust, trust == "central" and cohort == "poisson")
        for unit, relation, trust, cohort in rows
    }


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


def is_voided(session: Session, account_id: UUID, ref: str) -> bool:
    """Say whether a reservation was given back under this reference."""
    known = sa.exists().where(Entry.account_id == account_id, Entry.kind == EntryKind.VOID, Entry.ref == ref)
    return bool(session.scalar(sa.select(known)))
