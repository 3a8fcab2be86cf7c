"""A certificate's members one by one, so that a changed one can be named and not only noticed.

A member is whatever is no object with members of its own; lists are one member. Its name is its JSON pointer
(RFC 6901), which no two different places share.
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from typing import Any

from app.core.canonical import canonical_sha256


def member_digests(content: Mapping[str, Any]) -> dict[str, str]:
    """SHA-256 of the canonical form of every member, by its pointer."""
    return {pointer: canonical_sha256(value) for pointer, value in _members(content, "")}


def first_difference(content: Mapping[str, Any], signed: Mapping[str, Any]) -> str | None:
    """The first member that is not as it was signed, or that only one side has; None when all are."""
    found = member_digests(content)
    different = {
        pointer for pointer in found.keys() | signed.keys() if found.get(pointer) != signed.get(pointer)
    }
    return min(different, default=None)


def _members(value: Mapping[str, Any], above: str) -> Iterator[tuple[str, Any]]:
    for name, member in value.items():
        pointer = f"{above}/{str(name).replace('~', '~0').replace('/', '~1')}"
        if isinstance(member, Mapping) and member:
            yield from _members(member, pointer)
        else:
            yield pointer, member
