"""Identifiers: UUIDv7, so that the order of ids is the order of creation and pages need no offset."""

from uuid import UUID

from uuid_utils.compat import uuid7


def new_id() -> UUID:
    """Return a fresh time-ordered identifier (RFC 9562, version 7)."""
    return uuid7()
