"""Certificates and requests for tests of TLS."""

from __future__ import annotations

import ssl
from dataclasses import dataclass
from datetime import UTC, datetime, timedelta
from pathlib import Path

from cryptography import x509
from cryptography.hazmat.primitives.asymmetric import ec
from cryptography.hazmat.primitives.hashes import SHA256
from cryptography.hazmat.primitives.serialization import Encoding
from cryptography.x509.oid import NameOID

from app.core.authority import Authority, pem_of, private_pem


def request_of(key: ec.EllipticCurvePrivateKey) -> str:
    """A signing request whose name claims to be somebody else: only its key counts."""
    name = x509.Name([x509.NameAttribute(NameOID.COMMON_NAME, "administrator")])
    signed = x509.CertificateSigningRequestBuilder().subject_name(name).sign(key, SHA256())
    return signed.public_bytes(Encoding.PEM).decode()


@dataclass
class Shown:
    """A client certificate in files, as ssl wants it."""

    certificate: Path
    key: Path

    @classmethod
    def write(cls, folder: Path, name: str, certificate: bytes, key: ec.EllipticCurvePrivateKey) -> Shown:
        shown = cls(folder / f"{name}.pem", folder / f"{name}.key")
        shown.certificate.write_bytes(certificate)
        shown.key.write_bytes(private_pem(key))
        return shown


def issued(
    authority: Authority, folder: Path, name: str, *, lifetime: timedelta = timedelta(hours=1)
) -> Shown:
    """A client certificate that an authority signs without a server's knowing."""
    key = ec.generate_private_key(ec.SECP256R1())
    made = authority.for_client(
        request_of(key), name=name, uri=f"urn:dpfl:client:{name}", at=datetime.now(UTC), lifetime=lifetime
    )
    return Shown.write(folder, name, pem_of(made), key)


def context_of(authority: Path, shown: Shown | None = None) -> ssl.SSLContext:
    """A client's context that trusts one authority, and shows a certificate."""
    context = ssl.create_default_context(cafile=authority)
    if shown is not None:
        context.load_cert_chain(shown.certificate, shown.key)
    return context
