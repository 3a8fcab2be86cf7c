"""Both clients out of openapi.json: made, compiled, and complete."""

from __future__ import annotations

import json
import os
import shutil

from sdk.tools import PYTHON, PYTHON_TOOLS, ROOT, TYPESCRIPT, run

PYTHON_CLIENT = ROOT / "out" / "sdk" / "dpfl_api"
BUILD = TYPESCRIPT / "build"
_METHODS = {"get", "put", "post", "patch", "delete"}
_IMPORT_ALL = """
import importlib, pkgutil, dpfl_api
for module in pkgutil.walk_packages(dpfl_api.__path__, "dpfl_api."):
    importlib.import_module(module.name)
"""


def operations() -> list[str]:
    """The id of every operation that the server offers."""
    paths = json.loads((ROOT / "openapi.json").read_text("utf-8"))["paths"]
    return sorted(
        one["operationId"] for path in paths.values() for name, one in path.items() if name in _METHODS
    )


def make_python() -> int:
    """Generate the Python client, compile, import and type-check it; returns its number of operations."""
    shutil.rmtree(PYTHON_CLIENT, ignore_errors=True)
    PYTHON_CLIENT.parent.mkdir(parents=True, exist_ok=True)
    generator = PYTHON_TOOLS / "bin" / "openapi-python-client"
    where = ("--path", "openapi.json", "--output-path", PYTHON_CLIENT, "--meta", "none")
    run([generator, "generate", *where, "--config", PYTHON / "generator.yaml"])
    made = {path.stem for path in (PYTHON_CLIENT / "api").rglob("*.py")}
    _require_all(made, "openapi-python-client")
    python, environment = PYTHON_TOOLS / "bin" / "python", python_environment()
    run([python, "-m", "compileall", "-q", PYTHON_CLIENT, PYTHON / "exchange.py"])
    run([python, "-c", _IMPORT_ALL], environment=environment)
    cache = ROOT / ".mypy_cache" / "sdk"
    strictly = ("-m", "mypy", "--strict", "--explicit-package-bases", "--cache-dir", cache)
    run(
        [python, *strictly, "--config-file", os.devnull, PYTHON_CLIENT, PYTHON / "exchange.py"],
        environment=environment,
    )
    return len(operations())


def python_environment() -> dict[str, str]:
    """In which the generated Python client is found."""
    return os.environ | {"PYTHONPATH": str(PYTHON_CLIENT.parent), "MYPYPATH": str(PYTHON_CLIENT.parent)}


def make_typescript() -> int:
    """Generate the TypeScript client and compile it with ours, strictly; returns its number of operations."""
    made = TYPESCRIPT / "generated"
    for folder in (made, BUILD):
        shutil.rmtree(folder, ignore_errors=True)
    wanted = ("--input", ROOT / "openapi.json", "--output", made, "--client", "@hey-api/client-fetch")
    run(["npx", "--no-install", "openapi-ts", *wanted, "--no-log-file"], cwd=TYPESCRIPT)
    text = (made / "sdk.gen.ts").read_text("utf-8")
    _require_all({name for name in operations() if f"export const {_camel(name)} =" in text}, "openapi-ts")
    run(["npx", "--no-install", "tsc"], cwd=TYPESCRIPT)
    return len(operations())


def _require_all(made: set[str], generator: str) -> None:
    missing = [name for name in operations() if name not in made]
    if missing:
        raise SystemExit(f"sdk-check: {generator} left out {', '.join(missing)}")


def _camel(name: str) -> str:
    first, *rest = name.split("_")
    return first + "".join(word.capitalize() for word in rest)
