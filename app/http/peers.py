"""Who is at the other end: the connection's certificate, or the one that a trusted proxy vouches for.

A proxy says in `X-Client-Cert` (PEM, percent-encoded, as nginx's `$ssl_client_escaped_cert`) which
certificate it has checked. That is believed from configured addresses with the shared secret alone; from
anybody else both headers are taken away before anything reads them.
"""

from __future__ import annotations

import hmac
from collections.abc import Sequence
from ipaddress import ip_address, ip_network
from urllib.parse import unquote

from cryptography import x509
from cryptography.hazmat.primitives.serialization import Encoding
from fastapi import Request
from starlette.types import ASGIApp, Receive, Scope, Send

CERTIFICATE, SECRET = b"x-client-cert", b"x-dpfl-proxy-secret"
PEER = "dpfl.peer"
"""Extension of the scope: the address of the connection itself, whatever forwarded headers say."""
_MOST_BYTES = 8192


class Peers:
    """ASGI middleware: takes a trusted proxy's word about certificates, and nobody else's."""

    def __init__(self, app: ASGIApp, *, proxies: Sequence[str], secret: str | None) -> None:
        self._app = app
        self._networks = [ip_network(one) for one in proxies]
        self._secret = (secret or "").encode()

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        """Pass the request on without the proxy's headers."""
        if scope["type"] == "http":
            told = {name: value for name, value in scope["headers"] if name in (CERTIFICATE, SECRET)}
            if told:
                scope["headers"] = [pair for pair in scope["headers"] if pair[0] not in (CERTIFICATE, SECRET)]
                if self._is_trusted(scope, told.get(SECRET, b"")):
                    _vouch(scope, told.get(CERTIFICATE, b""))
        await self._app(scope, receive, send)

    def _is_trusted(self, scope: Scope, secret: bytes) -> bool:
        if not self._secret or not hmac.compare_digest(secret, self._secret):
            return False
        peer = scope.get("extensions", {}).get(PEER) or (scope.get("client") or ("",))[0]
        try:
            address = ip_address(peer)
        except ValueError:
            return False
        return any(address in network for network in self._networks)


def _vouch(scope: Scope, header: bytes) -> None:
    text = unquote(header[:_MOST_BYTES].decode("latin-1"))
    try:
        x509.load_pem_x509_certificate(text.encode("ascii"))
    except ValueError:
        return
    extensions = scope.setdefault("extensions", {})
    scope["extensions"] = extensions | {"tls": extensions.get("tls", {}) | {"client_cert_chain": [text]}}


def certificate_of(request: Request) -> bytes | None:
    """The peer's certificate, DER, if it showed one that was verified."""
    chain = request.scope.get("extensions", {}).get("tls", {}).get("client_cert_chain") or []
    return x509.load_pem_x509_certificate(chain[0].encode()).public_bytes(Encoding.DER) if chain else None
