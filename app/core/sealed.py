"""Columns for what a stolen database should not tell: e-mail addresses, second factors' secrets.

A text is kept as two columns: its ciphertext, bound to its row, and a keyed hash by which an equal text is
found. Hash and ciphertext are of different keys, both derived from the master key. Who holds the hash alone
can neither read nor guess; who holds the database and the master key can.

    class Member(Base):
        email: Mapped[SealedText] = composite(
            mapped_column("email_sealed"), mapped_column("email_lookup", unique=True)
        )

    EMAIL = TextSeal("member-email", normal=normal_email)
    row.email = EMAIL.seal(vault, "Ada@Example.org", row=row.id)
    select(Member).where(email_lookup == EMAIL.lookup(vault, "ada@example.org"))
    EMAIL.open(vault, row.email, row=row.id)
"""

from __future__ import annotations

import unicodedata
from collections.abc import Callable
from dataclasses import dataclass, field
from uuid import UUID

from app.core.crypto import Vault


@dataclass(frozen=True, slots=True)
class SealedText:
    """A text in the form of its two columns; a composite of SQLAlchemy."""

    sealed: bytes = field(repr=False)
    lookup: bytes = field(repr=False)
    """HMAC-SHA256, 32 bytes; equal for equal texts of one kind, and of that kind alone."""


class TextSeal:
    """One kind of text: its keys are of no other kind."""

    def __init__(self, purpose: str, *, normal: Callable[[str], str] = str) -> None:
        """Name the kind, for ever; `normal` makes equal what is to be found as equal."""
        self._purpose, self._normal = purpose, normal

    def seal(self, vault: Vault, text: str, *, row: UUID) -> SealedText:
        """Encrypt a text as it is, for one row."""
        return SealedText(vault.seal(self._for(row), text.encode()), self.lookup(vault, text))

    def open(self, vault: Vault, value: SealedText, *, row: UUID) -> str:
        """Reverse `seal`; raises SealBroken for another row's, another kind's or a changed one."""
        return vault.unseal(self._for(row), value.sealed).decode()

    def lookup(self, vault: Vault, text: str) -> bytes:
        """The hash by which a text is found."""
        return vault.fingerprint(f"lookup/{self._purpose}", self._normal(text))

    def _for(self, row: UUID) -> str:
        return f"text/{self._purpose}/{row}"


def normal_email(text: str) -> str:
    """An e-mail address as the same person may write it: case and Unicode form do not tell two apart."""
    return unicodedata.normalize("NFKC", text).strip().casefold()
