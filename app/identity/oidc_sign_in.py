"""Signing in through an issuer, step by step: each step finds its row once.

The caller (Swagger UI, another front end) is itself a client with PKCE: our own code works only for who began
the sign-in, so that nobody is signed in to a stranger's account by following a link. Nobody signs up this
way: an issuer's word finds a member whom an administrator has added.
"""

from __future__ import annotations

import hmac
import json
from dataclasses import dataclass
from datetime import timedelta

import sqlalchemy as sa
from sqlalchemy.dialects.postgresql import insert
from sqlalchemy.orm import Session

from app.core import clock
from app.core.crypto import Vault
from app.core.errors import DomainError, Forbidden, Invalid, Unauthorized
from app.core.i18n import _
from app.core.settings import OidcIssuer, Settings
from app.identity.authentication import Suspended
from app.identity.credentials import is_token, mint_token
from app.identity.emails import domain_of, look_up_hash
from app.identity.models import Member, MemberKind, OidcIdentity, OidcLogin
from app.identity.oidc import Person, challenge_of, fresh_secret
from app.identity.sessions import Signer, Tokens, open_session

_STATE, _CODE, _SEALED = "oidc-state", "oidc-code", "oidc-login"
_UNDERWAY = timedelta(minutes=10)
_CODE_LASTS = timedelta(minutes=1)


class RedirectNotAllowed(Invalid):
    """The browser may not be sent there."""

    code, title = "redirect_not_allowed", _("Redirect not allowed")
    meaning = _("After a sign-in through an issuer the browser is sent to addresses of the settings only.")
    remedy = _("Use an address that the operator has listed, to the letter.")


class LoginUnknown(Unauthorized):
    """There is no such sign-in on its way."""

    code, title = "login_unknown", _("Sign-in not on its way")
    meaning = _("The sign-in through an issuer was finished, was never begun here, or took too long.")
    remedy = _("Begin the sign-in anew.")


class NoSuchMember(Forbidden):
    """The issuer knows the person, and we do not."""

    code, title = "no_such_member", _("No member")
    meaning = _("The issuer says who you are, and no member of the federation is bound to that.")
    remedy = _("Ask an administrator to add you with the e-mail address that your issuer has verified.")


@dataclass(frozen=True, slots=True)
class Begun:
    """What goes to the issuer with the browser."""

    state: str
    nonce: str
    verifier: str


@dataclass(frozen=True, slots=True)
class Underway:
    """A sign-in that came back from the issuer, and whose row is used up."""

    issuer_name: str
    nonce: str
    verifier: str
    redirect_uri: str
    caller_state: str
    code_challenge: str


def begin(
    session: Session,
    settings: Settings,
    vault: Vault,
    *,
    issuer: OidcIssuer,
    redirect_uri: str,
    caller_state: str,
    code_challenge: str,
) -> Begun:
    """Note a sign-in that begins; raises RedirectNotAllowed."""
    if redirect_uri not in settings.redirects:
        raise RedirectNotAllowed(_("this redirect_uri is not one of the settings"))
    session.execute(sa.delete(OidcLogin).where(OidcLogin.expires_at < clock.now()))
    begun = Begun(state=fresh_secret(), nonce=fresh_secret(), verifier=fresh_secret())
    sealed = json.dumps([begun.nonce, begun.verifier]).encode()
    session.add(
        OidcLogin(
            issuer_name=issuer.name,
            state_hmac=vault.fingerprint(_STATE, begun.state),
            sealed=vault.seal(_SEALED, sealed),
            redirect_uri=redirect_uri,
            caller_state=caller_state,
            code_challenge=code_challenge,
            second_factor=False,
            expires_at=clock.now() + _UNDERWAY,
        )
    )
    return begun


