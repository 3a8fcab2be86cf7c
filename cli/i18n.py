"""Texts of the command line, in the language that the terminal asks for."""

import os
from functools import cache

from app.core.i18n import choose_locale, translate


@cache
def _locale() -> str:
    """The language by POSIX precedence: LANGUAGE, LC_ALL, LC_MESSAGES, LANG."""
    for variable in ("LANGUAGE", "LC_ALL", "LC_MESSAGES", "LANG"):
        named = os.environ.get(variable, "").split(":", 1)[0].split(".", 1)[0].split("@", 1)[0]
        if named in {"C", "POSIX"}:
            break
        if named:
            return choose_locale(f"{named.replace('_', '-')}, {named.split('_', 1)[0]};q=0.9")
    return choose_locale(None)


def _(message: str, /, **parameters: object) -> str:
    """Translate `message` and fill its `{named}` places."""
    return translate(message, _locale(), **parameters)
