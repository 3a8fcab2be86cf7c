"""docs/requirements.csv: every promise, and the tests that prove it."""

from __future__ import annotations

import csv
from pathlib import Path
from typing import NamedTuple
from xml.etree import ElementTree

from tests.contracts.sources import ROOT

REQUIREMENTS = ROOT / "docs" / "requirements.csv"
COLUMNS = ["id", "promise", "tests"]


class Requirement(NamedTuple):
    """One row: what is promised, and the node ids of its tests."""

    id: str
    promise: str
    tests: tuple[str, ...]


def read_requirements(path: Path = REQUIREMENTS) -> list[Requirement]:
    """Read the table; raises ValueError when its columns are not the agreed ones or an id is there twice."""
    with path.open(encoding="utf-8", newline="") as file:
        reader = csv.DictReader(file)
        if reader.fieldnames != COLUMNS:
            raise ValueError(f"{path.name} must have the columns {COLUMNS}")
        rows = [
            Requirement(
                row["id"], row["promise"], tuple(t.strip() for t in row["tests"].split(";") if t.strip())
            )
            for row in reader
        ]
    if len({row.id for row in rows}) != len(rows):
        raise ValueError(f"{path.name} holds an id twice")
    return rows


def without_parameters(name: str) -> str:
    """The name of a test function from the name of one of its cases."""
    return name.partition("[")[0]


def outcomes(junit: Path) -> dict[str, bool]:
    """Node id of every test function that ran, and whether all its cases passed (a skipped one did not)."""
    passed: dict[str, bool] = {}
    # The file was written by our own pytest a moment ago.
    for case in ElementTree.parse(junit).iter("testcase"):  # noqa: S314
        module = case.get("classname", "").replace(".", "/")
        node = f"{module}.py::{without_parameters(case.get('name', ''))}"
        failed = any(case.find(tag) is not None for tag in ("failure", "error", "skipped"))
        passed[node] = passed.get(node, True) and not failed
    return passed


def unproved(requirements: list[Requirement], passed: dict[str, bool]) -> list[str]:
    """The rows that lack a passing test, each with what is wrong."""
    found = []
    for row in requirements:
        broken = [test for test in row.tests if not passed.get(test, False)]
        if broken or not row.tests:
            found.append(f"{row.id}: {', '.join(broken) or 'no test'}")
    return found
