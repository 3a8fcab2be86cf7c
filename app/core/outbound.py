"""The one way out: what this server asks of others goes through here, guarded against being turned inwards.

An address comes from the operator's settings or from the answer of a server that the operator named. Other
hosts than those named are asked only where they are public; names are looked up once, and the connection goes
to the address that was checked. No redirect is followed, no proxy or password is taken from the environment.
"""

from __future__ import annotations

import json
import socket
import ssl
from collections.abc import Mapping
from ipaddress import ip_address
from typing import Any, NoReturn

import httpx2
import structlog

from app.core.errors import Unavailable
from app.core.i18n import _

_TIMEOUT = httpx2.Timeout(5.0)
_MAX_BYTES = 256 * 1024
log = structlog.get_logger()


class OutboundRefused(Unavailable):
    """Another server was not asked, or its answer not taken."""

    code, title = "outbound_refused", _("Another server cannot be asked")
    meaning = _("A server that this operation depends on does not answer as it should, or must not be asked.")


class Outbound:
    """Asks other servers for JSON."""

    def __init__(self, *, trusted_hosts: frozenset[str], allow_http: bool) -> None:
        self._trusted = trusted_hosts
        self._allow_http = allow_http
        self._http = httpx2.Client(
            trust_env=False,
            verify=ssl.create_default_context(),
            timeout=_TIMEOUT,
            follow_redirects=False,
            headers={"Accept": "application/json", "Accept-Encoding": "identity"},
        )

    def get_json(self, url: str) -> dict[str, Any]:
        """Read a JSON object; raises OutboundRefused."""
        return self._ask("GET", url)

    def post_form(
        self, url: str, form: Mapping[str, str], *, login: tuple[str, str] | None = None
    ) -> dict[str, Any]:
        """Send a form and read a JSON object; raises OutboundRefused."""
        return self._ask("POST", url, data=dict(form), auth=login)

    def _ask(self, method: str, url: str, **request: Any) -> dict[str, Any]:
        target = self._checked(url)
        host = target.host
        headers = {"Host": target.netloc.decode("ascii")}
        pinned = target.copy_with(host=self._address_of(host, target.port))
        try:
            with self._http.stream(
                method, pinned, headers=headers, extensions={"sni_hostname": host}, **request
            ) as response:
                if response.status_code != 200:
                    _refuse(url, f"status {response.status_code}")
                body = _read(response, url)
        except (httpx2.HTTPError, ssl.SSLError) as error:
            _refuse(url, type(error).__name__)
        try:
            found = json.loads(body)
        except (ValueError, RecursionError):
            _refuse(url, "no JSON")
        if not isinstance(found, dict):
            _refuse(url, "no object")
        return found

    def _checked(self, url: str) -> httpx2.URL:
        try:
            target = httpx2.URL(url)
        except (httpx2.InvalidURL, TypeError):
            _refuse("", "no address")
        schemes = {"https", "http"} if self._allow_http else {"https"}
        if target.scheme not in schemes or not target.host or target.userinfo or target.fragment:
            _refuse(url, "no address of ours to ask")
        return target

    def _address_of(self, host: str, port: int | None) -> str:
        """The address to connect to: of all that the name has, every one must be allowed."""
        try:
            found = socket.getaddrinfo(host, port or 443, type=socket.SOCK_STREAM)
        except (OSError, UnicodeError):
            _refuse(host, "unknown host")
        addresses = [str(entry[4][0]) for entry in found]
        if host not in self._trusted and not all(is_public(address) for address in addresses):
            _refuse(host, "not a public address")
        return addresses[0]


def is_public(text: str) -> bool:
    """Whether an address is one of the public internet, also behind an IPv4 address dressed as IPv6."""
    try:
        address = ip_address(text.partition("%")[0])
    except ValueError:
        return False
    inner = getattr(address, "ipv4_mapped", None) or getattr(address, "sixtofour", None)
    is_inner_public = inner is None or inner.is_global
    return address.is_global and is_inner_public and not address.is_multicast


def _read(response: httpx2.Response, url: str) -> bytes:
    parts: list[bytes] = []
    size = 0
    for part in response.iter_raw():
        size += len(part)
        if size > _MAX_BYTES:
            _refuse(url, "too large")
        parts.append(part)
    return b"".join(parts)


def _refuse(url: str, reason: str) -> NoReturn:
    """Log which and why; the caller learns neither, since a stranger may have chosen the address."""
    log.warning("outbound_refused", url=url.partition("?")[0][:200], reason=reason)
    raise OutboundRefused(_("another server cannot be asked now"))
