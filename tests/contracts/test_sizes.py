"""Files and functions stay small enough to be read at once."""

import ast
from collections.abc import Iterator

import pytest

from tests.contracts.sources import ROOT, offences, sources

MAX_MODULE_LINES = 400
MAX_FUNCTION_LINES = 40
EXEMPT = (
    "migrations/versions/",
)  # a migration is a list of statements in their order; splitting it hides that


def long_functions(tree: ast.AST) -> Iterator[str]:
    for node in ast.walk(tree):
        if isinstance(node, ast.FunctionDef | ast.AsyncFunctionDef):
            lines = (node.end_lineno or node.lineno) - node.lineno + 1
            if lines > MAX_FUNCTION_LINES:
                yield f"{node.name} has {lines} lines"


def test_functions_have_at_most_forty_lines() -> None:
    assert offences(long_functions, exempt=EXEMPT) == []


def test_modules_have_at_most_four_hundred_lines() -> None:
    lines = {path: len((ROOT / path).read_text("utf-8").splitlines()) for path, _tree in sources()}
    assert {k: v for k, v in lines.items() if v > MAX_MODULE_LINES and not k.startswith(EXEMPT)} == {}


@pytest.mark.parametrize(("body_lines", "found"), [(MAX_FUNCTION_LINES - 1, []), (40, ["f has 41 lines"])])
def test_a_function_of_forty_one_lines_is_found(body_lines: int, found: list[str]) -> None:
    assert list(long_functions(ast.parse("def f():\n" + "    x = 1\n" * body_lines))) == found
