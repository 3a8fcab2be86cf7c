"""Whom a client takes for its server: who certifies it, and the public keys that it may have (pins).

A pin is the SHA-256 of a certificate's SubjectPublicKeyInfo, written as curl's --pinnedpubkey has it. It is
looked at inside the handshake: where none fits, the connection ends before a byte of a request has left.
"""

from __future__ import annotations

import base64
import hashlib
import re
import ssl
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any, TypeAlias

import httpx2
from cryptography.hazmat.primitives.serialization import Encoding, PublicFormat
from cryptography.x509 import load_der_x509_certificate

from client.errors import ClientError, printable
from client.i18n import _

MOST_PINS = 4
MOST_AUTHORITIES = 4
PIN_PATTERN = r"^sha256//[A-Za-z0-9+/]{43}=$"
_MOST_NAME_CHARS = 200
_Connection: TypeAlias = ssl.SSLSocket | ssl.SSLObject


def pin_of(certificate: bytes) -> str:
    """The pin of a certificate's key, from its DER bytes."""
    key = load_der_x509_certificate(certificate).public_key()
    spki = key.public_bytes(Encoding.DER, PublicFormat.SubjectPublicKeyInfo)
    return f"sha256//{base64.b64encode(hashlib.sha256(spki).digest()).decode()}"


def issuer_of(certificate: bytes) -> str:
    """Who says that it issued a certificate, as one short line."""
    name = load_der_x509_certificate(certificate).issuer.rfc4514_string()
    return printable(name)[:_MOST_NAME_CHARS] or "-"


def require_pins(pins: Sequence[str]) -> tuple[str, ...]:
    """Refuse what is no set of pins; returns it."""
    for pin in pins:
        if not isinstance(pin, str) or re.fullmatch(PIN_PATTERN, pin) is None:
            raise ClientError("bad_pin", _("{pin} is no pin: it looks like sha256//..."), pin=str(pin)[:100])
    if len(pins) > MOST_PINS:
        raise ClientError("bad_pin", _("there are at most {most} pins"), most=MOST_PINS)
    return tuple(pins)


class Seen:
    """Looks at the certificate of each connection when its handshake ends, and remembers the last one."""

    def __init__(self, pins: Sequence[str]) -> None:
        self._pins = frozenset(pins)
        self.certificate: bytes | None = None
        """DER, of the last connection that was accepted."""

    def look(self, connection: _Connection, *, whole_chain: bool) -> None:
        """Accept a connection whose handshake is done, or raise `pin_mismatch`."""
        certificate = connection.getpeercert(binary_form=True) or b""
        chain = _verified_chain(connection) if whole_chain else [certificate]
        if self._pins and self._pins.isdisjoint(map(pin_of, chain)):
            raise ClientError(
                "pin_mismatch",
                _("this is not the pinned server: its key is {pin}, its certificate issued by {issuer}"),
                pin=pin_of(certificate),
                issuer=issuer_of(certificate),
            )
        self.certificate = certificate


@dataclass(frozen=True)
class Trust:
    """What certificates a client accepts."""

    ca_file: str | None = None
    """Authorities instead of the system's."""
    extra_ca_file: str | None = None
    """Authorities besides those."""
    pins: tuple[str, ...] = ()
    """Keys of which the server's chain has to hold one; without any, certificates alone decide."""
    ca_pem: str | None = None
    """Like `ca_file`, in its place: the text itself."""

    def own_authority(self) -> str | None:
        """The certificates (PEM) of `ca_file`, and nothing else that it holds."""
        if self.ca_file is None:
            return None
        context = ssl.SSLContext(ssl.PROTOCOL_TLS_CLIENT)
        try:
            context.load_verify_locations(cafile=self.ca_file)
        except (OSError, ssl.SSLError) as error:
            raise _unreadable(self.ca_file) from error
        found = context.get_ca_certs(binary_form=True)
        if not 1 <= len(found) <= MOST_AUTHORITIES:
            raise ClientError(
                "bad_ca_file",
                _("{path} has to hold the server's own authority and at most {most} certificates"),
                path=self.ca_file,
                most=MOST_AUTHORITIES,
            )
        return "".join(map(ssl.DER_cert_to_PEM_cert, found))

    def context(self, seen: Seen | None = None) -> ssl.SSLContext:
        """Make the context of connections; with `seen`, each is looked at within its handshake."""
        try:
            if self.ca_file or self.ca_pem:
                context = ssl.create_default_context(cafile=self.ca_file, cadata=self.ca_pem)
            else:
                context = httpx2.create_ssl_context(trust_env=False)
            if self.extra_ca_file:
                context.load_verify_locations(cafile=self.extra_ca_file)
        except (OSError, ssl.SSLError) as error:
            raise _unreadable(str(self.extra_ca_file or self.ca_file)) from error
        if seen is not None:
            _look_within_handshakes(context, seen)
        return context


def _unreadable(path: str) -> ClientError:
    return ClientError("bad_ca_file", _("{path} holds no certificates that can be read"), path=path)


def certificate_fault(error: BaseException) -> ssl.SSLCertVerificationError | None:
    """Find in what way a certificate was refused, if that is why a connection failed."""
    cause: BaseException | None = error
    while cause is not None and not isinstance(cause, ssl.SSLCertVerificationError):
        cause = cause.__cause__ or cause.__context__
    return cause


def _look_within_handshakes(context: ssl.SSLContext, seen: Seen) -> None:
    """Have every connection of `context` looked at as the last thing its handshake does."""
    # httpx2 takes the system's own verifier where there is one (truststore): it wraps a context, whose
    # sockets verify by themselves, and OpenSSL's chain is not a verified one there.
    inner: Any = getattr(context, "_ctx", context)
    whole_chain = inner is context
    socket_class: type[ssl.SSLSocket] = inner.sslsocket_class
    object_class: type[ssl.SSLObject] = inner.sslobject_class

    class LookedAtSocket(socket_class):  # type: ignore[misc, valid-type]
        def do_handshake(self, block: bool = False) -> None:  # noqa: FBT001, FBT002  as its base has it
            super().do_handshake(block)
            try:
                seen.look(self, whole_chain=whole_chain)
            except BaseException:
                self.close()
                raise

    class LookedAtObject(object_class):  # type: ignore[misc, valid-type]
        def do_handshake(self) -> None:
            super().do_handshake()
            seen.look(self, whole_chain=whole_chain)

    inner.sslsocket_class, inner.sslobject_class = LookedAtSocket, LookedAtObject


def _verified_chain(connection: _Connection) -> list[bytes]:
    """The chain by which the certificate was verified, not the one that was sent, which may hold anything."""
    owner: Any = connection
    if not hasattr(owner, "get_verified_chain"):  # public from Python 3.13 on
        owner = owner._sslobj
    return [
        one if isinstance(one, bytes) else ssl.PEM_cert_to_DER_cert(one.public_bytes())
        for one in owner.get_verified_chain()
    ]
