"""The client shares no code with the server; here its models and paths are held against openapi.json."""

import ast
import json
from collections.abc import Iterator
from copy import deepcopy
from typing import Any

import pytest
from pydantic import BaseModel

from cli import answers
from client import receipts, reconciling, transparency, wire
from tests.contracts.sources import ROOT

Json = dict[str, Any]
ANSWERS: list[tuple[type[BaseModel], str, str, str]] = [
    (wire.Assignment, "/v1/assignments", "get", "200"),
    (wire.Receipt, "/v1/rounds/{round_id}/updates/{update_id}", "put", "201"),
    (transparency.LogKeys, "/v1/audit/keys", "get", "200"),
    (receipts.LogEntry, "/v1/audit/entries/{entry_id}", "get", "200"),
    (transparency.Consistency, "/v1/audit/proofs/consistency", "get", "200"),
    (wire.TokenAnswer, "/v1/tokens", "post", "200"),
    (wire.Enrolled, "/v1/clients", "post", "201"),
    (wire.RunState, "/v1/runs/{run_id}", "get", "200"),
    (wire.Release, "/v1/releases/{release_id}", "get", "200"),
    (answers.Run, "/v1/runs/{run_id}", "get", "200"),
    (answers.Made, "/v1/runs", "post", "201"),
    (answers.Made, "/v1/organisations", "post", "201"),
    (answers.Organisation, "/v1/organisations", "get", "200"),
    (answers.Client, "/v1/clients", "get", "200"),
    (answers.Invitation, "/v1/enrolments", "post", "201"),
    (answers.Explanation, "/v1/plans/{run_id}/explanation", "get", "200"),
    (reconciling.MirroredAccount, "/v1/budgets/{account_id}", "get", "200"),
    (reconciling.MirroredEntry, "/v1/budgets/{account_id}/entries", "get", "200"),
]


@pytest.fixture(scope="module")
def description() -> Json:
    found: Json = json.loads((ROOT / "openapi.json").read_text("utf-8"))
    return found


def resolved(schema: Json, whole: Json) -> Json:
    """Follow a reference; a list stands for its items, an optional value for itself."""
    while True:
        if "$ref" in schema:
            name = schema["$ref"].rpartition("/")[2]
            schema = (whole.get("$defs") or whole["components"]["schemas"])[name]
        elif schema.get("type") == "array" and "items" in schema:
            schema = schema["items"]
        elif len(some := [one for one in schema.get("anyOf", ()) if one.get("type") != "null"]) == 1:
            schema = some[0]
        else:
            return schema


def answer_schema(description: Json, path: str, method: str, status: str) -> Json:
    content = description["paths"][path][method]["responses"][status]["content"]["application/json"]
    schema = resolved(content["schema"], description)
    return resolved(schema["properties"]["items"], description) if "items" in schema["properties"] else schema


def unanswered(model: type[BaseModel], schema: Json, description: Json) -> Iterator[str]:
    """Fields that the client reads and the server may leave out or write otherwise."""
    mine = model.model_json_schema()
    for name, field in mine["properties"].items():
        theirs = schema["properties"].get(name)
        is_needed = name in mine.get("required", ())
        if theirs is None:
            if is_needed:
                yield f"{name} is not answered"
            continue
        if is_needed and name not in schema.get("required", ()) and "default" not in theirs:
            yield f"{name} may be left out"
        wanted, given = resolved(field, mine).get("type"), resolved(theirs, description).get("type")
        if wanted != given and (wanted, given) != ("number", "integer"):
            yield f"{name} is {given}, not {wanted}"


def differences(mine: Json, theirs: Json, client: Json, server: Json, *, where: str) -> Iterator[str]:
    """Names that only one side knows, all the way down; the manifest admits no unknown field."""
    mine, theirs = resolved(mine, client), resolved(theirs, server)
    if "properties" not in mine or "properties" not in theirs:
        return
    for name in sorted(set(mine["properties"]) ^ set(theirs["properties"])):
        yield f"{where}.{name}"
    for name in sorted(set(mine["properties"]) & set(theirs["properties"])):
        one, other = mine["properties"][name], theirs["properties"][name]
        yield from differences(one, other, client, server, where=f"{where}.{name}")


def paths_in(source: str) -> Iterator[str]:
    """The server's paths that a module writes, with `{}` for what is filled in."""
    inside = set()
    for node in ast.walk(ast.parse(source)):
        text = ""
        if isinstance(node, ast.JoinedStr):
            inside |= set(map(id, node.values))
            text = "".join(
                str(part.value) if isinstance(part, ast.Constant) else "{}" for part in node.values
            )
        elif isinstance(node, ast.Constant) and isinstance(node.value, str) and id(node) not in inside:
            text = node.value
        if "/v1/" in text:
            yield text[text.index("/v1/") :].partition("?")[0]


@pytest.mark.parametrize(("model", "path", "method", "status"), ANSWERS)
def test_what_the_client_reads_is_what_the_server_answers(
    description: Json, model: type[BaseModel], path: str, method: str, status: str
) -> None:
    schema = answer_schema(description, path, method, status)
    assert list(unanswered(model, schema, description)) == []


def test_the_client_reads_the_servers_problems(description: Json) -> None:
    problem = description["components"]["schemas"]["Problem"]
    assert {"code", "title", "detail"} <= set(problem["required"])


def test_the_client_knows_every_field_of_the_manifest(description: Json) -> None:
    client = wire.Manifest.model_json_schema()
    server = description["components"]["schemas"]["Manifest"]
    assert list(differences(client, server, client, description, where="manifest")) == []


def is_served(asked: str, description: Json) -> bool:
    parts = asked.split("/")
    for path in description["paths"]:
        theirs = path.split("/")
        if len(parts) == len(theirs) and all(
            one in {other, "{}"} for one, other in zip(parts, theirs, strict=True)
        ):
            return True
    return False


def test_the_client_asks_for_paths_that_the_server_has(description: Json) -> None:
    asked = {
        path
        for room in ("client", "cli", "demo")
        for file in (ROOT / room).rglob("*.py")
        for path in paths_in(file.read_text("utf-8"))
    }
    assert asked
    assert {path for path in asked if not is_served(path, description)} == set()
    assert not is_served("/v1/rounds/{}/nothing", description)


def test_a_planted_difference_is_found(description: Json) -> None:
    schema = deepcopy(answer_schema(description, "/v1/assignments", "get", "200"))
    del schema["properties"]["adapter_sha256"]
    schema["properties"]["number"] = {"type": "string"}
    found = list(unanswered(wire.Assignment, schema, description))
    assert found == ["number is string, not integer", "adapter_sha256 is not answered"]
