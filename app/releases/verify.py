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
from app.releases.members import first_difference

WHOLE = 2
"""The first version that holds: signed as one piece, without digests of tensors."""
BY_MEMBERS = range(3, VERSION + 1)
"""Versions that are signed over the list of their members' digests."""
_SIGNATURE = {"kid", "alg", "value"}


class CertificateInvalid(Exception):
    """The certificate is not one that the holder of these keys has signed; the text says why."""


class MemberChanged(CertificateInvalid):
    """A member is not the one whose digest was signed."""

    def __init__(self, pointer: str) -> None:
        super().__init__(f"{pointer} was changed, added or taken out")
        self.pointer = pointer


def verify(certificate: Mapping[str, Any], jwks: Mapping[str, Any]) -> str:
    """Check the signature and return the id of the key that made it; raises CertificateInvalid.

    Args:
        certificate: the parsed JSON, signature included.
        jwks: a JSON web key set (RFC 7517), as published by the issuer; fetch it from the issuer itself.
    """
    members, signature = require_unchanged(certificate), certificate.get("signature")
    if not isinstance(signature, Mapping) or signature.get("alg") != ALGORITHM:
        raise CertificateInvalid("the certificate carries no EdDSA signature")
    kid, value = signature.get("kid"), signature.get("value")
    if not isinstance(kid, str) or not isinstance(value, str):
        raise CertificateInvalid("the certificate's signature is malformed")
    try:
        _key(jwks, kid).verify(_decoded(value), canonical_bytes(members))
    except (InvalidSignature, ValueError) as error:
        raise CertificateInvalid("the signature does not hold: the certificate was changed") from error
    return kid


def require_unchanged(certificate: Mapping[str, Any]) -> Mapping[str, Any]:
    """Hold a certificate against its own list of digests, and return what its signature has to be over.

    Whoever changes a member and not the list is told by the member's name; whoever changes both breaks the
    signature, and only that tells. The signature has no further members: nothing would cover them. Raises
    CertificateInvalid.
    """
    content = {name: member for name, member in certificate.items() if name != "signature"}
    version, signature = content.get("version"), certificate.get("signature")
    if type(version) is not int or (version != WHOLE and version not in BY_MEMBERS):
        raise CertificateInvalid("the certificate is of an unknown version")
    names = _SIGNATURE if version == WHOLE else _SIGNATURE | {"members"}
    if isinstance(signature, Mapping) and (unsigned := sorted(signature.keys() - names)):
        raise CertificateInvalid(f"the signature holds {unsigned[0]!r}, which nothing covers")
    try:
        return _as_signed(content, signature)
    except ValueError as error:  # text that is no Unicode, or a number that is not finite
        raise CertificateInvalid("the certificate has no canonical form") from error


def _as_signed(content: Mapping[str, Any], signature: Any) -> Mapping[str, Any]:
    if content["version"] == WHOLE:
        canonical_bytes(content)
        return content
    members = signature.get("members") if isinstance(signature, Mapping) else None
    if not isinstance(members, Mapping):
        raise CertificateInvalid("the certificate does not list its members")
    changed = first_difference(content, members)
    if changed is not None:
        raise MemberChanged(changed)
    return members


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
        found = base64.b64decode(text + "=" * (-len(text) % 4), altchars=b"-_", validate=True)
    except (binascii.Error, ValueError) as error:
        raise CertificateInvalid("a key or signature is not base64url") from error
    if base64.urlsafe_b64encode(found).rstrip(b"=") != text.encode():  # bits that no byte holds
        raise CertificateInvalid("a key or signature is not base64url in its one form")
    return found
