"""How far a connection gets, step by step, for a diagnosis: names, port, proxy, certificate.

Nothing of a client's is sent: the certificate is read from a handshake that is given up after it.
"""

from __future__ import annotations

import base64
import socket
import ssl
from dataclasses import dataclass
from datetime import datetime
from urllib.parse import unquote, urlsplit

from cryptography.x509 import load_der_x509_certificate

from client.errors import printable
from client.trust import issuer_of, pin_of

_WAIT_S = 10.0
_MOST_HEAD_BYTES = 16 * 1024


@dataclass(frozen=True)
class Place:
    """A host and a port."""

    host: str
    port: int

    @classmethod
    def of(cls, url: str) -> Place:
        """Where a URL points."""
        parts = urlsplit(url)
        usual = 443 if parts.scheme == "https" else 80
        return cls(parts.hostname or "", parts.port or usual)

    def __str__(self) -> str:
        return f"[{self.host}]:{self.port}" if ":" in self.host else f"{self.host}:{self.port}"


@dataclass(frozen=True)
class Shown:
    """A certificate as it was shown, believed by nobody."""

    pin: str
    issuer: str
    begins: datetime
    ends: datetime


def addresses_of(place: Place) -> list[str]:
    """The addresses of a host's name; raises OSError when there are none."""
    found = socket.getaddrinfo(place.host, place.port, type=socket.SOCK_STREAM)
    return sorted({str(entry[4][0]) for entry in found})


def reach(place: Place) -> socket.socket:
    """Connect; raises OSError."""
    return socket.create_connection((place.host, place.port), timeout=_WAIT_S)


def ask_proxy(connection: socket.socket, proxy: str, target: Place) -> str:
    """Ask a proxy for a way to `target`; returns its answer's status, "200" where it lets us through."""
    lines = [f"CONNECT {target} HTTP/1.1", f"Host: {target}"]
    parts = urlsplit(proxy)
    if parts.username:
        account = f"{unquote(parts.username)}:{unquote(parts.password or '')}"
        lines.append(f"Proxy-Authorization: Basic {base64.b64encode(account.encode()).decode()}")
    connection.sendall("\r\n".join([*lines, "", ""]).encode())
    head = b""
    while b"\r\n\r\n" not in head and len(head) < _MOST_HEAD_BYTES and (part := connection.recv(4096)):
        head += part
    words = head.partition(b"\r\n")[0].decode("latin-1").split(" ", 2)
    return printable(words[1])[:3] if len(words) > 1 and words[0].startswith("HTTP/") else "?"


def shown_certificate(server: str, proxy: str | None) -> Shown | None:
    """The certificate that is shown for a server, if there is a way to it that can be walked by hand.

    Raises:
        OSError: no connection, or no TLS.
    """
    target = Place.of(server)
    if proxy is not None and not proxy.startswith("http:"):
        return None
    with reach(Place.of(proxy) if proxy else target) as connection:
        if proxy is not None and not ask_proxy(connection, proxy, target).startswith("2"):
            return None
        context = ssl.SSLContext(ssl.PROTOCOL_TLS_CLIENT)
        # Only looked at, to name who issued it; nothing is sent, and nothing believed.
        context.check_hostname, context.verify_mode = False, ssl.CERT_NONE
        with context.wrap_socket(connection, server_hostname=target.host) as tls:
            raw = tls.getpeercert(binary_form=True) or b""
    certificate = load_der_x509_certificate(raw)
    return Shown(
        pin_of(raw), issuer_of(raw), certificate.not_valid_before_utc, certificate.not_valid_after_utc
    )
