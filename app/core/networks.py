"""Internet addresses: which network one is in, what a host is called, by what a stranger is counted."""

from __future__ import annotations

import re
from collections.abc import Iterable
from ipaddress import IPv4Address, IPv6Address, ip_address, ip_network

_HOST = re.compile(r"\[([0-9A-Fa-f:.]{2,45})\](?::\d{1,5})?|([A-Za-z0-9._-]{1,253})(?::\d{1,5})?")
_ONE_SUBSCRIBER = 64
"""An IPv6 subscriber has a whole network of this length, and may call from any address of it."""


def read_address(text: str | None) -> IPv4Address | IPv6Address | None:
    """The address, an IPv4 one also where it is dressed as IPv6; None for what is no address."""
    try:
        found = ip_address(text or "")
    except ValueError:
        return None
    mapped = found.ipv4_mapped if isinstance(found, IPv6Address) else None
    return mapped or found


def read_network(text: str) -> str:
    """A network in its one form, `10.1.0.0/16`; raises ValueError, also for bits outside the mask."""
    return str(ip_network(text))


def is_within(address: str | None, networks: Iterable[str]) -> bool:
    """Whether an address lies in one of the networks; what is no address lies in none."""
    found = read_address(address)
    return found is not None and any(found in ip_network(network) for network in networks)


def subscriber(address: str | None) -> str:
    """By what a caller is counted: an IPv4 address, or the network of an IPv6 one."""
    found = read_address(address)
    if found is None:
        return "unknown"
    if isinstance(found, IPv6Address):
        return str(ip_network((int(found), _ONE_SUBSCRIBER), strict=False))
    return str(found)


def host_of(text: str) -> str | None:
    """The host of `host[:port]` as a request names it, in one form and without brackets; None for none."""
    found = _HOST.fullmatch(text)
    if found is None:
        return None
    host = found[1] or found[2].removesuffix(".").lower()
    address = read_address(host)
    return str(address) if address is not None else (host if found[2] and host else None)


def bare_host(text: str) -> str | None:
    """The same of a name or address that stands without a port; None for anything else."""
    if ":" in text and read_address(text) is None:
        return None
    return host_of(f"[{text}]" if ":" in text else text)
