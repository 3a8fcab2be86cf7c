"""Keeps the catalogs of translations in step with the sources: `python -m cli.catalogs extract|update|check`.

A text is extracted where it stands in a call of `_`. Catalogs hold no line numbers, so that they change only
when texts do. It never translates: `update` adds the new texts empty, and `check` refuses them.
"""

from __future__ import annotations

import io
import re
import sys
from collections.abc import Callable, Iterator
from pathlib import Path

from babel.messages.catalog import Catalog, Message
from babel.messages.extract import extract_from_dir
from babel.messages.pofile import read_po, write_po

ROOT = Path(__file__).resolve().parents[1]
SPOKEN_ROOMS = ("app", "workers", "client", "cli", "demo")
"""The rooms whose texts people read; engines and modelling raise errors for the rooms that use them."""
KEYWORDS = {"_": None, "ngettext": (1, 2)}
PLACE = re.compile(r"(?<!\{)\{([a-zA-Z_][a-zA-Z0-9_]*)[^{}]*\}(?!\})")


def template_file(root: Path) -> Path:
    """The file that lists every text of the sources."""
    return root / "locales" / "messages.pot"


def catalog_files(root: Path) -> list[Path]:
    """One file a language, in a stable order."""
    return sorted((root / "locales").glob("*/LC_MESSAGES/messages.po"))


def extract(root: Path) -> Catalog:
    """Collect the marked texts of the spoken rooms, with the files they stand in."""
    template = Catalog(project="DP-Federated LoRA Lab", version="0.1", charset="utf-8", fuzzy=False)
    template.header_comment = "# Texts of DP-Federated LoRA Lab. Written by `make messages`."
    for room in SPOKEN_ROOMS:
        for name, _line, text, comments, context in extract_from_dir(
            root / room, method_map=[("**.py", "python")], keywords=KEYWORDS, comment_tags=("Translators:",)
        ):
            template.add(text, locations=[(f"{room}/{name}", 0)], auto_comments=comments, context=context)
    return template


def read(path: Path) -> Catalog:
    """Parse a catalog; a malformed one is an error, not a warning."""
    locale = path.parts[-3] if path.suffix == ".po" else None
    with path.open("rb") as file:
        return read_po(file, locale=locale, abort_invalid=True)


def render(catalog: Catalog) -> bytes:
    """Write a catalog in the one form that is committed: sorted, without line numbers or dead texts."""
    for message in catalog:
        message.locations = sorted({(name, 0) for name, _line in message.locations})
    buffer = io.BytesIO()
    write_po(buffer, catalog, width=110, sort_output=True, include_lineno=False, ignore_obsolete=True)
    return buffer.getvalue()


def same_dates(catalog: Catalog, path: Path) -> Catalog:
    """Take over the dates of the committed file, so that an unchanged catalog renders to the same bytes."""
    if path.exists():
        catalog.creation_date = read(path).creation_date
    return catalog


def texts(catalog: Catalog) -> Iterator[Message]:
    """The messages of a catalog without its header."""
    return (message for message in catalog if message.id)


def places(text: object) -> set[str]:
    """The `{named}` places of a text, of all its plural forms together."""
    forms = text if isinstance(text, tuple | list) else (text,)
    return {name for form in forms for name in PLACE.findall(str(form))}


def forms_of(text: object) -> tuple[str, ...]:
    """A translation as its plural forms: one for a text without a plural."""
    return tuple(text) if isinstance(text, tuple | list) else (str(text or ""),)


def message_faults(message: Message) -> Iterator[str]:
    """What is wrong with one translation, Babel's own checkers apart."""
    if not all(forms_of(message.string)):
        yield "is not translated"
    elif places(message.string) != places(message.id):
        yield "has other {places} than the source"
    if message.fuzzy:
        yield "is fuzzy"


def catalog_faults(catalog: Catalog, template: Catalog) -> Iterator[str]:
    """What keeps a catalog from being complete and right for the texts of `template`."""
    for message in texts(template):
        if catalog.get(message.id, message.context) is None:
            yield f"{message.id!r} is missing"
    for message in texts(catalog):
        if template.get(message.id, message.context) is None:
            yield f"{message.id!r} is in no source"
        for fault in message_faults(message):
            yield f"{message.id!r} {fault}"
    for message, errors in catalog.check():
        for error in errors:
            yield f"{message.id!r}: {error}"


def faults(root: Path) -> list[str]:
    """All faults of the committed catalogs; empty when `check` passes."""
    template = extract(root)
    path = template_file(root)
    found = []
    if not path.exists() or render(same_dates(template, path)) != path.read_bytes():
        found.append(f"{path.relative_to(root)} is not what the sources say: run `make messages`")
    if not catalog_files(root):
        found.append("locales/ holds no language")
    for file in catalog_files(root):
        found += [f"{file.relative_to(root)}: {fault}" for fault in catalog_faults(read(file), template)]
    return found


def write_template(root: Path) -> list[str]:
    """Write the template if the sources' texts have changed; nothing is left to do afterwards."""
    path = template_file(root)
    committed = path.read_bytes() if path.exists() else b""
    if render(same_dates(extract(root), path)) != committed:
        path.write_bytes(render(extract(root)))
    return []


def update(root: Path) -> list[str]:
    """Bring every catalog to the sources' texts, new ones empty; return what is left to translate."""
    write_template(root)
    template = read(template_file(root))
    for path in catalog_files(root):
        catalog = read(path)
        catalog.update(template, no_fuzzy_matching=True, update_creation_date=False)
        path.write_bytes(render(catalog))
    return faults(root)


def main(arguments: list[str]) -> int:
    """Run one command; exit status 1 when something is left to do."""
    commands: dict[str, Callable[[], list[str]]] = {
        "extract": lambda: write_template(ROOT),
        "update": lambda: update(ROOT),
        "check": lambda: faults(ROOT),
    }
    if len(arguments) != 1 or arguments[0] not in commands:
        sys.stderr.write(f"usage: python -m cli.catalogs {'|'.join(commands)}\n")
        return 2
    found = commands[arguments[0]]()
    for line in found:
        sys.stderr.write(f"{line}\n")
    return 1 if found else 0


if __name__ == "__main__":
    sys.exit(main(sys.argv[1:]))
