"""Proofs and signatures made by hand, from the RFCs alone: a second implementation beside the client's."""

from __future__ import annotations

import base64
import hashlib
import time
from dataclasses import dataclass, field
from typing import Any
from uuid import uuid4

import jwt
from cryptography.hazmat.primitives.asymmetric.ed25519 import Ed25519PrivateKey

COMPONENTS = ("@method", "@target-uri", "content-digest", "content-length")


def base64url(raw: bytes) -> str:
    return base64.urlsafe_b64encode(raw).rstrip(b"=").decode()


def public_jwk(key: Ed25519PrivateKey) -> dict[str, Any]:
    return {"kty": "OKP", "crv": "Ed25519", "x": base64url(key.public_key().public_bytes_raw())}


@dataclass
class Hand:
    """A key that proves (RFC 9449)."""

    key: Ed25519PrivateKey = field(default_factory=Ed25519PrivateKey.generate)

    def proof(
        self,
        method: str,
        address: str,
        *,
        token: str | None = None,
        headers: dict[str, Any] | None = None,
        **changes: Any,
    ) -> str:
        claims: dict[str, Any] = {
            "htm": method,
            "htu": address,
            "iat": int(time.time()),
            "jti": str(uuid4()),
        }
        if token is not None:
            claims["ath"] = base64url(hashlib.sha256(token.encode()).digest())
        claims = {name: value for name, value in (claims | changes).items() if value is not None}
        head = {"typ": "dpop+jwt", "jwk": public_jwk(self.key)} | (headers or {})
        return jwt.encode(claims, self.key, algorithm="EdDSA", headers=head)

    def headers(self, method: str, address: str, token: str) -> dict[str, str]:
        return {
            "Authorization": f"DPoP {token}",
            "DPoP": self.proof(method, address, token=token),
        }


def content_digest(body: bytes) -> str:
    return f"sha-256=:{base64.b64encode(hashlib.sha256(body).digest()).decode()}:"


def signed_update(
    body: bytes,
    *,
    address: str,
    client_id: object,
    key: Ed25519PrivateKey,
    method: str = "PUT",
    components: tuple[str, ...] = COMPONENTS,
    age_s: int = 0,
    created: int | None = None,
    nonce: str | None = "",
    tag: str = "dpfl-update",
    alg: str = "ed25519",
) -> dict[str, str]:
    """Headers of an update's PUT with its signature (RFC 9421, section 2.5)."""
    values = {
        "@method": method,
        "@target-uri": address,
        "content-digest": content_digest(body),
        "content-length": str(len(body)),
    }
    listed = " ".join(f'"{name}"' for name in components)
    at = int(time.time()) - age_s if created is None else created
    told = f'({listed});created={at};keyid="{client_id}";alg="{alg}"'
    if nonce is not None:
        told += f';nonce="{nonce or uuid4().hex}"'
    told += f';tag="{tag}"'
    lines = [f'"{name}": {values[name]}' for name in components]
    base = "\n".join([*lines, f'"@signature-params": {told}'])
    signature = base64.b64encode(key.sign(base.encode())).decode()
    return {
        "Content-Type": "application/octet-stream",
        "Content-Digest": values["content-digest"],
        "Content-Length": values["content-length"],
        "Signature-Input": f"dpfl={told}",
        "Signature": f"dpfl=:{signature}:",
    }
