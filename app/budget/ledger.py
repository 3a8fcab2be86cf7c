"""The privacy ledger: the only writer of accounts and entries. It commits nothing.

Every verb takes the account's row lock, changes the sums by one UPDATE whose WHERE is the rule, and adds
one entry to the hash chain. Calling a verb twice with the same `ref` is calling it once.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import asdict, dataclass
from typing import Any
from uuid import UUID

import sqlalchemy as sa
from sqlalchemy.dialects.postgresql import insert
from sqlalchemy.orm import Session

from app.budget import arithmetic, chain, errors
from app.budget.errors import LedgerConflict, NotReserved, PopulationTaken
from app.budget.models import Account, AccountKind, AccountUnit, Entry, EntryKind
from app.budget.noting import note_grant
from app.budget.projection import refusal
from app.budget.queries import view_of
from app.core.clock import now
from app.core.errors import Invalid, NotFound
from app.core.i18n import _
from app.core.ids import new_id
from app.identity.models import Client, ClientState, Organisation


@dataclass(frozen=True)
class _Booking:
    """What is to become an entry."""

    kind: EntryKind
    ref: str
    amount: int
    delta_amount: int
    event: dict[str, Any]
    actor: str
    reserve_ref: str | None = None


def open_account(
    session: Session,
    *,
    organisation_id: UUID,
    client_id: UUID | None,
    population: str,
    kind: AccountKind | str,
    epsilon: float,
    delta: float,
    order: float | None = None,
    unit: AccountUnit | str = AccountUnit.EXAMPLE,
    actor: str,
) -> UUID:
    """Open the account of a data population with its first grant, or find the one that it has.

    A second enrolment on the same population takes the old account over as it is: what was spent stays
    spent and nothing is granted anew. Raises PopulationTaken while the former client is active.
    """
    kind, unit = AccountKind(kind), AccountUnit(unit)
    if (kind is AccountKind.RENYI) != (order is not None):
        raise Invalid(_("a renyi account names its order, a basic one has none"))
    amount, delta_amount = granted(kind, epsilon, delta, order)
    owner = {"organisation_id": organisation_id, "client_id": client_id, "population": population}
    created = _insert_account(session, owner, kind=kind, order=order, delta=delta, unit=unit)
    if created is None:
        account = _of_population(session, organisation_id, population)
        return _take_over(session, account, client_id=client_id, adds_up=(kind, order, unit), actor=actor)
    require_within_organisation(session, organisation_id, epsilon=epsilon)
    event = {"epsilon": epsilon, "delta": delta, "order": order, "reason": "opening"}
    opening = _Booking(EntryKind.GRANT, "opening", amount, delta_amount, event, actor)
    _append(session, created, opening)
    return created


def require_within_organisation(session: Session, organisation_id: UUID, *, epsilon: float) -> None:
    """Refuse a total grant of `epsilon` above what the organisation allows any of its accounts."""
    most = session.scalar(sa.select(Organisation.epsilon_ceiling).where(Organisation.id == organisation_id))
    if most is not None and arithmetic.ceiling(epsilon) > arithmetic.ceiling(most):
        raise errors.CeilingOverOrganisation(_("at most epsilon {most} may be granted"), most=most)


def _insert_account(
    session: Session,
    owner: dict[str, Any],
    *,
    kind: AccountKind,
    order: float | None,
    delta: float,
    unit: AccountUnit,
) -> UUID | None:
    """Make an empty account, or None when the population has one."""
    account_id = new_id()
    head = chain.genesis(account_id, kind=kind, order=order, population=owner["population"], unit=unit)
    terms = {"kind": kind, "order": order, "unit": unit, "epsilon": 0.0, "delta": delta}
    created: UUID | None = session.scalar(
        insert(Account)
        .values(id=account_id, head_hash=head, **terms, **owner)
        .on_conflict_do_nothing(index_elements=["organisation_id", "population"])
        .returning(Account.id)
    )
    return created


def _of_population(session: Session, organisation_id: UUID, population: str) -> Account:
    return session.scalars(
        sa.select(Account)
        .where(Account.organisation_id == organisation_id, Account.population == population)
        .with_for_update()
        .execution_options(populate_existing=True)
    ).one()


def _take_over(
    session: Session,
    account: Account,
    *,
    client_id: UUID | None,
    adds_up: tuple[AccountKind, float | None, AccountUnit],
    actor: str,
) -> UUID:
    account_id = account.id
    if (account.kind, account.order, account.unit) != adds_up:
        raise PopulationTaken(_("this data set's account adds up otherwise: {kind}"), kind=account.kind.value)
    if account.client_id == client_id:
        return account_id
    former = session.get(Client, account.client_id) if account.client_id else None
    if former is not None and former.state is ClientState.ACTIVE:
        raise PopulationTaken(_("another active client uses this data set"))
    account.client_id = client_id
    session.flush()
    event = {
        "epsilon": 0.0,
        "delta": 0.0,
        "reason": "taken over",
        "client_id": None if client_id is None else str(client_id),
        "former": None if former is None else str(former.id),
    }
    booking = _Booking(
        kind=EntryKind.GRANT,
        ref=f"takeover:{client_id}",
        amount=0,
        delta_amount=0,
        event=event,
        actor=actor,
    )
    _append(session, account_id, booking)
    return account_id


def granted(kind: AccountKind, epsilon: float, delta: float, order: float | None) -> tuple[int, int]:
    """The ceiling, and that of delta, which a first grant of (epsilon, delta) opens an account with."""
    if kind is AccountKind.RENYI and order is not None:
        return arithmetic.renyi_ceiling(epsilon, delta, order=order), 0
    return arithmetic.ceiling(epsilon), arithmetic.delta_ceiling(delta)


def grant(
    session: Session, account_id: UUID, *, ref: str, epsilon: float, delta: float, reason: str, actor: str
) -> Entry:
    """Lift the ceiling by `epsilon` (and, in a basic account, by `delta`)."""
    account = _locked(session, account_id)
    if account.kind is AccountKind.RENYI and delta:
        raise Invalid(_("the delta of a renyi account is fixed when it is opened"))
    if epsilon > 0:
        total = account.epsilon + epsilon
        require_within_organisation(session, account.organisation_id, epsilon=total)
    amount = arithmetic.ceiling(epsilon)
    delta_amount = arithmetic.delta_ceiling(delta)
    if amount == 0 and delta_amount == 0:
        raise Invalid(_("a grant must grant something"))
    if account.delta_ceiling + delta_amount >= arithmetic.DELTA_ONE:
        raise arithmetic.AmountInvalid(_("delta must be below 1"))
    if account.ceiling + amount > arithmetic.MAX_AMOUNT:
        raise arithmetic.AmountInvalid(_("a privacy amount is too large for the ledger"))
    booking = _Booking(
        kind=EntryKind.GRANT,
        ref=ref,
        amount=amount,
        delta_amount=delta_amount,
        event={"epsilon": epsilon, "delta": delta, "order": account.order, "reason": reason},
        actor=actor,
    )
    return _append(session, account_id, booking)


def reserve(
    session: Session,
    account_id: UUID,
    *,
    ref: str,
    amount: int,
    delta_amount: int,
    event: dict[str, Any],
    actor: str,
) -> Entry:
    """Set budget aside for a whole schedule; raises BudgetExceeded."""
    booking = _Booking(
        kind=EntryKind.RESERVE, ref=ref, amount=amount, delta_amount=delta_amount, event=event, actor=actor
    )
    return _append(session, account_id, booking)


def spend(
    session: Session,
    account_id: UUID,
    *,
    ref: str,
    reserve_ref: str,
    amount: int,
    delta_amount: int,
    event: dict[str, Any],
    actor: str,
) -> Entry:
    """Turn reserved into spent, for ever; raises NotReserved beyond the reservation."""
    booking = _Booking(
        kind=EntryKind.SPEND,
        ref=ref,
        reserve_ref=reserve_ref,
        amount=amount,
        delta_amount=delta_amount,
        event=event,
        actor=actor,
    )
    return _append(session, account_id, booking)


def spend_next(
    session: Session,
    account_id: UUID,
    *,
    ref: str,
    reserve_ref: str,
    parts: Sequence[tuple[int, int]],
    event: dict[str, Any],
    actor: str,
) -> Entry:
    """Spend the next of a reservation's `parts` (amount, delta): the first spend takes the first part.

    Which part is next is read under the account's lock. A `ref` that was booked before is that entry.
    """
    _locked(session, account_id)
    known = find(session, account_id, EntryKind.SPEND, ref)
    if known is not None:
        return known
    done = session.scalars(
        sa.select(sa.func.count())
        .select_from(Entry)
        .where(
            Entry.account_id == account_id, Entry.reserve_ref == reserve_ref, Entry.kind == EntryKind.SPEND
        )
    ).one()
    if done >= len(parts):
        raise NotReserved(_("every part of this reservation is spent"))
    amount, delta_amount = parts[done]
    return spend(
        session,
        account_id,
        ref=ref,
        reserve_ref=reserve_ref,
        amount=amount,
        delta_amount=delta_amount,
        event={**event, "part": done + 1, "parts": len(parts)},
        actor=actor,
    )


def void(
    session: Session, account_id: UUID, *, ref: str, reserve_ref: str, event: dict[str, Any], actor: str
) -> Entry:
    """Give a reservation back whole: only if nothing of it was ever spent (NotReserved)."""
    _locked(session, account_id)
    reserved = find(session, account_id, EntryKind.RESERVE, reserve_ref)
    if reserved is None:
        raise NotReserved(_("there is no such reservation"))
    booking = _Booking(
        kind=EntryKind.VOID,
        ref=ref,
        reserve_ref=reserve_ref,
        amount=reserved.amount,
        delta_amount=reserved.delta_amount,
        event=event,
        actor=actor,
    )
    return _append(session, account_id, booking)


def find(session: Session, account_id: UUID, kind: EntryKind, ref: str) -> Entry | None:
    """The entry of this kind and reference, if it was booked."""
    return session.scalar(
        sa.select(Entry).where(Entry.account_id == account_id, Entry.kind == kind, Entry.ref == ref)
    )


def _locked(session: Session, account_id: UUID) -> Account:
    account = session.scalar(
        sa.select(Account)
        .where(Account.id == account_id)
        .with_for_update()
        .execution_options(populate_existing=True)
    )
    if account is None:
        raise NotFound(_("there is no such account"))
    return account


def _append(session: Session, account_id: UUID, booking: _Booking) -> Entry:
    """Lock, look for the same booking, change the sums under their rule, add the entry."""
    amounts = (booking.amount, booking.delta_amount)
    if not all(0 <= amount <= arithmetic.MAX_AMOUNT for amount in amounts):
        raise Invalid(_("an amount is negative or too large for the ledger"))
    account = _locked(session, account_id)
    organisation_id = account.organisation_id
    known = find(session, account_id, booking.kind, booking.ref)
    if known is not None:
        if (known.amount, known.delta_amount, known.reserve_ref) != (*amounts, booking.reserve_ref):
            raise LedgerConflict(_("{ref} was booked before with other amounts"), ref=booking.ref)
        return known
    if booking.reserve_ref is not None:
        _check_drawn(session, account_id, booking)
    entry = Entry(
        **asdict(booking),
        account_id=account_id,
        seq=account.seq + 1,
        at=now(),
        prev_hash=account.head_hash,
    )
    entry.hash = chain.digest(entry)
    _book(session, account, entry)
    session.add(entry)
    session.flush()
    if entry.kind is EntryKind.GRANT:
        note_grant(session, organisation_id, entry)
    return entry


def _check_drawn(session: Session, account_id: UUID, booking: _Booking) -> None:
    """A spend or void may take only what its own reservation still holds, never another run's."""
    reserved = find(session, account_id, EntryKind.RESERVE, booking.reserve_ref or "")
    if reserved is None:
        raise NotReserved(_("there is no such reservation"))
    count, drawn, delta_drawn = session.execute(
        sa.select(
            sa.func.count(),
            sa.func.coalesce(sa.func.sum(Entry.amount), 0),
            sa.func.coalesce(sa.func.sum(Entry.delta_amount), 0),
        ).where(Entry.account_id == account_id, Entry.reserve_ref == booking.reserve_ref)
    ).one()
    if booking.kind is EntryKind.VOID and count:
        raise NotReserved(_("part of this reservation was spent or given back already"))
    if drawn + booking.amount > reserved.amount or delta_drawn + booking.delta_amount > reserved.delta_amount:
        raise NotReserved(_("the reservation does not hold that much any more"))


