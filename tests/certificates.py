"""Certificate authorities of tests, and what they issue."""

from __future__ import annotations

import ipaddress
import ssl
import tempfile
from datetime import UTC, datetime, timedelta
from pathlib import Path

from cryptography import x509
from cryptography.hazmat.primitives import hashes
from cryptography.hazmat.primitives.asymmetric import ec
from cryptography.hazmat.primitives.serialization import Encoding, NoEncryption, PrivateFormat
from cryptography.x509.oid import NameOID

from client.trust import pin_of

Key = ec.EllipticCurvePrivateKey


def new_key() -> Key:
    return ec.generate_private_key(ec.SECP256R1())


def _name(common: str) -> x509.Name:
    return x509.Name([x509.NameAttribute(NameOID.COMMON_NAME, common)])


class Issued:
    """A certificate with its key."""

    def __init__(self, certificate: x509.Certificate, key: Key) -> None:
        self.certificate = certificate
        self.key = key

    @property
    def pin(self) -> str:
        return pin_of(self.certificate.public_bytes(Encoding.DER))

    @property
    def pem(self) -> str:
        return self.certificate.public_bytes(Encoding.PEM).decode()

    def server_context(self, *along: Issued) -> ssl.SSLContext:
        """What a server speaks TLS with; certificates `along` are sent too."""
        context = ssl.SSLContext(ssl.PROTOCOL_TLS_SERVER)
        secret = self.key.private_bytes(Encoding.PEM, PrivateFormat.PKCS8, NoEncryption()).decode()
        with tempfile.NamedTemporaryFile("w", suffix=".pem") as file:
            file.write("".join([self.pem, *(one.pem for one in along), secret]))
            file.flush()
            context.load_cert_chain(file.name)
        return context


class Authority(Issued):
    """Issues certificates; two may have the same name and not the same key."""

    def __init__(self, name: str = "test authority") -> None:
        key = new_key()
        super().__init__(
            _certificate(name, key, issuer=_name(name), signer=key, names=(), is_authority=True), key
        )

    def issue(self, *names: str, key: Key | None = None, days: tuple[int, int] = (-1, 30)) -> Issued:
        """A server's certificate for `names`, good from and until so many days from now."""
        own = key or new_key()
        names = names or ("127.0.0.1",)
        return Issued(
            _certificate(
                "server", own, issuer=self.certificate.subject, signer=self.key, names=names, days=days
            ),
            own,
        )

    def write(self, path: Path) -> str:
        """The certificate as a file."""
        path.write_text(self.pem)
        return str(path)


def _certificate(
    common: str,
    key: Key,
    *,
    issuer: x509.Name,
    signer: Key,
    names: tuple[str, ...],
    days: tuple[int, int] = (-1, 30),
    is_authority: bool = False,
) -> x509.Certificate:
    now = datetime.now(UTC)
    builder = (
        x509.CertificateBuilder()
        .subject_name(_name(common))
        .issuer_name(issuer)
        .public_key(key.public_key())
        .serial_number(x509.random_serial_number())
        .not_valid_before(now + timedelta(days=days[0]))
        .not_valid_after(now + timedelta(days=days[1]))
        .add_extension(x509.BasicConstraints(ca=is_authority, path_length=None), critical=True)
        .add_extension(x509.SubjectKeyIdentifier.from_public_key(key.public_key()), critical=False)
        .add_extension(
            x509.AuthorityKeyIdentifier.from_issuer_public_key(signer.public_key()), critical=False
        )
    )
    if names:
        builder = builder.add_extension(
            x509.SubjectAlternativeName([_general(one) for one in names]), critical=False
        )
    return builder.sign(signer, hashes.SHA256())


def _general(name: str) -> x509.GeneralName:
    try:
        return x509.IPAddress(ipaddress.ip_address(name))
    except ValueError:
        return x509.DNSName(name)
