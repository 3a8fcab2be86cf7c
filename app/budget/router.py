"""Privacy accounts over HTTP: see them, see their entries, grant more."""

from __future__ import annotations

from typing import Annotated
from uuid import UUID

import sqlalchemy as sa
from fastapi import APIRouter
from sqlalchemy.orm import Session

from app.budget import chain, ledger
from app.budget.models import Account, Entry
from app.budget.queries import account_view, view_of
from app.budget.schemas import AccountOut, ChainOut, EntryOut, GrantIn
from app.core.errors import NotFound
from app.core.i18n import _
from app.core.ids import new_id
from app.http.deps import SessionDep, requires
from app.http.idempotency import IdempotentRoute
from app.http.pagination import Page, PageDep, page
from app.identity.permissions import Scope, scope_of
from app.identity.roles import Principal

router = APIRouter(prefix="/budgets", tags=["budgets"], route_class=IdempotentRoute)

CanReadBudgets = Annotated[Principal, requires("budgets:read")]
CanGrantBudget = Annotated[Principal, requires("budgets:grant")]


@router.get("")
def list_budgets(session: SessionDep, principal: CanReadBudgets, params: PageDep) -> Page[AccountOut]:
    """The privacy accounts that the caller may see."""
    rows, cursor = page(session, _accounts(principal, "budgets:read"), Account.id, params)
    return Page(items=[AccountOut.of(view_of(row)) for row in rows], next_cursor=cursor)


@router.get("/{account_id}")
def get_budget(account_id: UUID, session: SessionDep, principal: CanReadBudgets) -> AccountOut:
    """One account: granted, reserved, spent, left."""
    _require(session, principal, account_id, "budgets:read")
    return AccountOut.of(account_view(session, account_id))


@router.get("/{account_id}/entries")
def list_budget_entries(
    account_id: UUID, session: SessionDep, principal: CanReadBudgets, params: PageDep
) -> Page[EntryOut]:
    """The account's entries, oldest first."""
    _require(session, principal, account_id, "budgets:read")
    statement = sa.select(Entry).where(Entry.account_id == account_id)
    rows, cursor = page(session, statement, Entry.seq, params)
    return Page(items=[EntryOut.of(row) for row in rows], next_cursor=cursor)


@router.get("/{account_id}/chain")
def check_budget_chain(account_id: UUID, session: SessionDep, principal: CanReadBudgets) -> ChainOut:
    """Walk the account's hash chain and name the first entry that does not hold."""
    _require(session, principal, account_id, "budgets:read")
    check = chain.verify_chain(session, account_id)
    return ChainOut(holds=check.holds, entries=check.entries, broken_seq=check.broken_seq, fault=check.fault)


@router.post("/{account_id}/grants", status_code=201)
def grant_budget(
    account_id: UUID, body: GrantIn, session: SessionDep, principal: CanGrantBudget
) -> AccountOut:
    """Lift the account's ceiling. What was granted is never taken back."""
    _require(session, principal, account_id, "budgets:grant")
    ledger.grant(
        session,
        account_id,
        ref=f"grant:{new_id()}",
        epsilon=body.epsilon,
        delta=body.delta,
        reason=body.reason,
        actor=principal.actor,
    )
    return AccountOut.of(account_view(session, account_id))


def _accounts(principal: Principal, permission: str) -> sa.Select[Account]:
    statement = sa.select(Account)
    match scope_of(principal, permission):
        case Scope.FEDERATION:
            return statement
        case Scope.ORGANISATION:
            return statement.where(Account.organisation_id == principal.organisation_id)
        case Scope.OWN:
            return statement.where(Account.client_id == principal.id)


def _require(session: Session, principal: Principal, account_id: UUID, permission: str) -> None:
    statement = _accounts(principal, permission).with_only_columns(Account.id)
    if session.scalar(statement.where(Account.id == account_id)) is None:
        raise NotFound(_("there is no such account"))
