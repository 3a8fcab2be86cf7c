"""The signature over an update's request (RFC 9421): evidence of who sent which bytes to which round.

It covers the method, the address by which the client knows this server, the body's digest and its length.
The digest is compared with the bytes as they stream (app/updates/stream.py): without that, a body could be
exchanged under a signature that still holds.
"""

from __future__ import annotations

import re
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from datetime import timedelta
from uuid import UUID

from cryptography.hazmat.primitives.asymmetric.ed25519 import Ed25519PublicKey
from http_message_signatures import (
    HTTPMessageSignaturesException,
    HTTPMessageVerifier,
    HTTPSignatureKeyResolver,
    VerifyResult,
)
from http_message_signatures.algorithms import ED25519
from sqlalchemy.exc import IntegrityError
from sqlalchemy.orm import Session

from app.core.errors import Conflict, Unauthorized
from app.core.i18n import _
from app.updates.models import Update

INPUT, SIGNATURE = "Signature-Input", "Signature"
COVERED = ("@method", "@target-uri", "content-digest", "content-length")
TAG = "dpfl-update"
MAX_AGE = timedelta(minutes=5)
MOST_CHARACTERS = 1000
_NONCE = re.compile(r"[A-Za-z0-9_-]{16,100}")


class SignatureMissing(Unauthorized):
    """The update is not signed."""

    code, title = "update_unsigned", _("Signature missing")
    meaning = _("An update is signed by the key of the client that sends it, so that nobody can deny it.")
    remedy = _("Sign the request's head (RFC 9421) as the API's documentation says, and send it again.")


class SignatureInvalid(Unauthorized):
    """The signature does not hold for this request."""

    code, title = "update_signature_invalid", _("Signature does not hold")
    meaning = _("The signature is not this client's over this method, address, digest and length, or is old.")
    remedy = _(
        "Sign anew with the enrolled key; check your clock, and that you call the server by its public "
        "address. Nothing was charged."
    )


class NonceUsed(Conflict):
    """Another update carries this signature's nonce."""

    code, title = "nonce_used", _("Nonce used already")
    meaning = _("Each update of a client has a nonce of its own, so that no signature serves two.")
    remedy = _("Sign the same bytes again with a fresh nonce.")


@dataclass(frozen=True, slots=True)
class Head:
    """The parts of a request's head that a signature is about; a message as the library reads it."""

    url: str
    headers: Mapping[str, str]
    leeway_s: int = 5
    """By how many seconds the two clocks may differ."""
    method: str = "PUT"


@dataclass(frozen=True, slots=True)
class Signature:
    """A signature that holds."""

    input: str
    signature: str
    nonce: str


def head_of(headers: Mapping[str, str], *, target: str, is_required: bool, leeway_s: int) -> Head | None:
    """Take what is signed from a request; raises SignatureMissing, or SignatureInvalid where it is too long.

    Returns: None where nothing is signed and need not be.
    """
    names = (INPUT, SIGNATURE, "content-digest", "content-length")
    found = {name: headers[name] for name in names if name in headers}
    if INPUT not in found and SIGNATURE not in found and not is_required:
        return None
    if INPUT not in found or SIGNATURE not in found:
        raise SignatureMissing(
            _("send the headers {input} and {signature}"), input=INPUT, signature=SIGNATURE
        )
    if any(len(value) > MOST_CHARACTERS for value in found.values()):
        raise SignatureInvalid(_("a signature's header has at most {most} characters"), most=MOST_CHARACTERS)
    return Head(url=target, headers=found, leeway_s=leeway_s)


def verified(head: Head, client_id: UUID, keys: Sequence[bytes]) -> Signature:
    """Check a head's signature by one of its client's keys; raises SignatureInvalid.

    Args:
        keys: raw Ed25519, the present one first; former ones within their overlap.
    """
    held = _held(head, client_id, keys)
    nonce = held[0].nonce
    if len(held) != 1 or nonce is None or not _NONCE.fullmatch(nonce):
        raise SignatureInvalid(_("a signature has a nonce of 16 to 100 letters, digits, - and _"))
    return Signature(head.headers[INPUT], head.headers[SIGNATURE], nonce)


def _held(head: Head, client_id: UUID, keys: Sequence[bytes]) -> list[VerifyResult]:
    refused: HTTPMessageSignaturesException | None = None
    for key in keys:
        verifier = HTTPMessageVerifier(signature_algorithm=ED25519, key_resolver=_KeyOf(client_id, key))
        verifier.max_clock_skew = timedelta(seconds=head.leeway_s)
        try:
            return verifier.verify(head, max_age=MAX_AGE, expect_tag=TAG, require_components=COVERED)
        except HTTPMessageSignaturesException as error:
            refused = refused or error
    raise SignatureInvalid(
        _("the signature does not hold for {method} {target}"), method=head.method, target=head.url[:500]
    ) from refused


def keep(session: Session, update: Update, signature: Signature | None) -> None:
    """Keep the latest signature with its update; raises NonceUsed."""
    if signature is not None:
        update.signature_input, update.signature = signature.input, signature.signature
        update.signature_nonce = signature.nonce
    try:
        with session.begin_nested():
            session.flush()
    except IntegrityError as error:
        raise NonceUsed(_("another update of this client carries this nonce")) from error


class _KeyOf(HTTPSignatureKeyResolver):
    """The one key that counts: the client's own, whatever the request names."""

    def __init__(self, client_id: UUID, key: bytes) -> None:
        self._name, self._key = str(client_id), key

    def resolve_public_key(self, key_id: str) -> Ed25519PublicKey | None:
        return Ed25519PublicKey.from_public_bytes(self._key) if key_id == self._name else None
