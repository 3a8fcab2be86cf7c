"""The gateway's own TLS: version 1.3 alone, client certificates where an authority is named."""

from __future__ import annotations

import ssl
import sys
from collections.abc import Callable
from ipaddress import ip_address
from typing import Any

from app.core.settings import Settings

_MODES = {"off": ssl.CERT_NONE, "optional": ssl.CERT_OPTIONAL, "required": ssl.CERT_REQUIRED}


def context_factory(settings: Settings) -> Callable[..., ssl.SSLContext] | None:
    """What uvicorn makes its context with; None where the gateway speaks no TLS itself."""
    if settings.tls_certificate is None or settings.tls_key is None:
        return None

    def make(*_config: Any) -> ssl.SSLContext:
        return server_context(settings)

    return make


def server_context(settings: Settings) -> ssl.SSLContext:
    """A context from the settings' files.

    A client certificate has to come from the named authority, and to be one for clients: OpenSSL refuses one
    for servers in the handshake.
    """
    if settings.tls_certificate is None or settings.tls_key is None:
        raise ValueError("a certificate and its key are needed")
    context = ssl.SSLContext(ssl.PROTOCOL_TLS_SERVER)
    context.minimum_version = ssl.TLSVersion.TLSv1_3
    context.load_cert_chain(settings.tls_certificate, settings.tls_key)
    if settings.tls_ca is not None and settings.client_certificates != "off":
        context.load_verify_locations(settings.tls_ca)
        context.verify_mode = _MODES[settings.client_certificates]
    return context


def require_private(settings: Settings, *, host: str) -> None:
    """End the process rather than answer to other machines without encryption."""
    if settings.tls_certificate is not None or settings.tls_ends_elsewhere or is_loopback(host):
        return
    sys.exit(
        f"refusing to listen on {host} without TLS: set DPFL_TLS_CERT and DPFL_TLS_KEY, or run "
        "`dpfl up --public-url https://...`; DPFL_TLS_ENDS_ELSEWHERE=true says that a proxy in front ends TLS"
    )


def is_loopback(host: str) -> bool:
    """Whether only this machine can call an address."""
    try:
        return ip_address(host).is_loopback
    except ValueError:
        return host == "localhost"
