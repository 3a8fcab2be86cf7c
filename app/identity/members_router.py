"""Members: added, invited, given roles, switched off and on, moved."""

from __future__ import annotations

from typing import Annotated
from uuid import UUID

from fastapi import APIRouter

from app.core.crypto import Vault
from app.http.deps import SessionDep, requires
from app.http.idempotency import IdempotentRoute
from app.http.pagination import Page, PageDep, page
from app.http.state import VaultDep
from app.identity import members, password_tokens, queries, service
from app.identity.account_schemas import (
    MemberIn,
    MemberView,
    MoveIn,
    PasswordTokenIn,
    PasswordTokenOnce,
    RoleIn,
)
from app.identity.emails import email_of
from app.identity.models import Member, MemberKind, TokenPurpose
from app.identity.permissions import held_by
from app.identity.roles import Principal, Role

router = APIRouter(tags=["organisations"], route_class=IdempotentRoute)
CanRead = Annotated[Principal, requires("members:read")]
CanUpdate = Annotated[Principal, requires("members:update")]
CanMove = Annotated[Principal, requires("members:move")]


@router.post("/members", status_code=201)
def create_member(
    body: MemberIn,
    session: SessionDep,
    vault: VaultDep,
    principal: Annotated[Principal, requires("members:create")],
) -> MemberView:
    """Add a person, who is invited afterwards, or a service account, which gets API keys."""
    row = service.create_member(
        session,
        principal,
        vault,
        organisation_id=body.organisation_id,
        name=body.name,
        role=Role(body.role),
        kind=MemberKind(body.kind),
        email=body.email,
    )
    return _view(row, principal, vault)


@router.get("/members")
def list_members(
    params: PageDep, session: SessionDep, vault: VaultDep, principal: CanRead
) -> Page[MemberView]:
    """List the members that you may see, oldest first."""
    rows, cursor = page(session, queries.members(principal), Member.id, params)
    return Page(items=[_view(row, principal, vault) for row in rows], next_cursor=cursor)


@router.get("/members/{member_id}")
def get_member(member_id: UUID, session: SessionDep, vault: VaultDep, principal: CanRead) -> MemberView:
    """Show one member."""
    return _view(queries.member(session, principal, member_id, "members:read"), principal, vault)


@router.put("/members/{member_id}/role")
def change_role(
    member_id: UUID, body: RoleIn, session: SessionDep, vault: VaultDep, principal: CanUpdate
) -> MemberView:
    """Give a member another role; their sessions end."""
    return _view(members.change_role(session, principal, member_id, role=Role(body.role)), principal, vault)


@router.post("/members/{member_id}/suspend")
def suspend_member(member_id: UUID, session: SessionDep, vault: VaultDep, principal: CanUpdate) -> MemberView:
    """Switch a member off: sessions end, and API keys are refused."""
    return _view(members.suspend(session, principal, member_id), principal, vault)


@router.post("/members/{member_id}/reinstate")
def reinstate_member(
    member_id: UUID, session: SessionDep, vault: VaultDep, principal: CanUpdate
) -> MemberView:
    """Switch a suspended member on again."""
    return _view(members.reinstate(session, principal, member_id), principal, vault)


@router.post("/members/{member_id}/move")
def move_member(
    member_id: UUID, body: MoveIn, session: SessionDep, vault: VaultDep, principal: CanMove
) -> MemberView:
    """Move a member to another organisation. Role, API keys and sessions are left behind."""
    return _view(
        members.move(session, principal, member_id, organisation_id=body.organisation_id), principal, vault
    )


@router.delete("/members/{member_id}/sessions", status_code=204)
def end_member_sessions(member_id: UUID, session: SessionDep, principal: CanUpdate) -> None:
    """Sign a member out everywhere."""
    members.end_sessions(session, principal, member_id)


@router.post("/members/{member_id}/password-tokens", status_code=201)
def create_password_token(
    member_id: UUID, body: PasswordTokenIn, session: SessionDep, vault: VaultDep, principal: CanUpdate
) -> PasswordTokenOnce:
    """Issue a one-use token with which a member sets a password. It is shown here and nowhere else.

    No mail is sent: hand the token over by a way that you trust.
    """
    made = password_tokens.issue(
        session,
        principal,
        vault,
        member_id=member_id,
        purpose=TokenPurpose(body.purpose),
        drops_second_factor=body.drops_second_factor,
        expires_in_s=body.expires_in_s,
    )
    return PasswordTokenOnce(
        member_id=member_id, purpose=body.purpose, expires_at=made.row.expires_at, token=made.text
    )


def _view(row: Member, principal: Principal, vault: Vault) -> MemberView:
    """A member as the caller may see it: e-mail addresses are for who looks after members."""
    email = email_of(vault, row) if "members:update" in held_by(principal) else None
    return MemberView(
        id=row.id,
        organisation_id=row.organisation_id,
        name=row.name,
        kind=row.kind,
        role=row.role,
        email=email,
        has_password=row.password_hash is not None,
        has_second_factor=row.totp_sealed is not None,
        suspended_at=row.suspended_at,
        created_at=row.created_at,
    )
