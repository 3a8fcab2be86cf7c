"""Signing in by password: what is asked of the database before the hash is computed, and what after.

No transaction is open while a password is hashed. A known and an unknown e-mail take the same statements,
one hash of the same parameters, and get the same answer.
"""

from __future__ import annotations

from dataclasses import dataclass
from uuid import UUID

import sqlalchemy as sa
from sqlalchemy.orm import Session

from app.core.crypto import Vault
from app.core.errors import DomainError, Unauthorized
from app.core.i18n import _
from app.core.networks import subscriber
from app.core.settings import Settings
from app.identity import attempts, second_factor
from app.identity.authentication import Suspended
from app.identity.emails import look_up_hash, normal_form
from app.identity.models import Member
from app.identity.sessions import Signer, Tokens, open_session

BY_PASSWORD = "password"  # noqa: S105  a method's name  # nosec B105


class SignInRefused(Unauthorized):
    """E-mail and password do not belong together."""

    code, title = "sign_in_refused", _("Sign-in refused")
    meaning = _(
        "There is no member with this e-mail and this password. Which of the two is wrong is not told."
    )
    remedy = _("Check both. If the password is lost, ask an administrator for a reset.")


class SecondFactorRequired(Unauthorized):
    """The password is right; a code is needed too."""

    code, title = "second_factor_required", _("Second factor required")
    meaning = _("The member has a second factor, and the request carries neither a code nor a recovery code.")
    remedy = _("Send the same request with `code` from your device, or with a `recovery_code`.")


class SecondFactorWrong(Unauthorized):
    """The code does not hold."""

    code, title = "second_factor_wrong", _("Code does not hold")
    meaning = _("The code is wrong, was used before, or belongs to another time.")
    remedy = _("Wait for your device's next code, and check the clock of the device.")


@dataclass(frozen=True, slots=True, kw_only=True)
class Attempt:
    """What somebody sent to sign in, and from where."""

    email: str
    password: str
    code: str | None
    recovery_code: str | None
    address: str | None

    @property
    def guarded(self) -> tuple[attempts.Guarded, ...]:
        """What the password counts for."""
        return attempts.of_password(normal_form(self.email), subscriber(self.address))


@dataclass(frozen=True, slots=True)
class Candidate:
    """Whom an attempt may be for. The hash is None for nobody, and for who has no password."""

    member_id: UUID | None
    password_hash: str | None


def begin(session: Session, vault: Vault, attempt: Attempt) -> Candidate:
    """Count the attempt and find its member; raises TooManyAttempts."""
    attempts.count(session, vault, attempt.guarded)
    row = session.execute(
        sa.select(Member.id, Member.password_hash).where(
            Member.email_hash == look_up_hash(vault, attempt.email)
        )
    ).one_or_none()
    return Candidate(None, None) if row is None else Candidate(row.id, row.password_hash)


def finish(
    session: Session,
    settings: Settings,
    vault: Vault,
    signer: Signer,
    *,
    attempt: Attempt,
    candidate: Candidate,
    is_right: bool,
) -> Tokens | DomainError:
    """Open a session where the password was right and the second factor is; else return the refusal.

    Refusals are returned and not raised: what they used up has to be committed.
    """
    if not is_right:
        return SignInRefused(_("e-mail and password do not belong together"))
    member = session.get_one(Member, candidate.member_id, with_for_update=True, populate_existing=True)
    if member.password_hash != candidate.password_hash:  # changed meanwhile
        return SignInRefused(_("e-mail and password do not belong together"))
    if member.suspended_at is not None:
        return Suspended(_("this account is suspended"))
    refusal = _second_factor_refused(session, vault, member, attempt)
    if refusal is not None:
        return refusal
    attempts.take_back(session, vault, attempt.guarded)
    attempts.forget_old(session)
    return open_session(
        session,
        settings,
        vault,
        signer,
        member=member,
        method=BY_PASSWORD,
        second_factor=member.totp_sealed is not None,
        address=attempt.address,
    )


def _second_factor_refused(
    session: Session, vault: Vault, member: Member, attempt: Attempt
) -> DomainError | None:
    """The refusal of a member who has a second factor and does not show it."""
    if member.totp_sealed is None:
        return None
    if attempt.code is None and attempt.recovery_code is None:
        attempts.take_back(session, vault, attempt.guarded)
        return SecondFactorRequired(_("send a code too"))
    if shows_second_factor(session, vault, member, code=attempt.code, recovery_code=attempt.recovery_code):
        return None
    return SecondFactorWrong(_("the code does not hold"))


def shows_second_factor(
    session: Session, vault: Vault, member: Member, *, code: str | None, recovery_code: str | None
) -> bool:
    """Whether a code or a recovery code holds; it is used up. Raises TooManyAttempts."""
    guarded = attempts.of_second_factor(str(member.id))
    attempts.count(session, vault, guarded)
    holds = (code is not None and second_factor.holds(vault, member, code)) or (
        recovery_code is not None and second_factor.use_recovery_code(session, vault, member, recovery_code)
    )
    if holds:
        attempts.take_back(session, vault, guarded)
    return holds
