"""docs/requirements.csv names tests that exist; whether they pass is for `make gates` to say."""

import ast
from functools import cache
from pathlib import Path

import pytest

from tests.contracts.sources import ROOT
from tests.requirements import Requirement, outcomes, read_requirements, unproved


@cache
def functions_in(path: str) -> frozenset[str]:
    file = ROOT / path
    tree = ast.parse(file.read_text("utf-8")) if file.is_file() else ast.Module([], [])
    return frozenset(
        node.name for node in tree.body if isinstance(node, ast.FunctionDef | ast.AsyncFunctionDef)
    )


def test_every_requirement_names_a_test() -> None:
    assert [row.id for row in read_requirements() if not row.tests] == []


def test_named_tests_exist() -> None:
    named = {test for row in read_requirements() for test in row.tests}
    assert {
        test for test in named if test.partition("::")[2] not in functions_in(test.partition("::")[0])
    } == set()


def test_a_requirement_with_a_failing_missing_or_skipped_test_is_unproved(tmp_path: Path) -> None:
    junit = tmp_path / "junit.xml"
    junit.write_text(
        "<testsuites><testsuite>"
        '<testcase classname="tests.unit.test_a" name="test_good[1]"/>'
        '<testcase classname="tests.unit.test_a" name="test_half[1]"/>'
        '<testcase classname="tests.unit.test_a" name="test_half[2]"><failure/></testcase>'
        '<testcase classname="tests.unit.test_a" name="test_skipped"><skipped/></testcase>'
        "</testsuite></testsuites>"
    )
    names = ("test_good", "test_half", "test_skipped", "test_absent")
    rows = [Requirement(name, "", (f"tests/unit/test_a.py::{name}",)) for name in names]
    found = unproved([*rows, Requirement("empty", "", ())], outcomes(junit))
    assert [line.partition(":")[0] for line in found] == ["test_half", "test_skipped", "test_absent", "empty"]


def test_an_id_may_not_be_used_twice(tmp_path: Path) -> None:
    table = tmp_path / "requirements.csv"
    table.write_text("id,promise,tests\na,one,t\na,two,t\n")
    with pytest.raises(ValueError, match="twice"):
        read_requirements(table)
