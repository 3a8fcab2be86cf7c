"""A member's e-mail address: sealed in its row, found by a keyed hash, compared in one form.

Whoever reads the table without the master key learns neither an address nor whether a guessed one is there.
"""

from __future__ import annotations

from app.core.crypto import Vault
from app.identity.models import Member

_PURPOSE = "member-email"


def normal_form(email: str) -> str:
    """The form in which addresses are compared: lower case throughout, as every mail service does."""
    return email.strip().lower()


def domain_of(email: str) -> str:
    """What stands after the last `@`, whole: nothing is compared by its beginning or end."""
    return normal_form(email).rpartition("@")[2]


def look_up_hash(vault: Vault, email: str) -> bytes:
    """By what the row of an address is found. 32 bytes."""
    return vault.fingerprint(_PURPOSE, normal_form(email))


def give_email(vault: Vault, member: Member, email: str) -> None:
    """Write an address into a member's row."""
    member.email_sealed = vault.seal(_PURPOSE, normal_form(email).encode())
    member.email_hash = look_up_hash(vault, email)


def email_of(vault: Vault, member: Member) -> str | None:
    """Read it back; raises SealBroken."""
    return None if member.email_sealed is None else vault.unseal(_PURPOSE, member.email_sealed).decode()
