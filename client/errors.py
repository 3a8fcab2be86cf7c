"""The one error of the training client: a stable code and one line for a person. It never holds data."""

from __future__ import annotations

from typing import Any


class ClientError(Exception):
    """Something stops the client, and a person or a script has to know what.

    `code` is stable; `message` is marked for translation and its `{places}` are filled from `members`
    after it. Neither may carry anything that was computed from the data set. Texts among the members may be
    a server's (names in a manifest): what could steer a terminal is taken out of them.
    """

    def __init__(self, code: str, message: str, /, **members: Any) -> None:
        super().__init__(code, message)
        self.code = code
        self.message = message
        self.evidence: str | None = None
        """Path of a file that shows what a server announced and what this client held."""
        self.members = {
            name: printable(value) if isinstance(value, str) else value for name, value in members.items()
        }

    def __str__(self) -> str:
        try:
            return self.message.format_map(self.members) if self.members else self.message
        except (KeyError, IndexError, ValueError):
            return self.message


class RoundMissed(ClientError):
    """This round goes on without the client; the next one may still come."""


def printable(text: str) -> str:
    """Put a blank in the place of every character that cannot be seen."""
    return "".join(char if char.isprintable() else " " for char in text)
