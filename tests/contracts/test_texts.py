"""Every text that a person reads is marked, extracted and translated."""

import ast
import importlib
import pkgutil
from collections.abc import Iterator
from pathlib import Path

import pytest

import app
from app.core.errors import DomainError
from app.core.i18n import catalogs
from cli import catalogs as tool
from cli.embedded.errors import EmbeddedError
from client.errors import ClientError
from tests.contracts.sources import ROOT, calls, offences


def family(error: type[Exception]) -> Iterator[type[Exception]]:
    yield error
    for child in error.__subclasses__():
        yield from family(child)


def import_all_of_app() -> None:
    for module in pkgutil.walk_packages(app.__path__, "app."):
        if not module.name.endswith("__main__"):
            importlib.import_module(module.name)


def readable_errors() -> dict[str, int]:
    """Names of errors that people read, with the position of their text."""
    import_all_of_app()
    found = {error.__name__: 1 for error in family(ClientError)}
    return found | {e.__name__: 0 for base in (DomainError, EmbeddedError) for e in family(base)}


def unmarked(tree: ast.AST, *, errors: dict[str, int]) -> Iterator[str]:
    """Literal texts of errors outside `_`, and calls of `_` whose text the extraction cannot see."""
    for call, name in calls(tree):
        position = errors.get(name.rpartition(".")[2])
        if position is not None and len(call.args) > position:
            text = call.args[position]
            literal = isinstance(text, ast.JoinedStr) or (isinstance(text, ast.Constant) and text.value)
            if literal:
                yield f"line {text.lineno}: the text of {name} is not marked"
        if name == "_" and call.args and isinstance(call.args[0], ast.JoinedStr | ast.BinOp):
            yield f"line {call.lineno}: `_` needs a plain literal"


def test_every_error_text_is_marked() -> None:
    errors = readable_errors()
    assert offences(lambda tree: unmarked(tree, errors=errors), exempt=("benchmarks/", "demo/")) == []


def test_catalogs_are_complete_right_and_fresh() -> None:
    assert tool.faults(ROOT) == []


def test_german_is_a_language() -> None:
    assert "de" in catalogs()


def test_every_problem_type_speaks_german() -> None:
    import_all_of_app()
    german = tool.read(ROOT / "locales" / "de" / "LC_MESSAGES" / "messages.po")
    texts = {
        text
        for error in family(DomainError)
        for text in (vars(error).get("title"), vars(error).get("meaning"), vars(error).get("remedy"))
        if text
    }
    assert {text for text in texts if not (german.get(text) and german[text].string)} == set()


@pytest.mark.parametrize(
    "planted", ['raise NotFound("gone")', 'raise errors.NotFound(f"no {x}")', '_(f"no {x}")', '_("a" + b)']
)
def test_a_planted_unmarked_text_is_found(planted: str) -> None:
    assert list(unmarked(ast.parse(planted), errors={"NotFound": 0}))


@pytest.mark.parametrize(
    "fine", ['raise NotFound(_("gone"))', "raise NotFound()", '_("no {x}", x=1)', 'gettext("a")']
)
def test_marked_texts_pass(fine: str) -> None:
    assert not list(unmarked(ast.parse(fine), errors={"NotFound": 0}))


def planted_root(folder: Path, translation: str) -> Path:
    (folder / "app").mkdir()
    (folder / "app" / "a.py").write_text('_("{count} mails")\n')
    catalog = folder / "locales" / "de" / "LC_MESSAGES" / "messages.po"
    catalog.parent.mkdir(parents=True)
    tool.write_template(folder)
    catalog.write_text('msgid ""\nmsgstr "Content-Type: text/plain; charset=utf-8\\n"\n\n' + translation)
    return folder


@pytest.mark.parametrize(
    ("translation", "fault"),
    [
        ("", "is missing"),
        ('msgid "{count} mails"\nmsgstr ""\n', "is not translated"),
        ('#, fuzzy\nmsgid "{count} mails"\nmsgstr "{count} Mails"\n', "is fuzzy"),
        ('msgid "{count} mails"\nmsgstr "{zahl} Mails"\n', "other {places}"),
        ('msgid "{count} mails"\nmsgstr "{count} Mails"\n\nmsgid "old"\nmsgstr "alt"\n', "is in no source"),
    ],
)
def test_a_planted_catalog_fault_is_found(tmp_path: Path, translation: str, fault: str) -> None:
    found = tool.faults(planted_root(tmp_path, translation))
    assert len(found) == 1
    assert fault in found[0]


def test_a_new_text_makes_the_template_stale(tmp_path: Path) -> None:
    root = planted_root(tmp_path, 'msgid "{count} mails"\nmsgstr "{count} Mails"\n')
    assert tool.faults(root) == []
    (root / "app" / "b.py").write_text('_("new")\n')
    assert any("is not what the sources say" in fault for fault in tool.faults(root))
    assert any("'new' is missing" in fault for fault in tool.faults(root))


def test_update_adds_new_texts_empty_and_drops_dead_ones(tmp_path: Path) -> None:
    root = planted_root(tmp_path, 'msgid "old"\nmsgstr "alt"\n')
    assert tool.update(root) == ["locales/de/LC_MESSAGES/messages.po: '{count} mails' is not translated"]
    text = (root / "locales" / "de" / "LC_MESSAGES" / "messages.po").read_text()
    assert "alt" not in text
    assert "{count} mails" in text
