"""The table of audited acts and the code agree: each act is noted somewhere, and nothing else is."""

import ast
from collections.abc import Iterator

from app.audit.actions import Action
from tests.contracts.sources import calls, constant_keywords, dotted, offences, sources


def named_actions() -> set[str]:
    return {
        node.attr
        for path, tree in sources()
        if path != "app/audit/actions.py"
        for node in ast.walk(tree)
        if isinstance(node, ast.Attribute) and dotted(node.value).rpartition(".")[2] == "Action"
    }


def test_every_act_of_the_table_is_noted_somewhere() -> None:
    assert set(Action.__members__) - named_actions() == set()


def unnamed(tree: ast.AST) -> Iterator[str]:
    """Entries whose action is a bare text: it would be in no table."""
    for call, name in calls(tree):
        if isinstance(constant_keywords(call).get("action"), str) and name.rpartition(".")[2] != "typer":
            yield f"line {call.lineno}: {name} names its action by a text"


def test_no_entry_names_its_action_by_a_text() -> None:
    assert offences(unnamed, exempt=("cli/", "client/", "demo/", "benchmarks/")) == []


def test_a_planted_text_is_found() -> None:
    assert len(list(unnamed(ast.parse('record(session, action="a.b", actor="me")')))) == 1
