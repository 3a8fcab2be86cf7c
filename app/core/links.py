"""Which of a process's links to its services would cross a network in the clear. Pure.

What stays within one machine crosses none: a unix socket, a loopback address, and a host that the operator
names as one of this machine (containers on one host's own bridge). Whoever can read there is root here, and
reads the process's memory as well.
"""

from __future__ import annotations

import ipaddress
from collections.abc import Collection, Iterator
from urllib.parse import parse_qs, urlsplit

CHECKED_MODES = frozenset({"verify-full", "verify-ca"})
"""libpq's modes that look at the server's certificate; `require` encrypts for whoever answers."""


def open_links(
    *, database_url: str, redis_url: str | None, blob_url: str, same_host: Collection[str]
) -> Iterator[str]:
    """Yield what has to change, one sentence for each link; names the variable, and no value of it."""
    if not _database_is_safe(database_url, same_host):
        yield "DATABASE_URL needs sslmode=verify-full or verify-ca (and sslrootcert)"
    if redis_url is not None and not _redis_is_safe(redis_url, same_host):
        yield "REDIS_URL must be rediss://, with its certificate checked"
    if not _blobs_are_safe(blob_url, same_host):
        yield "BLOB_URL needs an https endpoint"


def _database_is_safe(url: str, same_host: Collection[str]) -> bool:
    parts = urlsplit(url)
    asked = parse_qs(parts.query)
    hosts = [part for value in asked.get("host", []) for part in value.split(",")]
    hosts += [parts.hostname] if parts.hostname else []
    addresses = [part for value in asked.get("hostaddr", []) for part in value.split(",")]
    if asked.get("sslmode", [""])[-1] in CHECKED_MODES:
        return True
    return all(_stays_here(host, same_host) for host in [*hosts, *addresses])


def _redis_is_safe(url: str, same_host: Collection[str]) -> bool:
    parts = urlsplit(url)
    if parts.scheme == "rediss":
        wanted = parse_qs(parts.query).get("ssl_cert_reqs", ["required"])[-1]
        return wanted.lower().removeprefix("cert_") == "required"
    return parts.scheme in {"unix", "redis+socket"} or _stays_here(parts.hostname or "", same_host)


def _blobs_are_safe(url: str, same_host: Collection[str]) -> bool:
    parts = urlsplit(url)
    if parts.scheme == "file":
        return True  # what lies there is sealed; a folder that another host serves has a link of its own
    endpoint = urlsplit(parse_qs(parts.query).get("endpoint", ["https:"])[-1])
    return endpoint.scheme == "https" or _stays_here(endpoint.hostname or "", same_host)


def _stays_here(host: str, same_host: Collection[str]) -> bool:
    if host.startswith("/") or host == "localhost" or host in same_host:
        return True
    try:
        return ipaddress.ip_address(host).is_loopback
    except ValueError:  # a name
        return False