def take_up(session: Session, vault: Vault, *, state: str) -> Underway | DomainError:
    """Find the sign-in of a state and use it up: no answer of an issuer is looked at twice."""
    row = session.scalar(
        sa.delete(OidcLogin)
        .where(OidcLogin.state_hmac == vault.fingerprint(_STATE, state), OidcLogin.code_hmac.is_(None))
        .returning(OidcLogin)
    )
    if row is None or row.expires_at <= clock.now():
        return LoginUnknown(_("there is no such sign-in on its way"))
    nonce, verifier = json.loads(vault.unseal(_SEALED, row.sealed))
    return Underway(row.issuer_name, nonce, verifier, row.redirect_uri, row.caller_state, row.code_challenge)


def hand_back(
    session: Session, vault: Vault, *, issuer: OidcIssuer, underway: Underway, person: Person
) -> str:
    """Find the member whom the issuer means, and return our code for the caller. Raises NoSuchMember."""
    member = _member_of(session, vault, issuer, person)
    code = mint_token("code")
    session.add(
        OidcLogin(
            issuer_name=issuer.name,
            state_hmac=vault.fingerprint(_STATE, fresh_secret()),  # no issuer sends this one back
            sealed=vault.seal(_SEALED, b"[]"),
            redirect_uri=underway.redirect_uri,
            caller_state=underway.caller_state,
            code_challenge=underway.code_challenge,
            code_hmac=vault.fingerprint(_CODE, code),
            member_id=member.id,
            second_factor=person.second_factor,
            expires_at=clock.now() + _CODE_LASTS,
        )
    )
    return code


def redeem(
    session: Session,
    settings: Settings,
    vault: Vault,
    signer: Signer,
    *,
    code: str,
    code_verifier: str,
    redirect_uri: str,
    address: str | None,
) -> Tokens | DomainError:
    """Open a session for our code, which works once, for who holds the verifier of its challenge."""
    row = None
    if is_token("code", code):
        row = session.scalar(
            sa.delete(OidcLogin)
            .where(OidcLogin.code_hmac == vault.fingerprint(_CODE, code))
            .returning(OidcLogin)
        )
    if row is None or row.expires_at <= clock.now() or row.redirect_uri != redirect_uri:
        return LoginUnknown(_("there is no such sign-in on its way"))
    if not hmac.compare_digest(challenge_of(code_verifier), row.code_challenge):
        return LoginUnknown(_("there is no such sign-in on its way"))
    member = session.get_one(Member, row.member_id, with_for_update=True, populate_existing=True)
    if member.suspended_at is not None:
        return Suspended(_("this account is suspended"))
    return open_session(
        session,
        settings,
        vault,
        signer,
        member=member,
        method=row.issuer_name,
        second_factor=row.second_factor,
        address=address,
    )


def _member_of(session: Session, vault: Vault, issuer: OidcIssuer, person: Person) -> Member:
    """By the subject; at the first time by a verified address whose domain is exactly one of the settings."""
    bound = sa.select(Member).join(OidcIdentity, OidcIdentity.member_id == Member.id)
    subject = (OidcIdentity.issuer == issuer.issuer, OidcIdentity.subject == person.subject)
    member = session.scalar(bound.where(*subject))
    if member is None and person.email is not None and domain_of(person.email) in issuer.email_domains:
        found = sa.select(Member).where(Member.email_hash == look_up_hash(vault, person.email))
        member = _bound_first(session, issuer, person, session.scalar(found.with_for_update()))
    if member is None:
        raise NoSuchMember(_("no member is bound to this"))
    if member.suspended_at is not None:
        raise Suspended(_("this account is suspended"))
    return member


def _bound_first(
    session: Session, issuer: OidcIssuer, person: Person, member: Member | None
) -> Member | None:
    """Bind a member to a subject, unless another subject of the issuer has them: addresses are reused."""
    if member is None or member.kind is not MemberKind.PERSON:
        return None
    others = sa.select(OidcIdentity.subject).where(
        OidcIdentity.issuer == issuer.issuer, OidcIdentity.member_id == member.id
    )
    if session.scalar(others.limit(1)) is not None:
        return None
    identity = {"issuer": issuer.issuer, "subject": person.subject, "member_id": member.id}
    session.execute(insert(OidcIdentity).values(**identity).on_conflict_do_nothing())
    return member
