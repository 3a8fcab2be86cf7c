"""Privacy accounts over HTTP: see them, see their entries, grant more."""

from __future__ import annotations

from typing import Annotated
from uuid import UUID

import sqlalchemy as sa
from fastapi import APIRouter

from app.budget import chain, ledger, queries
from app.budget.models import Account, Entry, EntryKind
from app.budget.schemas import AccountOut, ChainOut, EntryOut, GrantIn, SpendingOut
from app.core.ids import new_id
from app.http.deps import SessionDep, requires
from app.http.idempotency import IdempotentRoute
from app.http.pagination import Page, PageDep, page
from app.identity.roles import Principal

router = APIRouter(prefix="/budgets", tags=["budgets"], route_class=IdempotentRoute)

CanReadBudgets = Annotated[Principal, requires("budgets:read")]
CanGrantBudget = Annotated[Principal, requires("budgets:grant")]


@router.get("")
def list_budgets(session: SessionDep, principal: CanReadBudgets, params: PageDep) -> Page[AccountOut]:
    """The privacy accounts that the caller may see."""
    rows, cursor = page(session, queries.accounts(principal), Account.id, params)
    return Page(items=[AccountOut.of(queries.view_of(row)) for row in rows], next_cursor=cursor)


@router.get("/{account_id}")
def get_budget(account_id: UUID, session: SessionDep, principal: CanReadBudgets) -> AccountOut:
    """One account: granted, reserved, spent, left."""
    return AccountOut.of(queries.account_for(session, principal, account_id))


@router.get("/{account_id}/entries")
def list_budget_entries(
    account_id: UUID, session: SessionDep, principal: CanReadBudgets, params: PageDep
) -> Page[EntryOut]:
    """The account's entries, oldest first."""
    queries.account_for(session, principal, account_id)
    statement = sa.select(Entry).where(Entry.account_id == account_id)
    rows, cursor = page(session, statement, Entry.seq, params)
    return Page(items=[EntryOut.of(row) for row in rows], next_cursor=cursor)


@router.get("/{account_id}/spending")
def list_budget_spending(
    account_id: UUID, session: SessionDep, principal: CanReadBudgets, params: PageDep
) -> Page[SpendingOut]:
    """What the account paid, run by run, oldest first: charged, still reserved, or given back."""
    view = queries.account_for(session, principal, account_id)
    statement = sa.select(Entry).where(Entry.account_id == account_id, Entry.kind == EntryKind.RESERVE)
    rows, cursor = page(session, statement, Entry.seq, params)
    items = [SpendingOut.of(view, one) for one in queries.spendings(session, account_id, rows)]
    return Page(items=items, next_cursor=cursor)


@router.get("/{account_id}/chain")
def check_budget_chain(account_id: UUID, session: SessionDep, principal: CanReadBudgets) -> ChainOut:
    """Walk the account's hash chain and name the first entry that does not hold."""
    queries.account_for(session, principal, account_id)
    check = chain.verify_chain(session, account_id)
    return ChainOut(holds=check.holds, entries=check.entries, broken_seq=check.broken_seq, fault=check.fault)


@router.post("/{account_id}/grants", status_code=201)
def grant_budget(
    account_id: UUID, body: GrantIn, session: SessionDep, principal: CanGrantBudget
) -> AccountOut:
    """Lift the account's ceiling. What was granted is never taken back."""
    queries.account_for(session, principal, account_id, "budgets:grant")
    ledger.grant(
        session,
        account_id,
        ref=f"grant:{new_id()}",
        epsilon=body.epsilon,
        delta=body.delta,
        reason=body.reason,
        actor=principal.actor,
    )
    return AccountOut.of(queries.account_view(session, account_id))
