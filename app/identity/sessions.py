"""Sign-ins of members: an access token for minutes, and a refresh token that works once.

The tokens of one sign-in are a family. A refresh token that comes twice means that one of two bearers stole
it, and nobody can tell which: the family ends. What ends is known to every process with the commit.
"""

from __future__ import annotations

from dataclasses import dataclass
from datetime import datetime, timedelta
from uuid import UUID

import sqlalchemy as sa
import structlog
from cryptography.hazmat.primitives.asymmetric.ed25519 import Ed25519PrivateKey
from sqlalchemy.orm import Session

from app.audit.record import Action
from app.core import clock
from app.core.crypto import Vault
from app.core.db import notify
from app.core.errors import DomainError, NotFound, Unauthorized
from app.core.i18n import _
from app.core.settings import Environment, Settings
from app.core.tokens import sign_token
from app.identity import queries
from app.identity.authentication import Suspended
from app.identity.credentials import is_token, mint_token
from app.identity.keys import CHANNEL
from app.identity.models import Member, MemberSession, RefreshToken, SessionEnd
from app.identity.noting import note_member
from app.identity.roles import Principal, Role
from app.security import events
from app.security.models import Severity

LIMITED = frozenset({"account:read", "account:secure", "sessions:read", "sessions:end"})
"""What a sign-in is good for that lacks the second factor its role needs: getting one."""
_PURPOSE = "refresh-token"
log = structlog.get_logger("security")


class SessionOver(Unauthorized):
    """The refresh token is of no use any more."""

    code, title = "session_over", _("The session is over")
    meaning = _("The refresh token is unknown, or its session ended or expired.")
    remedy = _("Sign in again.")


class RefreshReused(Unauthorized):
    """The refresh token was used before: its family has ended."""

    code, title = "refresh_reused", _("Refresh token used twice")
    meaning = _(
        "Each refresh token works once. This one came again, so somebody else has it: the session ended."
    )
    remedy = _("Sign in again. If no second program of yours has the token, change your password.")


@dataclass(frozen=True, slots=True)
class Signer:
    """The key that signs access tokens; asked for before a connection is held, since that may need one."""

    kid: str
    key: Ed25519PrivateKey


@dataclass(frozen=True, slots=True)
class Tokens:
    """What a sign-in or a refresh gives; the refresh token exists nowhere else from now on."""

    session: MemberSession
    access_token: str
    expires_in: int
    refresh_token: str
    scopes: frozenset[str] | None
    """None: all that the role holds."""


def open_session(
    session: Session,
    settings: Settings,
    vault: Vault,
    signer: Signer,
    *,
    member: Member,
    method: str,
    second_factor: bool,
    address: str | None,
) -> Tokens:
    """Begin a family for a member who has shown who they are."""
    row = MemberSession(
        member_id=member.id,
        method=method,
        second_factor=second_factor,
        address=None if address is None else address[:45],
        expires_at=clock.now() + timedelta(seconds=settings.session_s),
    )
    session.add(row)
    session.flush()
    _forget_former(session, member.id)
    note_member(
        session,
        Action.SESSION_OPENED,
        member,
        actor=f"member:{member.id}",
        session_id=str(row.id),
        method=method,
        second_factor=second_factor,
    )
    return _hand_out(session, settings, vault, signer, member=member, row=row)


def refresh(
    session: Session, settings: Settings, vault: Vault, signer: Signer, *, token: str
) -> Tokens | DomainError:
    """Exchange a refresh token for fresh ones, or return the refusal: ending a family has to be committed."""
    found = _locked(session, vault, token)
    if found is None:
        return SessionOver(_("this refresh token is of no use"))
    spent, row = found
    if row.ended_at is not None or row.expires_at <= clock.now():
        return SessionOver(_("this refresh token is of no use"))
    if spent.used_at is not None:
        end_for_reuse(session, row)
        return RefreshReused(_("this refresh token was used before; the session has ended"))
    member = session.get_one(Member, row.member_id)
    if member.suspended_at is not None:
        return Suspended(_("this account is suspended"))
    spent.used_at = clock.now()
    return _hand_out(session, settings, vault, signer, member=member, row=row)


def end_for_reuse(session: Session, row: MemberSession) -> None:
    """End a family of which a token was stolen: an act that security looks at."""
    _end(session, row, SessionEnd.REUSE)
    member = session.get_one(Member, row.member_id)
    note_member(session, Action.REFRESH_REUSED, member, actor="server", session_id=str(row.id))
    events.note(
        session,
        kind="refresh_reused",
        subject=f"member:{member.id}",
        organisation_id=member.organisation_id,
        severity=Severity.ALARM,
        evidence={"session_id": str(row.id), "method": row.method},
    )
    log.warning("refresh_token_reused", member_id=str(row.member_id), session_id=str(row.id))


