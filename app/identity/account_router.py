"""A member's own account: who am I, another password, a second factor."""

from __future__ import annotations

from typing import Annotated, TypeVar

from fastapi import APIRouter, Request

from app.core.errors import DomainError
from app.http.deps import SessionDep, SettingsDep, requires, short_tx
from app.http.routes import ThreadedRoute
from app.http.state import HashingDep, VaultDep
from app.identity import account
from app.identity.account_schemas import (
    AccountView,
    CodeIn,
    PasswordIn,
    RecoveryCodes,
    SecondFactorIn,
    SecondFactorOffered,
)
from app.identity.emails import email_of
from app.identity.models import Member, MemberSession
from app.identity.passwords import hash_password, matches
from app.identity.permissions import held_by
from app.identity.roles import Principal
from app.identity.sessions import lacks_second_factor

T = TypeVar("T")
router = APIRouter(tags=["sessions"], route_class=ThreadedRoute)
CanSecure = Annotated[Principal, requires("account:secure")]


@router.get("/account")
def get_account(
    session: SessionDep,
    settings: SettingsDep,
    vault: VaultDep,
    principal: Annotated[Principal, requires("account:read")],
) -> AccountView:
    """Show who you are and what these credentials are good for."""
    member = session.get_one(Member, principal.id)
    own = session.get(MemberSession, principal.session_id) if principal.session_id else None
    return AccountView(
        id=member.id,
        organisation_id=member.organisation_id,
        name=member.name,
        kind=member.kind,
        role=member.role,
        email=email_of(vault, member),
        has_password=member.password_hash is not None,
        has_second_factor=member.totp_sealed is not None,
        needs_second_factor=own is not None
        and lacks_second_factor(settings, member, second_factor=own.second_factor),
        permissions=sorted(held_by(principal)),
    )


@router.post("/account/password", status_code=204)
async def change_password(
    body: PasswordIn, request: Request, vault: VaultDep, hashing: HashingDep, principal: CanSecure
) -> None:
    """Change your password. All your sessions end, this one included; API keys stay."""
    await short_tx(
        request,
        "check_password",
        lambda session: account.check_new(session, vault, principal, password=body.new_password),
    )
    candidate = await short_tx(
        request, "change_password", lambda session: account.begin(session, vault, principal)
    )
    is_right = await hashing.run(lambda: matches(body.password, candidate.password_hash))
    new_hash = await hashing.run(lambda: hash_password(body.new_password)) if is_right else ""
    refusal = await short_tx(
        request,
        "change_password",
        lambda session: account.change_password(
            session, vault, candidate=candidate, is_right=is_right, new_hash=new_hash
        ),
    )
    _accepted(refusal)


@router.post("/account/second-factor")
async def offer_second_factor(
    body: SecondFactorIn, request: Request, vault: VaultDep, hashing: HashingDep, principal: CanSecure
) -> SecondFactorOffered:
    """Get a secret for an authenticator. It counts once a code of it is confirmed."""
    candidate = await short_tx(
        request, "offer_second_factor", lambda session: account.begin(session, vault, principal)
    )
    is_right = await hashing.run(lambda: matches(body.password, candidate.password_hash))
    offered = await short_tx(
        request,
        "offer_second_factor",
        lambda session: account.offer_second_factor(
            session, vault, candidate=candidate, is_right=is_right, code=body.code
        ),
    )
    return SecondFactorOffered(otpauth_uri=_accepted(offered))


@router.post("/account/second-factor/confirm")
async def confirm_second_factor(
    body: CodeIn, request: Request, vault: VaultDep, principal: CanSecure
) -> RecoveryCodes:
    """Show a code of the offered secret. Your other sessions end; recovery codes are shown once."""
    codes = await short_tx(
        request,
        "confirm_second_factor",
        lambda session: account.confirm_second_factor(session, vault, principal, code=body.code),
    )
    return RecoveryCodes(recovery_codes=_accepted(codes))


def _accepted(found: T | DomainError) -> T:
    """What was done, or raise the refusal, whose traces are committed by now."""
    if isinstance(found, DomainError):
        raise found
    return found
