"""Which proxy the environment names. Nothing takes it from there unless a person says so."""

from __future__ import annotations

import os
from urllib.parse import urlsplit
from urllib.request import getproxies_environment, proxy_bypass

from client.errors import ClientError
from client.i18n import _

_VARIABLES = ("HTTPS_PROXY", "https_proxy", "ALL_PROXY", "all_proxy")


def environment_proxy(server: str) -> str | None:
    """The proxy that HTTPS_PROXY and NO_PROXY name for a server, or None."""
    url, named = urlsplit(server), getproxies_environment()
    if named and proxy_bypass(url.netloc):
        return None
    found = named.get(url.scheme) or named.get("all")
    return None if not found else require_proxy(found if "://" in found else f"http://{found}")


def unused_variable() -> str | None:
    """The variable that names a proxy, if one does."""
    return next((name for name in _VARIABLES if os.environ.get(name)), None)


def require_proxy(text: str) -> str:
    """Refuse what is no address of a proxy; returns it."""
    try:
        url = urlsplit(text)
        good = url.scheme in {"http", "https"} and bool(url.hostname) and url.port != 0
    except ValueError:
        good = False
    if not good:
        raise ClientError("bad_proxy", _("a proxy is http://HOST:PORT or https://HOST:PORT"))
    return text
