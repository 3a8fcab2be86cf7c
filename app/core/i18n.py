"""Translation of what users read. Texts are marked where they are written and translated at the edge.

Catalogs are the `.po` files under `locales/`, compiled in memory at start: nothing binary is committed.
"""

from __future__ import annotations

import io
from functools import lru_cache
from gettext import GNUTranslations, NullTranslations
from pathlib import Path

from babel.core import negotiate_locale
from babel.messages.mofile import write_mo
from babel.messages.pofile import read_po

LOCALES_FOLDER = Path(__file__).resolve().parents[2] / "locales"
SOURCE_LOCALE = "en"


def _(message: str) -> str:
    """Mark a text for extraction; translation happens in `translate`, when the reader's language is known."""
    return message


@lru_cache(maxsize=1)
def catalogs() -> dict[str, NullTranslations]:
    """Compile every catalog once; the source language needs none."""
    found: dict[str, NullTranslations] = {SOURCE_LOCALE: NullTranslations()}
    for path in sorted(LOCALES_FOLDER.glob("*/LC_MESSAGES/messages.po")):
        with path.open("rb") as file:
            catalog = read_po(file, locale=path.parts[-3])
        compiled = io.BytesIO()
        write_mo(compiled, catalog)
        compiled.seek(0)
        found[path.parts[-3]] = GNUTranslations(compiled)
    return found


def choose_locale(accept_language: str | None) -> str:
    """Pick the best language for an Accept-Language header (RFC 9110 section 12.5.4), else the source's."""
    if not accept_language:
        return SOURCE_LOCALE
    weighted: list[tuple[float, str]] = []
    for part in accept_language[:1000].split(","):
        tag, _sep, parameters = part.strip().partition(";")
        weight = 1.0
        if parameters.strip().startswith("q="):
            try:
                weight = float(parameters.strip()[2:])
            except ValueError:
                continue
        if tag and weight > 0:
            weighted.append((-weight, tag))
    wanted = [tag for _weight, tag in sorted(weighted, key=lambda pair: pair[0])]
    return negotiate_locale(wanted, sorted(catalogs()), sep="-") or SOURCE_LOCALE


def translate(message: str, locale: str, /, **parameters: object) -> str:
    """Translate a marked text and fill its `{named}` places."""
    text = catalogs().get(locale, catalogs()[SOURCE_LOCALE]).gettext(message) if message else ""
    return text.format_map(parameters) if parameters else text
