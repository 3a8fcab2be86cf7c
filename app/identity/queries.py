"""What a principal may see, as statements that a page is cut from. Nothing here writes."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any
from uuid import UUID

import sqlalchemy as sa
from sqlalchemy.orm import Session

from app.core.errors import NotFound
from app.core.i18n import _
from app.identity.models import ApiKey, Client, Enrolment, Member, MemberSession, Organisation
from app.identity.permissions import Scope, scope_of
from app.identity.roles import Principal


def organisations(principal: Principal) -> sa.Select[Organisation]:
    """The organisations that the caller may see."""
    statement = sa.select(Organisation)
    if scope_of(principal, "organisations:read") is Scope.FEDERATION:
        return statement
    return statement.where(Organisation.id == principal.organisation_id)


def members(principal: Principal, permission: str = "members:read") -> sa.Select[Member]:
    """The members within the caller's scope for `permission`."""
    statement = sa.select(Member)
    if scope_of(principal, permission) is Scope.FEDERATION:
        return statement
    return statement.where(Member.organisation_id == principal.organisation_id)


def member(
    session: Session, principal: Principal, member_id: UUID, permission: str, *, lock: bool = False
) -> Member:
    """One member within the caller's scope for `permission`; raises NotFound."""
    statement = members(principal, permission).where(Member.id == member_id)
    if lock:
        statement = statement.with_for_update().execution_options(populate_existing=True)
    row = session.scalar(statement)
    if row is None:
        raise NotFound(_("there is no such member"))
    return row


def member_sessions(principal: Principal, permission: str) -> sa.Select[MemberSession]:
    """The sign-ins within the caller's scope for `permission`."""
    statement = sa.select(MemberSession)
    if scope_of(principal, permission) is Scope.FEDERATION:
        return statement
    return statement.where(MemberSession.member_id == principal.id)


def api_keys(principal: Principal, permission: str) -> sa.Select[ApiKey]:
    """The API keys within the caller's scope for `permission`; their secrets are in no row."""
    statement = sa.select(ApiKey)
    if scope_of(principal, permission) is Scope.FEDERATION:
        return statement
    return statement.where(ApiKey.member_id == principal.id)


def enrolments(principal: Principal) -> sa.Select[Enrolment]:
    """The enrolments that the caller may see; their tokens are in no row."""
    statement = sa.select(Enrolment)
    if scope_of(principal, "enrolments:read") is Scope.FEDERATION:
        return statement
    return statement.where(Enrolment.organisation_id == principal.organisation_id)


def clients(principal: Principal, permission: str) -> sa.Select[Client]:
    """The training clients within the caller's scope for `permission`."""
    statement = sa.select(Client)
    match scope_of(principal, permission):
        case Scope.FEDERATION:
            return statement
        case Scope.ORGANISATION:
            return statement.where(Client.organisation_id == principal.organisation_id)
        case Scope.OWN:
            return statement.where(Client.id == principal.id)


def capabilities_of(session: Session, client_ids: Sequence[UUID]) -> dict[UUID, dict[str, Any]]:
    """What these clients declared of their machines."""
    rows = session.execute(sa.select(Client.id, Client.capability).where(Client.id.in_(client_ids)))
    return {client_id: dict(declared) for client_id, declared in rows}


def client(
    session: Session, principal: Principal, client_id: UUID, permission: str = "clients:read"
) -> Client:
    """One training client that the caller may see; raises NotFound."""
    row = session.scalar(clients(principal, permission).where(Client.id == client_id))
    if row is None:
        raise NotFound(_("there is no such client"))
    return row
