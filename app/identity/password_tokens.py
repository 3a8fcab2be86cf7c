"""One-use tokens with which a member sets a password: an invitation, or a reset that an administrator issues.

This product sends no mail: whoever issues a token hands it over by a way that they trust.
"""

from __future__ import annotations

from dataclasses import dataclass
from datetime import timedelta
from uuid import UUID

import sqlalchemy as sa
from sqlalchemy.orm import Session

from app.audit.record import Action, Detail
from app.core import clock
from app.core.crypto import Vault
from app.core.errors import Conflict, Forbidden, Invalid, Unauthorized
from app.core.i18n import _
from app.identity import queries, second_factor
from app.identity.account import set_password, words_of
from app.identity.credentials import is_token, mint_token
from app.identity.models import Member, MemberKind, PasswordToken, TokenPurpose
from app.identity.noting import note_member
from app.identity.passwords import require_strong
from app.identity.permissions import require_grantable
from app.identity.roles import Principal

_PURPOSE = "password-token"
KIND = "password"


class PasswordTokenUnknown(Unauthorized):
    """The token does not work."""

    code, title = "password_token_unknown", _("Token does not hold")
    meaning = _("The token is unknown, was used, expired, or was replaced by a newer one.")
    remedy = _("Ask an administrator for a new one. If you did not use it yourself, say so.")


class AlreadySignedUp(Conflict):
    """An invitation for who has a password."""

    code, title = "already_signed_up", _("The member has a password")
    meaning = _("An invitation is for a member without a password.")
    remedy = _("Issue a reset instead.")


@dataclass(frozen=True, slots=True)
class NewPasswordToken:
    """A new token; `text` exists nowhere else from now on."""

    row: PasswordToken
    text: str


def issue(
    session: Session,
    principal: Principal,
    vault: Vault,
    *,
    member_id: UUID,
    purpose: TokenPurpose,
    drops_second_factor: bool,
    expires_in_s: int,
) -> NewPasswordToken:
    """Issue a token for another member, in place of any earlier one. Raises NotFound, Forbidden, Conflict.

    Who holds it acts for the member afterwards, so nobody issues one for a role that holds more.
    """
    member = queries.member(session, principal, member_id, "members:update", lock=True)
    require_grantable(principal, member.role)
    if member.kind is MemberKind.SERVICE or member.email_hash is None:
        raise Invalid(_("only a person with an e-mail address has a password"))
    if member.suspended_at is not None:
        raise Forbidden(_("a suspended member gets no token"))
    if purpose is TokenPurpose.INVITATION and member.password_hash is not None:
        raise AlreadySignedUp(_("the member has a password already"))
    _end_earlier(session, member)
    text = mint_token(KIND)
    row = PasswordToken(
        member_id=member.id,
        purpose=purpose,
        token_hmac=vault.fingerprint(_PURPOSE, text),
        drops_second_factor=drops_second_factor,
        expires_at=clock.now() + timedelta(seconds=expires_in_s),
        created_by=principal.actor,
    )
    session.add(row)
    session.flush()
    told: dict[str, Detail] = {"purpose": purpose.value, "drops_second_factor": drops_second_factor}
    note_member(session, Action.PASSWORD_TOKEN_ISSUED, member, actor=principal.actor, **told)
    return NewPasswordToken(row=row, text=text)


def _end_earlier(session: Session, member: Member) -> None:
    session.execute(
        sa.update(PasswordToken)
        .where(PasswordToken.member_id == member.id, PasswordToken.used_at.is_(None))
        .values(expires_at=sa.func.least(PasswordToken.expires_at, clock.now()))
    )


def check(session: Session, vault: Vault, *, token: str, password: str) -> None:
    """Whether a token works and the password is good enough; raises what it is refused with."""
    row = _usable(session, vault, token, lock=False)
    require_strong(password, known=words_of(vault, session.get_one(Member, row.member_id)))


def redeem(session: Session, vault: Vault, *, token: str, new_hash: str) -> Member:
    """Use the token up and give its member the password; every session of before ends."""
    row = _usable(session, vault, token, lock=True)
    member = session.get_one(Member, row.member_id, with_for_update=True, populate_existing=True)
    if member.suspended_at is not None:
        raise PasswordTokenUnknown(_("this token does not hold"))
    row.used_at = clock.now()
    if row.drops_second_factor:
        second_factor.drop(session, member)
    set_password(session, member, new_hash)
    return member


def _usable(session: Session, vault: Vault, token: str, *, lock: bool) -> PasswordToken:
    statement = sa.select(PasswordToken).where(PasswordToken.token_hmac == vault.fingerprint(_PURPOSE, token))
    if lock:
        statement = statement.with_for_update().execution_options(populate_existing=True)
    row = session.scalar(statement) if is_token(KIND, token) else None
    if row is None or row.used_at is not None or row.expires_at <= clock.now():
        raise PasswordTokenUnknown(_("this token does not hold"))
    return row