def end_session(session: Session, principal: Principal, session_id: UUID) -> None:
    """End one sign-in that the caller may end. Ending it twice is ending it once; raises NotFound."""
    statement = queries.member_sessions(principal, "sessions:end").where(MemberSession.id == session_id)
    row = session.scalar(statement.with_for_update())
    if row is None:
        raise NotFound(_("there is no such session"))
    if row.ended_at is None:
        _end(session, row, SessionEnd.LOGOUT)
        member = session.get_one(Member, row.member_id)
        told = {"session_id": str(row.id)}
        note_member(session, Action.SESSION_ENDED, member, actor=principal.actor, **told)


def end_own(session: Session, principal: Principal) -> None:
    """End all of the caller's sign-ins, wherever they are."""
    member = session.get_one(Member, principal.id, with_for_update=True)
    end_all(session, member, SessionEnd.EVERYWHERE)
    note_member(session, Action.MEMBER_SIGNED_OUT, member, actor=principal.actor)


def end_all(session: Session, member: Member, why: SessionEnd, *, but: UUID | None = None) -> None:
    """End every sign-in of a member, in every process from the commit on.

    `but` spares one: that in which the member has just shown a second factor. Without it the epoch steps,
    so that no access token of before is taken, whatever it says of its session.
    """
    rows = session.scalars(
        sa.select(MemberSession)
        .where(MemberSession.member_id == member.id, MemberSession.ended_at.is_(None))
        .with_for_update()
    ).all()
    for row in rows:
        if row.id != but:
            _end(session, row, why)
    if but is None:
        member.token_epoch += 1
        member.token_epoch_at = clock.now()
        session.flush()
        notify(session, CHANNEL, str(member.id))


def lacks_second_factor(settings: Settings, member: Member, *, second_factor: bool) -> bool:
    """Whether a sign-in is good for nothing but getting a second factor: an administrator's in production."""
    is_needed = member.role is Role.ADMIN and settings.environment is not Environment.DEVELOPMENT
    return is_needed and not second_factor


def _end(session: Session, row: MemberSession, why: SessionEnd) -> None:
    row.ended_at, row.ended_why = clock.now(), why
    session.flush()
    notify(session, CHANNEL, str(row.member_id))


def _hand_out(
    session: Session,
    settings: Settings,
    vault: Vault,
    signer: Signer,
    *,
    member: Member,
    row: MemberSession,
) -> Tokens:
    is_limited = lacks_second_factor(settings, member, second_factor=row.second_factor)
    claims: dict[str, str | int] = {
        "org": str(member.organisation_id),
        "role": member.role.value,
        "epoch": member.token_epoch,
        "sid": str(row.id),
    }
    if is_limited:
        claims["scope"] = " ".join(sorted(LIMITED))
    token = mint_token("refresh")
    session.add(RefreshToken(token_hmac=vault.fingerprint(_PURPOSE, token), session_id=row.id))
    session.flush()
    return Tokens(
        session=row,
        access_token=sign_token(
            signer.key,
            kid=signer.kid,
            issuer=settings.public_url,
            audience=settings.public_url,
            subject=str(member.id),
            lifetime_s=settings.access_token_s,
            claims=claims,
        ),
        expires_in=settings.access_token_s,
        refresh_token=token,
        scopes=LIMITED if is_limited else None,
    )


def _locked(session: Session, vault: Vault, token: str) -> tuple[RefreshToken, MemberSession] | None:
    """The token's row and its session's, locked: of two uses at once the second sees the first."""
    if not is_token("refresh", token):
        return None
    row = session.execute(
        sa.select(RefreshToken, MemberSession)
        .join(MemberSession, MemberSession.id == RefreshToken.session_id)
        .where(RefreshToken.token_hmac == vault.fingerprint(_PURPOSE, token))
        .with_for_update()
        .execution_options(populate_existing=True)
    ).one_or_none()
    return None if row is None else (row[0], row[1])


def _forget_former(session: Session, member_id: UUID) -> None:
    """Delete a member's sessions that ended or expired a month ago, with their tokens."""
    long_ago: datetime = clock.now() - timedelta(days=30)
    session.execute(
        sa.delete(MemberSession).where(
            MemberSession.member_id == member_id, MemberSession.expires_at < long_ago
        )
    )
