"""Signing in, staying so, and ending it.

These endpoints are coroutines without a session of their own: while a password is hashed they hold neither a
thread of the gateway nor a connection.
"""

from __future__ import annotations

from typing import Annotated
from uuid import UUID

from fastapi import APIRouter, Request
from fastapi.concurrency import run_in_threadpool

from app.core.errors import DomainError
from app.http.deps import SessionDep, SettingsDep, address_of, public, requires, short_tx
from app.http.limits import limited
from app.http.pagination import Page, PageDep, page
from app.http.routes import ThreadedRoute
from app.http.state import HashingDep, KeyRingDep, VaultDep
from app.identity import password_tokens, queries, sessions, sign_in
from app.identity.account_schemas import (
    PasswordFromTokenIn,
    RefreshIn,
    SessionView,
    SignedInView,
    SignInIn,
)
from app.identity.keys import KeyRing
from app.identity.models import MemberSession
from app.identity.passwords import hash_password, matches
from app.identity.roles import Principal
from app.identity.sessions import Signer, Tokens

router = APIRouter(tags=["sessions"], route_class=ThreadedRoute)
CanEnd = Annotated[Principal, requires("sessions:end")]


@router.post(
    "/sessions",
    status_code=201,
    dependencies=[public("the sign-in itself"), limited("sign_in", per_minute=60)],
)
async def create_session(
    *,
    body: SignInIn,
    request: Request,
    settings: SettingsDep,
    vault: VaultDep,
    keys: KeyRingDep,
    hashing: HashingDep,
) -> SignedInView:
    """Sign in with e-mail, password and, where the member has one, a code of the second factor."""
    attempt = sign_in.Attempt(
        email=body.email,
        password=body.password,
        code=body.code,
        recovery_code=body.recovery_code,
        address=address_of(request),
    )
    signer = await signer_of(keys)
    candidate = await short_tx(request, "sign_in", lambda session: sign_in.begin(session, vault, attempt))
    is_right = await hashing.run(lambda: matches(attempt.password, candidate.password_hash))
    found = await short_tx(
        request,
        "sign_in",
        lambda session: sign_in.finish(
            session, settings, vault, signer, attempt=attempt, candidate=candidate, is_right=is_right
        ),
    )
    return signed_in(found)


@router.post(
    "/sessions/refresh",
    dependencies=[public("the refresh token is the credential"), limited("refresh", per_minute=240)],
)
async def refresh_session(
    body: RefreshIn, request: Request, settings: SettingsDep, vault: VaultDep, keys: KeyRingDep
) -> SignedInView:
    """Exchange a refresh token, which works once, for fresh tokens of the same session."""
    signer = await signer_of(keys)
    found = await short_tx(
        request,
        "refresh",
        lambda session: sessions.refresh(session, settings, vault, signer, token=body.refresh_token),
    )
    return signed_in(found)


@router.get("/sessions")
def list_sessions(
    params: PageDep, session: SessionDep, principal: Annotated[Principal, requires("sessions:read")]
) -> Page[SessionView]:
    """List the sign-ins that you may see, oldest first, ended ones included."""
    rows, cursor = page(
        session, queries.member_sessions(principal, "sessions:read"), MemberSession.id, params
    )
    return Page(items=[SessionView.model_validate(row) for row in rows], next_cursor=cursor)


# The form of its ids keeps this route from answering for /sessions/refresh.
@router.delete("/sessions/{session_id:uuid}", status_code=204)
def end_session(session_id: UUID, session: SessionDep, principal: CanEnd) -> None:
    """Sign out of one session; its access token stops too."""
    sessions.end_session(session, principal, session_id)


@router.delete("/sessions", status_code=204)
def end_sessions(session: SessionDep, principal: CanEnd) -> None:
    """Sign out everywhere: all sessions of the caller end."""
    sessions.end_own(session, principal)


@router.post(
    "/passwords",
    status_code=204,
    dependencies=[public("its one-use token is the credential"), limited("passwords", per_minute=30)],
)
async def set_password(
    body: PasswordFromTokenIn, request: Request, vault: VaultDep, hashing: HashingDep
) -> None:
    """Set a password with the token of an invitation or a reset; earlier sessions end."""
    await short_tx(
        request,
        "check_password_token",
        lambda session: password_tokens.check(session, vault, token=body.token, password=body.password),
    )
    new_hash = await hashing.run(lambda: hash_password(body.password))
    await short_tx(
        request,
        "redeem_password_token",
        lambda session: password_tokens.redeem(session, vault, token=body.token, new_hash=new_hash),
    )


async def signer_of(keys: KeyRing) -> Signer:
    """The key that signs: asked for before a connection is held, since it may need one."""
    kid, key = await run_in_threadpool(keys.current)
    return Signer(kid, key)


def signed_in(found: Tokens | DomainError) -> SignedInView:
    """Show fresh tokens, or raise the refusal, whose traces are committed by now."""
    if isinstance(found, DomainError):
        raise found
    return SignedInView(
        session_id=found.session.id,
        access_token=found.access_token,
        expires_in=found.expires_in,
        refresh_token=found.refresh_token,
        session_expires_at=found.session.expires_at,
        scopes=None if found.scopes is None else sorted(found.scopes),
    )
