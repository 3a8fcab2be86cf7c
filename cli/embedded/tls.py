"""The certificates of `dpfl up --public-url https://...`: an authority made once, a key renewed in time."""

from __future__ import annotations

from dataclasses import dataclass
from datetime import UTC, datetime, timedelta
from ipaddress import ip_address
from pathlib import Path
from urllib.parse import urlsplit

from cryptography import x509

from app.core.authority import Authority, pem_of, private_pem
from cli.embedded.errors import EmbeddedError
from cli.embedded.folder import make_folder, write_private
from cli.embedded.processes import LOOPBACK
from cli.i18n import _

_RENEWED_BEFORE = timedelta(days=30)


class PublicUrlUnusable(EmbeddedError):
    """The address cannot be served."""


@dataclass(frozen=True)
class TlsFiles:
    """Paths of PEM files."""

    folder: Path

    @property
    def authority(self) -> Path:
        """What clients trust."""
        return self.folder / "ca.pem"

    @property
    def authority_key(self) -> Path:
        """Signs server and client certificates; 0600."""
        return self.folder / "ca.key"

    @property
    def certificate(self) -> Path:
        """The gateway's."""
        return self.folder / "server.pem"

    @property
    def key(self) -> Path:
        """The gateway's; 0600."""
        return self.folder / "server.key"

    def environment(self) -> dict[str, str]:
        """What the gateway reads."""
        return {
            "DPFL_TLS_CERT": str(self.certificate),
            "DPFL_TLS_KEY": str(self.key),
            "DPFL_TLS_CA": str(self.authority),
            "DPFL_TLS_CA_KEY": str(self.authority_key),
        }


def public_address(text: str) -> tuple[str, int]:
    """Host and port of a public URL; raises PublicUrlUnusable."""
    try:
        parts = urlsplit(text)
        host, port = parts.hostname, parts.port
    except ValueError as error:
        raise PublicUrlUnusable(_("{url} is not an address", url=text)) from error
    extra = parts.path.strip("/") or parts.query or parts.fragment or parts.username
    if parts.scheme != "https" or not host or extra:
        raise PublicUrlUnusable(_("{url} is not https://host:port", url=text))
    return host, port or 443


def ensure_tls(folder: Path, host: str) -> TlsFiles:
    """Make the authority if there is none, and a server certificate unless one for `host` holds for a month.

    Raises:
        PublicUrlUnusable: the files that are there cannot be read.
    """
    make_folder(folder, mode=0o700)
    files, at = TlsFiles(folder), datetime.now(UTC)
    try:
        if not files.authority_key.exists():
            made = Authority.new("DP-Federated LoRA Lab", at=at)
            write_private(files.authority, pem_of(made.certificate).decode())
            write_private(files.authority_key, private_pem(made.key).decode())
        authority = Authority.read(files.authority.read_bytes(), files.authority_key.read_bytes())
        if not _holds(files, authority, host, at + _RENEWED_BEFORE):
            certificate, key = authority.for_server(_names(host), at=at)
            files.certificate.unlink(missing_ok=True)  # never a certificate beside another one's key
            write_private(files.key, key.decode())
            write_private(files.certificate, (certificate + pem_of(authority.certificate)).decode())
    except (OSError, ValueError) as error:
        raise PublicUrlUnusable(_("the certificates in {folder} cannot be read", folder=folder)) from error
    return files


def _names(host: str) -> list[str]:
    return list(dict.fromkeys((host, "localhost", LOOPBACK)))


def _holds(files: TlsFiles, authority: Authority, host: str, until: datetime) -> bool:
    """Whether the server's certificate is of this authority, for this host, and holds until then."""
    if not files.certificate.exists() or not files.key.exists():
        return False
    found = x509.load_pem_x509_certificates(files.certificate.read_bytes())[0]
    names = found.extensions.get_extension_for_class(x509.SubjectAlternativeName).value
    known = {str(name) for name in names.get_values_for_type(x509.IPAddress)}
    known |= set(names.get_values_for_type(x509.DNSName))
    is_ours = found.issuer == authority.certificate.subject and _spelled(host) in known
    return is_ours and found.not_valid_after_utc > until


def _spelled(host: str) -> str:
    try:
        return str(ip_address(host))
    except ValueError:
        return host
