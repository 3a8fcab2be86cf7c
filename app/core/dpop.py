"""Proofs that whoever shows a token holds its key (DPoP, RFC 9449): a signed note about one request.

Ed25519 only, as everywhere here. What is wrong with a proof ends in `TokenRefused`, never in another error.
"""

from __future__ import annotations

import base64
import binascii
import hashlib
import json
import re
from dataclasses import dataclass
from datetime import UTC, datetime, timedelta
from typing import Any
from urllib.parse import urlsplit

from cryptography.hazmat.primitives.asymmetric.ed25519 import Ed25519PublicKey

from app.core import clock
from app.core.tokens import MAX_TOKEN_CHARS, Refusal, TokenRefused, read_header, read_signed

PROOF = "dpop+jwt"
MAX_AGE_S = 60
_JTI = re.compile(r"[\x21-\x7e]{8,100}")
_PRIVATE = frozenset({"d", "k", "p", "q", "dp", "dq", "qi"})
_PORTS = {"http": 80, "https": 443}


@dataclass(frozen=True, slots=True)
class Proof:
    """A proof that holds for one request."""

    thumbprint: str
    """Of its key (RFC 7638): base64url of a SHA-256."""
    jti: str
    ends_at: datetime
    """From then on it would be refused for its age."""


def read_proof(
    text: str, *, method: str, target: str, leeway_s: int, access_token: str | None = None
) -> Proof:
    """Check a proof's signature by the key that it names, and that it is about this request.

    Args:
        text: the header `DPoP`.
        method: of the request, upper case.
        target: the request's address as its sender knows it; query and fragment do not count.
        leeway_s: by how many seconds the two clocks may differ.
        access_token: the token that it comes with; its digest must be in the proof.
    Raises:
        TokenRefused: MALFORMED, SIGNATURE, CLAIMS (another request's, or another token's), EXPIRED, EARLY.
    Source: RFC 9449, section 4.3.
    """
    if len(text) > MAX_TOKEN_CHARS:
        raise TokenRefused(Refusal.MALFORMED)
    header = read_header(text)
    if header.get("typ") != PROOF:
        raise TokenRefused(Refusal.MALFORMED)
    raw = _raw_key(header.get("jwk"))
    claims = read_signed(text, Ed25519PublicKey.from_public_bytes(raw), required=("iat", "jti", "htm", "htu"))
    jti, issued = claims["jti"], claims["iat"]
    if not isinstance(jti, str) or not _JTI.fullmatch(jti):
        raise TokenRefused(Refusal.CLAIMS)
    if claims["htm"] != method or _address(claims["htu"]) != _address(target):
        raise TokenRefused(Refusal.CLAIMS)
    if access_token is not None and claims.get("ath") != digest_of(access_token):
        raise TokenRefused(Refusal.CLAIMS)
    return Proof(thumbprint(raw), jti, _ends(issued, leeway_s))


def thumbprint(raw: bytes) -> str:
    """The JWK thumbprint of a raw Ed25519 key (RFC 7638 over RFC 8037's members)."""
    members = {"crv": "Ed25519", "kty": "OKP", "x": _base64url(raw)}
    return _base64url(hashlib.sha256(json.dumps(members, separators=(",", ":")).encode()).digest())


def digest_of(access_token: str) -> str:
    """What a proof says of the token that it comes with (`ath`)."""
    return _base64url(hashlib.sha256(access_token.encode()).digest())


def _raw_key(jwk: Any) -> bytes:
    is_public = isinstance(jwk, dict) and not _PRIVATE & jwk.keys()
    if not is_public or jwk.get("kty") != "OKP" or jwk.get("crv") != "Ed25519":
        raise TokenRefused(Refusal.MALFORMED)
    text = jwk.get("x")
    if not isinstance(text, str) or len(text) != 43:
        raise TokenRefused(Refusal.MALFORMED)
    try:
        raw = base64.b64decode(text + "=", altchars=b"-_", validate=True)
    except (binascii.Error, ValueError) as error:
        raise TokenRefused(Refusal.MALFORMED) from error
    if _base64url(raw) != text:  # two texts of one key would be two thumbprints elsewhere
        raise TokenRefused(Refusal.MALFORMED)
    return raw


def _address(text: Any) -> tuple[str, str, int | None, str]:
    """Scheme, host, port and path in one spelling; raises TokenRefused for what is no address."""
    if not isinstance(text, str) or not text.isascii():
        raise TokenRefused(Refusal.CLAIMS)
    try:
        parts = urlsplit(text)
        host, port = parts.hostname, parts.port
    except ValueError as error:
        raise TokenRefused(Refusal.CLAIMS) from error
    if host is None or parts.username is not None:
        raise TokenRefused(Refusal.CLAIMS)
    scheme = parts.scheme.lower()
    return scheme, host, port or _PORTS.get(scheme), parts.path or "/"


def _ends(issued: Any, leeway_s: int) -> datetime:
    if not isinstance(issued, int) or isinstance(issued, bool) or not 0 <= issued < 2**40:
        raise TokenRefused(Refusal.CLAIMS)
    moment, leeway = clock.now(), timedelta(seconds=leeway_s)
    made_at = datetime.fromtimestamp(issued, UTC)
    if made_at > moment + leeway:
        raise TokenRefused(Refusal.EARLY)
    ends_at = made_at + timedelta(seconds=MAX_AGE_S) + leeway
    if ends_at <= moment:
        raise TokenRefused(Refusal.EXPIRED)
    return ends_at


def _base64url(raw: bytes) -> str:
    return base64.urlsafe_b64encode(raw).rstrip(b"=").decode()
