"""A small certificate authority: for this server's own name, and for short-lived client certificates.

P-256 keys, because browsers take no Ed25519 certificates.
"""

from __future__ import annotations

import base64
import hashlib
from collections.abc import Sequence
from dataclasses import dataclass
from datetime import datetime, timedelta
from ipaddress import ip_address

from cryptography import x509
from cryptography.exceptions import InvalidSignature, UnsupportedAlgorithm
from cryptography.hazmat.primitives.asymmetric import ec, ed25519
from cryptography.hazmat.primitives.hashes import SHA256
from cryptography.hazmat.primitives.serialization import (
    Encoding,
    NoEncryption,
    PrivateFormat,
    PublicFormat,
    load_pem_private_key,
)
from cryptography.x509.oid import ExtendedKeyUsageOID, NameOID

AUTHORITY_LIFETIME = timedelta(days=3650)
SERVER_LIFETIME = timedelta(days=397)
"""The longest that browsers take."""
MOST_REQUEST_CHARACTERS = 8192
_BACKDATED = timedelta(minutes=5)
"""For clocks that are a little behind."""


class RequestRefused(Exception):
    """The text is no certificate signing request that can be signed."""


@dataclass(frozen=True, slots=True)
class Authority:
    """A certificate that signs others, with its key."""

    certificate: x509.Certificate
    key: ec.EllipticCurvePrivateKey

    @classmethod
    def new(cls, name: str, *, at: datetime) -> Authority:
        """Make an authority that holds for ten years."""
        key = ec.generate_private_key(ec.SECP256R1())
        subject = _name(name)
        builder = _started(subject, subject, key.public_key(), at, at + AUTHORITY_LIFETIME)
        usage = _usage(digital_signature=True, key_cert_sign=True, crl_sign=True)
        signed = (
            builder.add_extension(x509.BasicConstraints(ca=True, path_length=0), critical=True)
            .add_extension(usage, critical=True)
            .add_extension(x509.SubjectKeyIdentifier.from_public_key(key.public_key()), critical=False)
            .sign(key, SHA256())
        )
        return cls(signed, key)

    @classmethod
    def read(cls, certificate: bytes, key: bytes) -> Authority:
        """Read both from PEM; raises ValueError for what is none, or no pair."""
        private = load_pem_private_key(key, password=None)
        public = x509.load_pem_x509_certificate(certificate)
        if not isinstance(private, ec.EllipticCurvePrivateKey) or private.public_key() != public.public_key():
            raise ValueError("the certificate authority's key is not that of its certificate")
        return cls(public, private)

    def for_server(self, hosts: Sequence[str], *, at: datetime) -> tuple[bytes, bytes]:
        """Certify a new key for host names and addresses; returns certificate and key, PEM."""
        key = ec.generate_private_key(ec.SECP256R1())
        names = x509.SubjectAlternativeName([_general(host) for host in hosts])
        ends = min(at + SERVER_LIFETIME, self.certificate.not_valid_after_utc)
        builder = _started(_name(hosts[0]), self.certificate.subject, key.public_key(), at, ends)
        signed = self._signed(builder, names, ExtendedKeyUsageOID.SERVER_AUTH)
        return pem_of(signed), private_pem(key)

    def for_client(
        self, request_pem: str, *, name: str, uri: str, at: datetime, lifetime: timedelta
    ) -> x509.Certificate:
        """Certify a client's key from its signing request; what else the request asks for is not looked at.

        Raises RequestRefused.
        """
        public = _requested_key(request_pem)
        names = x509.SubjectAlternativeName([x509.UniformResourceIdentifier(uri)])
        builder = _started(_name(name), self.certificate.subject, public, at, at + lifetime)
        return self._signed(builder, names, ExtendedKeyUsageOID.CLIENT_AUTH)

    def _signed(
        self,
        builder: x509.CertificateBuilder,
        names: x509.SubjectAlternativeName,
        purpose: x509.ObjectIdentifier,
    ) -> x509.Certificate:
        mine = x509.SubjectKeyIdentifier.from_public_key(self.key.public_key())
        return (
            builder.add_extension(names, critical=False)
            .add_extension(x509.BasicConstraints(ca=False, path_length=None), critical=True)
            .add_extension(_usage(digital_signature=True), critical=True)
            .add_extension(x509.ExtendedKeyUsage([purpose]), critical=False)
            .add_extension(
                x509.AuthorityKeyIdentifier.from_issuer_subject_key_identifier(mine), critical=False
            )
            .sign(self.key, SHA256())
        )


