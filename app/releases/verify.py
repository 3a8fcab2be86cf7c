"""Checking a certificate's signature against published keys. Needs no database and no server.

It tells that the issuer said this, not that it is true: whoever wants the epsilon recomputes it from the
parameters in the certificate.
"""

from __future__ import annotations

import base64
import binascii
from collections.abc import Mapping
from typing import Any

from cryptography.exceptions import InvalidSignature
from cryptography.hazmat.primitives.asymmetric.ed25519 import Ed25519PublicKey

from app.core.canonical import canonical_bytes
from app.releases.certificate import ALGORITHM, VERSION


class CertificateInvalid(Exception):
    """The certificate is not one that the holder of these keys has signed; the text says why."""


def verify(certificate: Mapping[str, Any], jwks: Mapping[str, Any]) -> str:
    """Check the signature and return the id of the key that made it; raises CertificateInvalid.

    Args:
        certificate: the parsed JSON, signature included.
        jwks: a JSON web key set (RFC 7517), as published by the issuer; fetch it from the issuer itself.
    """
    if certificate.get("version") != VERSION:
        raise CertificateInvalid("the certificate is of an unknown version")
    signature = certificate.get("signature")
    if not isinstance(signature, Mapping) or signature.get("alg") != ALGORITHM:
        raise CertificateInvalid("the certificate carries no EdDSA signature")
    kid, value = signature.get("kid"), signature.get("value")
    if not isinstance(kid, str) or not isinstance(value, str):
        raise CertificateInvalid("the certificate's signature is malformed")
    content = {name: member for name, member in certificate.items() if name != "signature"}
    try:
        _key(jwks, kid).verify(_decoded(value), canonical_bytes(content))
    except (InvalidSignature, ValueError) as error:
        raise CertificateInvalid("the signature does not hold: the certificate was changed") from error
    return kid


def _key(jwks: Mapping[str, Any], kid: str) -> Ed25519PublicKey:
    keys = jwks.get("keys")
    for key in keys if isinstance(keys, list) else []:
        if isinstance(key, Mapping) and key.get("kid") == kid:
            if (key.get("kty"), key.get("crv")) != ("OKP", "Ed25519") or not isinstance(key.get("x"), str):
                raise CertificateInvalid("the signing key is no Ed25519 key")
            return Ed25519PublicKey.from_public_bytes(_decoded(key["x"]))
    raise CertificateInvalid("the signing key is not among the published ones")


def _decoded(text: str) -> bytes:
    try:
        return base64.b64decode(text + "=" * (-len(text) % 4), altchars=b"-_", validate=True)
    except (binascii.Error, ValueError) as error:
        raise CertificateInvalid("a key or signature is not base64url") from error
