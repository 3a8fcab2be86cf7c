"""Signed JSON web tokens with Ed25519, and nothing else: no other algorithm is known here.

Every way in which a token can be wrong ends in `TokenRefused`, never in another exception.
"""

from __future__ import annotations

import base64
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from datetime import timedelta
from enum import StrEnum
from typing import Any
from uuid import uuid4

import jwt
from cryptography.hazmat.primitives.asymmetric.ed25519 import Ed25519PrivateKey, Ed25519PublicKey
from cryptography.hazmat.primitives.serialization import Encoding, PublicFormat

from app.core import clock

ACCESS_TOKEN = "at+jwt"  # noqa: S105  a media type (RFC 9068)  # nosec B105
MAX_TOKEN_CHARS = 4096
_REQUIRED = ["exp", "nbf", "iat", "aud", "iss", "sub", "jti"]
_MAX_TEXT = 200


class Refusal(StrEnum):
    """Why a token does not hold."""

    MALFORMED = "malformed"  # not a token of the expected form
    SIGNATURE = "signature"  # made by a key that is not known here, or changed
    CLAIMS = "claims"  # of another issuer, for another audience, or for too long
    EXPIRED = "expired"  # its time is over
    EARLY = "early"  # its time has not come: one of the two clocks is off


class TokenRefused(Exception):
    """The token does not hold."""

    def __init__(self, reason: Refusal) -> None:
        super().__init__(reason)
        self.reason = reason


@dataclass(frozen=True, slots=True, kw_only=True)
class Expected:
    """What a token must say to be taken."""

    typ: str | None
    """The `typ` header; None takes `JWT` or none at all (client assertions)."""
    issuer: str
    audience: str
    max_lifetime_s: int
    leeway_s: int
    required: tuple[str, ...] = tuple(_REQUIRED)


def sign_token(
    key: Ed25519PrivateKey,
    *,
    kid: str,
    issuer: str,
    audience: str,
    subject: str,
    lifetime_s: int,
    claims: Mapping[str, str | int],
) -> str:
    """Sign an access token that holds from now on for `lifetime_s` seconds."""
    issued = int(clock.now().timestamp())
    payload: dict[str, Any] = {
        **claims,
        "iss": issuer,
        "aud": audience,
        "sub": subject,
        "jti": str(uuid4()),
        "iat": issued,
        "nbf": issued,
        "exp": issued + lifetime_s,
    }
    return jwt.encode(payload, key, algorithm="EdDSA", headers={"typ": ACCESS_TOKEN, "kid": kid})


def read_header(token: str) -> dict[str, Any]:
    """The unverified header; only for finding the key. Raises TokenRefused."""
    if len(token) > MAX_TOKEN_CHARS:
        raise TokenRefused(Refusal.MALFORMED)
    return _guarded(lambda: jwt.get_unverified_header(token))


def read_unverified_subject(token: str) -> str:
    """The unverified `sub`; only for finding the key that must have signed. Raises TokenRefused."""
    if len(token) > MAX_TOKEN_CHARS:
        raise TokenRefused(Refusal.MALFORMED)
    claims = _guarded(lambda: jwt.decode(token, options={"verify_signature": False}))
    subject = claims.get("sub")
    if not isinstance(subject, str):
        raise TokenRefused(Refusal.MALFORMED)
    return subject


def verify_token(token: str, key: Ed25519PublicKey, expected: Expected) -> dict[str, Any]:
    """Return the claims of a token that holds; raises TokenRefused with the reason.

    Times are checked here and not by the library: it takes an `exp` in text or in the far future.
    """
    header = read_header(token)
    typ = header.get("typ")
    if typ != expected.typ and not (expected.typ is None and typ in (None, "JWT")):
        raise TokenRefused(Refusal.MALFORMED)
    claims = _guarded(
        lambda: jwt.decode(
            token,
            key,
            algorithms=["EdDSA"],
            audience=expected.audience,
            issuer=expected.issuer,
            options={
                "require": list(expected.required),
                "verify_exp": False,
                "verify_nbf": False,
                "verify_iat": False,
                "strict_aud": True,
            },
        )
    )
    if any(not isinstance(claims[name], str) or len(claims[name]) > _MAX_TEXT for name in ("sub", "jti")):
        raise TokenRefused(Refusal.CLAIMS)
    _check_times(claims, expected)
    return claims


def public_jwk(kid: str, public_key: bytes) -> dict[str, str]:
    """The public half as a JSON web key (RFC 8037)."""
    x = base64.urlsafe_b64encode(public_key).rstrip(b"=").decode()
    return {"kty": "OKP", "crv": "Ed25519", "alg": "EdDSA", "use": "sig", "kid": kid, "x": x}


def raw_public(key: Ed25519PrivateKey) -> bytes:
    """The 32 bytes of the public half."""
    return key.public_key().public_bytes(Encoding.Raw, PublicFormat.Raw)


def _check_times(claims: Mapping[str, Any], expected: Expected) -> None:
    times = [claims[name] for name in ("iat", "nbf", "exp") if name in claims]
    if any(not isinstance(value, int) or isinstance(value, bool) for value in times):
        raise TokenRefused(Refusal.CLAIMS)
    issued, ends = claims["iat"], claims["exp"]
    if not 0 < ends - issued <= expected.max_lifetime_s:
        raise TokenRefused(Refusal.CLAIMS)
    moment, leeway = clock.now(), timedelta(seconds=expected.leeway_s)
    if max(issued, claims.get("nbf", issued)) > (moment + leeway).timestamp():
        raise TokenRefused(Refusal.EARLY)
    if ends <= (moment - leeway).timestamp():
        raise TokenRefused(Refusal.EXPIRED)


def _guarded(read: Callable[[], dict[str, Any]]) -> dict[str, Any]:
    """Run the library and turn whatever it raises for a hostile token into TokenRefused."""
    try:
        return read()
    except jwt.InvalidSignatureError as error:
        raise TokenRefused(Refusal.SIGNATURE) from error
    except (jwt.InvalidAudienceError, jwt.InvalidIssuerError, jwt.MissingRequiredClaimError) as error:
        raise TokenRefused(Refusal.CLAIMS) from error
    except (jwt.PyJWTError, TypeError, ValueError, AttributeError, RecursionError) as error:
        # Bare TypeError and friends: claims of unexpected types, deep nesting, broken text.
        raise TokenRefused(Refusal.MALFORMED) from error
