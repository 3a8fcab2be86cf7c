"""Proofs that this client holds its keys: its token's (RFC 9449), and its own over an update (RFC 9421)."""

from __future__ import annotations

import base64
import hashlib
import secrets
import time
from collections.abc import MutableMapping
from dataclasses import dataclass, field
from uuid import uuid4

import jwt
from cryptography.hazmat.primitives.asymmetric.ed25519 import Ed25519PrivateKey
from http_message_signatures import HTTPMessageSigner, MappingKeyResolver
from http_message_signatures.algorithms import ED25519

COVERED = ("@method", "@target-uri", "content-digest", "content-length")
TAG = "dpfl-update"
LABEL = "dpfl"


@dataclass(frozen=True)
class Holder:
    """A key of this process alone: a token that is bound to it dies with the process."""

    key: Ed25519PrivateKey = field(default_factory=Ed25519PrivateKey.generate)

    def proof(self, method: str, address: str, *, token: str | None = None) -> str:
        """Sign a note about one request: the header DPoP.

        Args:
            method: upper case.
            address: of the request, without query.
            token: the access token that it comes with.
        """
        claims: dict[str, str | int] = {
            "htm": method,
            "htu": address,
            "iat": int(time.time()),
            "jti": str(uuid4()),
        }
        if token is not None:
            claims["ath"] = _base64url(hashlib.sha256(token.encode()).digest())
        return jwt.encode(
            claims, self.key, algorithm="EdDSA", headers={"typ": "dpop+jwt", "jwk": self._public()}
        )

    def _public(self) -> dict[str, str]:
        return {"kty": "OKP", "crv": "Ed25519", "x": _base64url(self.key.public_key().public_bytes_raw())}


@dataclass
class _Request:
    """What the library signs."""

    method: str
    url: str
    headers: MutableMapping[str, str]


def sign_update(
    headers: MutableMapping[str, str], *, address: str, client_id: str, key: Ed25519PrivateKey
) -> None:
    """Add the signature over an update's PUT to its headers, which hold its digest and length already."""
    keys = MappingKeyResolver(public_keys={}, private_keys={client_id: key})
    HTTPMessageSigner(signature_algorithm=ED25519, key_resolver=keys).sign(
        _Request("PUT", address, headers),
        key_id=client_id,
        nonce=secrets.token_urlsafe(18),
        label=LABEL,
        tag=TAG,
        covered_component_ids=COVERED,
        use_existing_digest=True,
    )


def _base64url(raw: bytes) -> str:
    return base64.urlsafe_b64encode(raw).rstrip(b"=").decode()
