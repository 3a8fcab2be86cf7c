"""Texts of the training client. `_` marks them; `translate` renders them in the terminal's language."""

from __future__ import annotations

import io
import os
from functools import cache
from gettext import GNUTranslations, NullTranslations
from pathlib import Path

from babel.core import negotiate_locale
from babel.messages.mofile import write_mo
from babel.messages.pofile import read_po

LOCALES_FOLDER = Path(__file__).resolve().parents[1] / "locales"
SOURCE_LOCALE = "en"


def _(message: str) -> str:
    """Mark a text for extraction; it is translated where it is shown."""
    return message


def translate(message: str, /, **parameters: object) -> str:
    """Translate a marked text into the terminal's language and fill its `{named}` places."""
    text = _catalog(_terminal_locale()).gettext(message) if message else ""
    return text.format_map(parameters) if parameters else text


@cache
def _catalog(locale: str) -> NullTranslations:
    path = LOCALES_FOLDER / locale / "LC_MESSAGES" / "messages.po"
    if locale == SOURCE_LOCALE or not path.is_file():
        return NullTranslations()
    with path.open("rb") as file:
        catalog = read_po(file, locale=locale)
    compiled = io.BytesIO()
    write_mo(compiled, catalog)
    compiled.seek(0)
    return GNUTranslations(compiled)


@cache
def _terminal_locale() -> str:
    """Choose by POSIX precedence (LANGUAGE, LC_ALL, LC_MESSAGES, LANG) among the languages present."""
    present = [
        SOURCE_LOCALE,
        *sorted(path.parts[-3] for path in LOCALES_FOLDER.glob("*/LC_MESSAGES/messages.po")),
    ]
    for variable in ("LANGUAGE", "LC_ALL", "LC_MESSAGES", "LANG"):
        named = os.environ.get(variable, "").split(":", 1)[0].split(".", 1)[0].split("@", 1)[0]
        if named in {"C", "POSIX"}:
            break
        if named:
            return negotiate_locale([named, named.split("_", 1)[0]], present) or SOURCE_LOCALE
    return SOURCE_LOCALE