def _book(session: Session, account: Account, entry: Entry) -> None:
    """One UPDATE, whose WHERE is the rule; the row is locked, so losing it means the rule refused."""
    a, d = entry.amount, entry.delta_amount
    change = sa.update(Account).where(Account.id == account.id, Account.seq == entry.seq - 1)
    match entry.kind:
        case EntryKind.GRANT:
            change = change.values(
                ceiling=Account.ceiling + a,
                delta_ceiling=Account.delta_ceiling + d,
                epsilon=Account.epsilon + entry.event["epsilon"],
                delta=Account.delta if entry.seq == 1 else Account.delta + entry.event["delta"],
            )
        case EntryKind.RESERVE:
            change = change.where(
                Account.spent + Account.reserved + a <= Account.ceiling,
                Account.delta_spent + Account.delta_reserved + d <= Account.delta_ceiling,
            ).values(reserved=Account.reserved + a, delta_reserved=Account.delta_reserved + d)
        case EntryKind.SPEND:
            change = change.where(Account.reserved >= a, Account.delta_reserved >= d).values(
                reserved=Account.reserved - a,
                spent=Account.spent + a,
                delta_reserved=Account.delta_reserved - d,
                delta_spent=Account.delta_spent + d,
            )
        case EntryKind.VOID:
            change = change.where(Account.reserved >= a, Account.delta_reserved >= d).values(
                reserved=Account.reserved - a, delta_reserved=Account.delta_reserved - d
            )
    done = session.execute(
        change.values(seq=entry.seq, head_hash=entry.hash)
        .execution_options(synchronize_session=False)
        .returning(Account.id)
    ).first()
    session.expire(account)
    if done is None:
        raise refusal(view_of(account), asked=(a, d))
