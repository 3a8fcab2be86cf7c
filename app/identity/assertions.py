"""Access tokens for training clients: a short signed assertion in, a bearer token out (RFC 7523).

The private key never leaves the client. An assertion is taken once; one from a clock that is off is
answered with the server's time.
"""

from __future__ import annotations

import contextlib
import re
from dataclasses import dataclass
from datetime import UTC, datetime
from typing import Any, Literal
from uuid import UUID

import sqlalchemy as sa
from cryptography.hazmat.primitives.asymmetric.ed25519 import Ed25519PrivateKey, Ed25519PublicKey
from sqlalchemy.dialects.postgresql import insert
from sqlalchemy.orm import Session

from app.core import clock
from app.core.errors import Unauthorized
from app.core.i18n import _
from app.core.settings import Settings
from app.core.tokens import (
    Expected,
    Refusal,
    TokenRefused,
    read_unverified_subject,
    sign_token,
    verify_token,
)
from app.identity.authentication import Suspended
from app.identity.clients import former_keys, require_active
from app.identity.keys import KeyRing
from app.identity.models import Client, ClientState, UsedAssertion
from app.identity.possession import Possession, Presented
from app.identity.roles import Role

TokenType = Literal["Bearer", "DPoP"]
ASSERTION_LIFETIME_S = 300
_JTI = re.compile(r"[\x21-\x7e]{1,100}")
# Stands in for the key of a client that does not exist, so that the answer takes as long.
_NOBODY = Ed25519PrivateKey.generate().public_key().public_bytes_raw()


class AssertionInvalid(Unauthorized):
    """The assertion does not hold."""

    code, title = "assertion_invalid", _("Client assertion does not hold")
    meaning = _("The assertion is not signed by an enrolled client's key for this server's token address.")
    remedy = _(
        "Sign a fresh assertion: iss and sub your client id, aud the token address, at most 5 minutes."
    )


class AssertionReplayed(Unauthorized):
    """The assertion was used before."""

    code, title = "assertion_replayed", _("Client assertion used already")
    is_suspicious = True
    meaning = _("Each assertion is exchanged once, so that nobody gains by copying one.")
    remedy = _("Sign a fresh assertion with a new jti.")


class ClockSkew(Unauthorized):
    """The two clocks differ by more than the leeway."""

    code, title = "clock_skew", _("The clocks differ")
    meaning = _("The assertion is right, but by this server's clock its time is over or has not come.")
    remedy = _("Set your clock by server_time, then sign a fresh assertion.")


@dataclass(frozen=True, slots=True)
class AccessToken:
    """What the client gets."""

    access_token: str
    expires_in: int
    token_type: TokenType


def exchange(
    session: Session,
    settings: Settings,
    keys: KeyRing,
    *,
    assertion: str,
    possession: Possession,
    presented: Presented,
) -> AccessToken:
    """Check an assertion, note that it was used, and sign an access token for its client and its key."""
    kid, key = keys.current()  # first: it may read the database, and this session holds no connection yet
    client, claims = _verified(session, settings, assertion)
    if client.state is ClientState.SUSPENDED:
        raise Suspended(_("this training client is suspended"))
    require_active(client)
    _use_once(session, client.id, str(claims["jti"]), ends=float(claims["exp"]))
    bound = possession.confirmation(session, client.id, presented)
    token = sign_token(
        key,
        kid=kid,
        issuer=settings.public_url,
        audience=settings.public_url,
        subject=str(client.id),
        lifetime_s=settings.access_token_s,
        claims={
            "org": str(client.organisation_id),
            "role": Role.CLIENT.value,
            "epoch": client.token_epoch,
        }
        | bound,
    )
    token_type: TokenType = "DPoP" if presented.proof is not None else "Bearer"
    return AccessToken(access_token=token, expires_in=settings.access_token_s, token_type=token_type)


def _verified(session: Session, settings: Settings, assertion: str) -> tuple[Client, dict[str, Any]]:
    try:
        subject = read_unverified_subject(assertion)
        client = session.get(Client, UUID(subject))
        claims = _signed_by(session, client, assertion, _expected(settings, subject))
    except TokenRefused as error:
        if error.reason in (Refusal.EXPIRED, Refusal.EARLY):
            raise ClockSkew(
                _("by this server's clock the assertion does not hold now"),
                server_time=clock.now().isoformat(),
                leeway_s=settings.clock_leeway_s,
            ) from error
        raise _invalid(settings) from error
    except ValueError as error:  # a subject that is no id, a key that is no point
        raise _invalid(settings) from error
    if client is None or not _JTI.fullmatch(claims["jti"]):
        raise _invalid(settings)
    return client, claims


def _signed_by(session: Session, client: Client | None, assertion: str, expected: Expected) -> dict[str, Any]:
    """The claims, if the client's key signed them, or a former one whose overlap is not over."""
    try:
        key = Ed25519PublicKey.from_public_bytes(_NOBODY if client is None else client.public_key)
        return verify_token(assertion, key, expected)
    except TokenRefused as error:
        if client is None or error.reason is not Refusal.SIGNATURE:
            raise
        for former in former_keys(session, client.id):
            with contextlib.suppress(TokenRefused):
                return verify_token(assertion, Ed25519PublicKey.from_public_bytes(former), expected)
        raise


def _invalid(settings: Settings) -> AssertionInvalid:
    """One text for every fault, so that it tells nothing of which clients there are."""
    return AssertionInvalid(
        _("the client assertion does not hold; its audience must be {audience}"), audience=_audience(settings)
    )


def _audience(settings: Settings) -> str:
    return f"{settings.public_url.rstrip('/')}/v1/tokens"


def _expected(settings: Settings, subject: str) -> Expected:
    return Expected(
        typ=None,
        issuer=subject,
        audience=_audience(settings),
        max_lifetime_s=ASSERTION_LIFETIME_S,
        leeway_s=settings.clock_leeway_s,
        required=("exp", "iat", "aud", "iss", "sub", "jti"),
    )


def _use_once(session: Session, client_id: UUID, jti: str, *, ends: float) -> None:
    """Note the assertion until it would have expired anyway; forget this client's older ones."""
    stale = clock.now().timestamp() - 600
    session.execute(
        sa.delete(UsedAssertion).where(
            UsedAssertion.client_id == client_id,
            UsedAssertion.expires_at < datetime.fromtimestamp(stale, UTC),
        )
    )
    fresh = session.scalar(
        insert(UsedAssertion)
        .values(jti=jti, client_id=client_id, expires_at=datetime.fromtimestamp(ends, UTC))
        .on_conflict_do_nothing()
        .returning(UsedAssertion.jti)
    )
    if fresh is None:
        raise AssertionReplayed(_("this assertion was exchanged before"))
