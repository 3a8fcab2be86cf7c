"""The repository's own sources, for tests that read code instead of running it."""

from __future__ import annotations

import ast
import subprocess
from collections.abc import Callable, Iterator
from pathlib import Path

ROOT = Path(__file__).resolve().parents[2]
MADE = {
    ".venv", ".venv-peers", ".venv-sdk", "node_modules", "generated", "build", "out", "__pycache__",
    ".mypy_cache", ".ruff_cache", ".git",
}  # fmt: skip
ROOMS = ("app", "workers", "engines", "modelling", "client", "cli", "demo", "migrations", "benchmarks", "sdk")


def sources() -> Iterator[tuple[str, ast.Module]]:
    """Every module of the product, parsed, with its path from the root."""
    for room in ROOMS:
        for path in sorted((ROOT / room).rglob("*.py")):
            yield path.relative_to(ROOT).as_posix(), ast.parse(path.read_text("utf-8"))


def offences(check: Callable[[ast.AST], Iterator[str]], *, exempt: tuple[str, ...] = ()) -> list[str]:
    """What `check` finds in any module, those below an exempt path apart."""
    return [
        f"{path}: {offence}"
        for path, tree in sources()
        if not path.startswith(exempt)
        for offence in check(tree)
    ]


def dotted(node: ast.AST) -> str:
    """`a.b.c` for a chain of names and attributes; unnamed parts are empty."""
    if isinstance(node, ast.Attribute):
        return f"{dotted(node.value)}.{node.attr}"
    return node.id if isinstance(node, ast.Name) else ""


def calls(tree: ast.AST) -> Iterator[tuple[ast.Call, str]]:
    """Every call with the dotted name of what is called."""
    for node in ast.walk(tree):
        if isinstance(node, ast.Call):
            yield node, dotted(node.func)


def constant_keywords(call: ast.Call) -> dict[str, object]:
    """The keyword arguments of a call that are written as constants."""
    return {
        keyword.arg: keyword.value.value
        for keyword in call.keywords
        if keyword.arg is not None and isinstance(keyword.value, ast.Constant)
    }


def shipped_files() -> list[Path]:
    """Everything that the repository holds or is about to hold: tracked, or new and not ignored."""
    listed = subprocess.run(
        [
            "git",
            "-c",
            f"safe.directory={ROOT}",
            "ls-files",
            "-z",
            "--cached",
            "--others",
            "--exclude-standard",
        ],
        cwd=ROOT,
        capture_output=True,
        check=False,
    )
    if listed.returncode != 0:  # a source archive: no history, and nothing but what was shipped
        return [path for path in ROOT.rglob("*") if path.is_file() and not MADE & set(path.parts)]
    names = listed.stdout.decode().split("\0")
    return [path for name in names if name and (path := ROOT / name).is_file()]
