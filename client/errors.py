"""The one error of the training client: a stable code and one line for a person. It never holds data."""

from __future__ import annotations

from typing import Any


class ClientError(Exception):
    """Something stops the client, and a person or a script has to know what.

    `code` is stable; `message` is marked for translation and its `{places}` are filled from `members`
    after it. Neither may carry anything that was computed from the data set.
    """

    def __init__(self, code: str, message: str, /, **members: Any) -> None:
        super().__init__(code, message)
        self.code = code
        self.message = message
        self.members = members

    def __str__(self) -> str:
        try:
            return self.message.format_map(self.members) if self.members else self.message
        except (KeyError, IndexError, ValueError):
            return self.message
