"""What members do with their own account: another password, a second factor.

Each of these asks for the present password again, and counts wrong ones like a sign-in does: a stolen access
token changes no credentials. As in a sign-in, nothing is hashed inside a transaction.
"""

from __future__ import annotations

from sqlalchemy.orm import Session

from app.audit.record import Action
from app.core.crypto import Vault
from app.core.errors import Conflict, DomainError
from app.core.i18n import _
from app.identity import attempts, second_factor
from app.identity.emails import email_of
from app.identity.models import Member, MemberSession, SessionEnd
from app.identity.noting import note_member
from app.identity.passwords import require_strong
from app.identity.roles import Principal
from app.identity.sessions import end_all
from app.identity.sign_in import (
    Candidate,
    SecondFactorRequired,
    SecondFactorWrong,
    SignInRefused,
    shows_second_factor,
)


class NoPassword(Conflict):
    """The member has no password."""

    code, title = "no_password", _("No password")
    meaning = _(
        "The member signs in through an issuer or by API key only, and has no password to confirm with."
    )
    remedy = _("Ask an administrator for an invitation, if you need a password.")


class NothingOffered(Conflict):
    """There is no second factor to confirm."""

    code, title = "nothing_offered", _("No second factor was offered")
    meaning = _("A second factor is confirmed after it was offered, once.")
    remedy = _("Ask for one first, scan it, and then send its code.")


def begin(session: Session, vault: Vault, principal: Principal) -> Candidate:
    """Count an attempt at the caller's own password; raises TooManyAttempts and NoPassword."""
    member = session.get_one(Member, principal.id)
    if member.password_hash is None:
        raise NoPassword(_("this member has no password"))
    attempts.count(session, vault, attempts.of_own_password(str(member.id)))
    return Candidate(member.id, member.password_hash)


def check_new(session: Session, vault: Vault, principal: Principal, *, password: str) -> None:
    """Refuse a new password that is guessed early; raises PasswordTooWeak."""
    member = session.get_one(Member, principal.id)
    require_strong(password, known=words_of(vault, member))


def words_of(vault: Vault, member: Member) -> tuple[str | None, ...]:
    """What others know of a member and try first."""
    email = email_of(vault, member)
    return (member.name, email, None if email is None else email.partition("@")[0])


def change_password(
    session: Session, vault: Vault, *, candidate: Candidate, is_right: bool, new_hash: str
) -> DomainError | None:
    """Write the new hash and end every session, or return the refusal."""
    member = _confirmed(session, vault, candidate, is_right=is_right)
    if isinstance(member, DomainError):
        return member
    set_password(session, member, new_hash)
    return None


def set_password(session: Session, member: Member, new_hash: str) -> None:
    """Give a member a password; whoever was signed in is so no longer."""
    member.password_hash = new_hash
    end_all(session, member, SessionEnd.CHANGED)
    note_member(session, Action.PASSWORD_CHANGED, member, actor=f"member:{member.id}")


def offer_second_factor(
    session: Session,
    vault: Vault,
    *,
    candidate: Candidate,
    is_right: bool,
    code: str | None,
) -> str | DomainError:
    """Hand out a fresh secret as an otpauth URI; a member who has one already shows a code of it."""
    member = _confirmed(session, vault, candidate, is_right=is_right)
    if isinstance(member, DomainError):
        return member
    if member.totp_sealed is not None:
        if code is None:
            return SecondFactorRequired(_("send a code of the present second factor too"))
        if not shows_second_factor(session, vault, member, code=code, recovery_code=None):
            return SecondFactorWrong(_("the code does not hold"))
    return second_factor.offer(vault, member, account=email_of(vault, member) or member.name)


def confirm_second_factor(
    session: Session, vault: Vault, principal: Principal, *, code: str
) -> list[str] | DomainError:
    """Make the offered secret count, end the member's other sessions, and return recovery codes."""
    member = session.get_one(Member, principal.id, with_for_update=True, populate_existing=True)
    if member.totp_offered_sealed is None:
        return NothingOffered(_("no second factor was offered"))
    guarded = attempts.of_second_factor(str(member.id))
    attempts.count(session, vault, guarded)
    codes = second_factor.confirm(session, vault, member, code)
    if codes is None:
        return SecondFactorWrong(_("the code does not hold"))
    attempts.take_back(session, vault, guarded)
    if principal.session_id is not None:
        session.get_one(MemberSession, principal.session_id).second_factor = True
    end_all(session, member, SessionEnd.CHANGED, but=principal.session_id)
    note_member(session, Action.SECOND_FACTOR_CHANGED, member, actor=principal.actor)
    return codes


def _confirmed(
    session: Session, vault: Vault, candidate: Candidate, *, is_right: bool
) -> Member | DomainError:
    if not is_right:
        return SignInRefused(_("this is not the present password"))
    member = session.get_one(Member, candidate.member_id, with_for_update=True, populate_existing=True)
    if member.password_hash != candidate.password_hash:
        return SignInRefused(_("this is not the present password"))
    attempts.take_back(session, vault, attempts.of_own_password(str(member.id)))
    return member