def pem_of(certificate: x509.Certificate) -> bytes:
    """A certificate as text."""
    return certificate.public_bytes(Encoding.PEM)


def private_pem(key: ec.EllipticCurvePrivateKey) -> bytes:
    """A private key as text, unencrypted: the file's mode guards it."""
    return key.private_bytes(Encoding.PEM, PrivateFormat.PKCS8, NoEncryption())


def pin_of(certificate: x509.Certificate) -> str:
    """Base64 of the SHA-256 of a certificate's SubjectPublicKeyInfo (as RFC 7469 has it)."""
    info = certificate.public_key().public_bytes(Encoding.DER, PublicFormat.SubjectPublicKeyInfo)
    return base64.b64encode(hashlib.sha256(info).digest()).decode()


def uris_of(certificate: x509.Certificate) -> list[str]:
    """The URIs that a certificate names."""
    try:
        names = certificate.extensions.get_extension_for_class(x509.SubjectAlternativeName).value
    except (x509.ExtensionNotFound, x509.DuplicateExtension, ValueError):
        return []
    return names.get_values_for_type(x509.UniformResourceIdentifier)


def _requested_key(text: str) -> ec.EllipticCurvePublicKey | ed25519.Ed25519PublicKey:
    if len(text) > MOST_REQUEST_CHARACTERS:
        raise RequestRefused("too long")
    try:
        request = x509.load_pem_x509_csr(text.encode("ascii"))
        public = request.public_key()
        holds = request.is_signature_valid
    except (ValueError, TypeError, UnsupportedAlgorithm, InvalidSignature) as error:
        raise RequestRefused("no signing request") from error
    if not holds:
        raise RequestRefused("not signed by its own key")
    is_curve = isinstance(public, ec.EllipticCurvePublicKey) and isinstance(public.curve, ec.SECP256R1)
    if not is_curve and not isinstance(public, ed25519.Ed25519PublicKey):
        raise RequestRefused("its key is neither P-256 nor Ed25519")
    return public  # type: ignore[return-value]  # narrowed above


def _started(
    subject: x509.Name,
    issuer: x509.Name,
    public: ec.EllipticCurvePublicKey | ed25519.Ed25519PublicKey,
    at: datetime,
    ends: datetime,
) -> x509.CertificateBuilder:
    return (
        x509.CertificateBuilder()
        .subject_name(subject)
        .issuer_name(issuer)
        .public_key(public)
        .serial_number(x509.random_serial_number())
        .not_valid_before(at - _BACKDATED)
        .not_valid_after(ends)
    )


def _name(text: str) -> x509.Name:
    return x509.Name([x509.NameAttribute(NameOID.COMMON_NAME, text[:64])])


def _general(host: str) -> x509.GeneralName:
    try:
        return x509.IPAddress(ip_address(host))
    except ValueError:
        return x509.DNSName(host)


def _usage(
    *, digital_signature: bool = False, key_cert_sign: bool = False, crl_sign: bool = False
) -> x509.KeyUsage:
    return x509.KeyUsage(
        digital_signature=digital_signature,
        content_commitment=False,
        key_encipherment=False,
        data_encipherment=False,
        key_agreement=False,
        key_cert_sign=key_cert_sign,
        crl_sign=crl_sign,
        encipher_only=False,
        decipher_only=False,
    )
