"""openapi.json is committed, fresh, and says all that a client's author needs."""

import json
import subprocess
import sys
from collections.abc import Iterator
from typing import Any

import pytest

from tests.contracts.sources import ROOT

METHODS = {"get", "post", "put", "patch", "delete"}
ANYWHERE = {"405", "503"}


@pytest.fixture(scope="module")
def committed() -> dict[str, Any]:
    description: dict[str, Any] = json.loads((ROOT / "openapi.json").read_text("utf-8"))
    return description


def operations(description: dict[str, Any]) -> Iterator[tuple[str, dict[str, Any]]]:
    for path, item in description["paths"].items():
        for method, operation in item.items():
            if method in METHODS:
                yield f"{method.upper()} {path}", operation


def test_the_committed_description_is_fresh() -> None:
    printed = subprocess.run(
        [sys.executable, "-m", "app", "openapi"], cwd=ROOT, env={}, capture_output=True, text=True, check=True
    )
    assert printed.stdout == (ROOT / "openapi.json").read_text("utf-8"), "run `make openapi`"


def test_every_operation_has_its_own_name(committed: dict[str, Any]) -> None:
    names = [operation["operationId"] for _name, operation in operations(committed)]
    assert len(set(names)) == len(names)
    assert all(name.isidentifier() for name in names)


def test_every_operation_says_what_it_does(committed: dict[str, Any]) -> None:
    assert [name for name, operation in operations(committed) if not operation.get("description")] == []


def test_every_operation_declares_the_refusals_that_any_can_meet(committed: dict[str, Any]) -> None:
    assert [
        name for name, operation in operations(committed) if not set(operation["responses"]) >= ANYWHERE
    ] == []


def test_every_json_body_comes_with_an_example(committed: dict[str, Any]) -> None:
    schemas = committed["components"]["schemas"]
    lacking = []
    for name, operation in operations(committed):
        content = operation.get("requestBody", {}).get("content", {}).get("application/json")
        if content is None:
            continue
        schema = content["schema"]
        schema = schemas[schema["$ref"].rpartition("/")[2]] if "$ref" in schema else schema
        if not (content.keys() & {"example", "examples"} or schema.keys() & {"example", "examples"}):
            lacking.append(name)
    assert lacking == []
