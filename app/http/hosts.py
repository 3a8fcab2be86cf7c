"""By which names this gateway may be called: nobody else's name may lead a browser's requests here.

A page that a browser on a trusted network looks at can have its own name point to this gateway (DNS
rebinding). Such a request still carries the page's name in `Host`, and is refused before anything reads it.
Nothing is ever derived from `Host`: addresses in answers, proofs and signatures are the public one's.
"""

from __future__ import annotations

from urllib.parse import urlsplit

from fastapi import Request
from starlette.types import ASGIApp, Receive, Scope, Send

from app.core.errors import DomainError
from app.core.i18n import _
from app.core.networks import bare_host, host_of, read_address
from app.core.settings import Environment, Settings
from app.http.peers import PEER
from app.http.problems import problem

PROBES = frozenset({"/healthz", "/readyz"})
"""Answer under any name: whoever keeps this process running asks by its address, and learns nothing else."""
_SCRAPED = "/metrics"
"""Answers under an address as well, which no page's name can turn into."""


class HostUnknown(DomainError):
    """Called by a name that is not this gateway's."""

    status, code, title = 421, "host_unknown", _("Not a name of this server")
    meaning = _("The request's Host is neither that of the public address nor one that the operator listed.")
    remedy = _(
        "Call the public address. Behind a proxy: have it pass the host on, or list the name that it uses in "
        "DPFL_HOSTS."
    )


class Hosts:
    """ASGI middleware: refuses requests whose `Host` is missing, double, or not this gateway's."""

    def __init__(self, app: ASGIApp, *, settings: Settings) -> None:
        self._app = app
        self._names = {_of_public(settings.public_url), *settings.hosts}
        self._is_development = settings.environment is Environment.DEVELOPMENT

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        """Pass on what calls this gateway by one of its names."""
        if scope["type"] == "http" and scope["path"] not in PROBES and not self._is_known(scope):
            refused = HostUnknown(_("this server is not called so"))
            await problem(Request(scope), refused, headers={"Connection": "close"})(scope, receive, send)
            return
        await self._app(scope, receive, send)

    def _is_known(self, scope: Scope) -> bool:
        named = [value for name, value in scope["headers"] if name == b"host"]
        host = host_of(named[0].decode("latin-1")) if len(named) == 1 else None
        if host is None:
            return False
        if host in self._names or (scope["path"] == _SCRAPED and read_address(host) is not None):
            return True
        return _is_this_machine(host) and (self._is_development or _is_this_machine(_peer(scope)))


def _of_public(url: str) -> str | None:
    host = urlsplit(url).hostname or ""
    return bare_host(host if host.isascii() else host.encode("idna").decode())


def _peer(scope: Scope) -> str:
    """Whose connection it is, whatever forwarded headers say."""
    return scope.get("extensions", {}).get(PEER) or (scope.get("client") or ("",))[0] or ""


def _is_this_machine(host: str) -> bool:
    address = read_address(host)
    return host == "localhost" if address is None else address.is_loopback
