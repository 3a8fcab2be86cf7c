"""Two places may commit: the request's session and `run_tx`. Everybody else leaves it to them."""

import ast
from collections.abc import Iterator

import pytest

from tests.contracts.sources import calls, offences

COMMITTERS = ("app/http/deps.py", "app/core/db.py", "migrations/")
NO_SESSIONS = {"writer", "_writer", "file"}  # a blob's writer publishes a file; no database hears of it


def commits(tree: ast.AST) -> Iterator[str]:
    """Calls of `commit` or `begin` on anything, without arguments as sessions and engines take them."""
    for call, name in calls(tree):
        owner, _dot, verb = name.rpartition(".")
        is_method = isinstance(call.func, ast.Attribute) and owner.rpartition(".")[2] not in NO_SESSIONS
        if is_method and verb in {"commit", "begin"} and not call.args:
            yield f"line {call.lineno} calls {name}"


def test_only_two_places_commit() -> None:
    assert offences(commits, exempt=COMMITTERS) == []


@pytest.mark.parametrize(
    "planted", ["session.commit()", "with engine.begin() as c: pass", "self.a.b.commit()", "f().commit()"]
)
def test_a_planted_commit_is_found(planted: str) -> None:
    assert len(list(commits(ast.parse(planted)))) == 1
