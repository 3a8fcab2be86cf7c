"""What the documents tell people to type exists: make targets, dpfl commands and options, modules, files."""

import importlib.util
import re
from collections.abc import Callable
from typing import Any

import pytest
import typer.main

from cli.main import app as dpfl
from tests.contracts.sources import ROOT
from tests.docs.commands import Command, commands, commands_in, named_paths

TARGET = re.compile(r"^([a-z][a-z%-]*):", re.MULTILINE)
VARIABLE = re.compile(r"^(?:export )?([A-Z_]+) *[?:]?=", re.MULTILINE)
FOREIGN = {
    "git", "cd", "curl", "export", "docker", "pip", "ls", "cat", "mkdir", "cp", "echo", "kill",
    "sleep", "jq", "source", "set", "tar", "head", "cut", "for", "done",
}  # fmt: skip


def makefile_names(pattern: re.Pattern[str]) -> set[str]:
    return set(pattern.findall((ROOT / "Makefile").read_text("utf-8")))


def make_fault(words: tuple[str, ...]) -> str | None:
    for word in words:
        name, assigned, _value = word.partition("=")
        if assigned and name not in makefile_names(VARIABLE) | {"ARGS", "TORCH_ARGS"}:
            return f"make has no variable {name}"
        if assigned or name in makefile_names(TARGET):
            continue
        benchmark = name.removeprefix("bench-").replace("-", "_")
        if not (name.startswith("bench-") and (ROOT / "benchmarks" / f"{benchmark}.py").is_file()):
            return f"make has no target {name}"
    return None


def options_of(command: Any) -> set[str]:
    names = {name for parameter in command.params for name in (*parameter.opts, *parameter.secondary_opts)}
    return {"--help", *names}


def dpfl_fault(words: tuple[str, ...]) -> str | None:
    command: Any = typer.main.get_command(dpfl)
    allowed = options_of(command)
    for word in words:
        option = word.partition("=")[0]
        if word.startswith("--") and option not in allowed:
            return f"{command.name} has no option {option}"
        commands_below = getattr(command, "commands", None)
        if commands_below and not word.startswith("-"):
            if word not in commands_below:
                return f"{command.name} has no command {word}"
            command = commands_below[word]
            allowed |= options_of(command)
    return None


def python_fault(words: tuple[str, ...]) -> str | None:
    try:
        missing = words[:1] == ("-m",) and importlib.util.find_spec(words[1]) is None
    except ModuleNotFoundError:
        missing = True
    return f"there is no module {words[1]}" if missing else None


CHECKS: dict[str, Callable[[tuple[str, ...]], str | None]] = {
    "make": make_fault,
    "dpfl": dpfl_fault,
    "python": python_fault,
}


def fault(command: Command) -> str | None:
    """What is wrong with a command, or None."""
    name = re.sub(r"^python3?(\.\d+)?$", "python", command.words[0].removeprefix(".venv/bin/"))
    if check := CHECKS.get(name):
        return check(command.words[1:])
    if name in FOREIGN or (ROOT / command.words[0]).is_file():
        return None
    return f"{command.words[0]} is no command that a document may use"


def test_documents_tell_commands_that_exist() -> None:
    told = commands()
    assert {f"{c.document}: {found} ({' '.join(c.words)})" for c in told if (found := fault(c))} == set()


@pytest.mark.parametrize(
    "planted",
    [
        "make nothing",
        "make demo EPSYLON=3",
        "make bench-nothing",
        "dpfl fly",
        ".venv/bin/dpfl up --prot 8000",
        "cd x && dpfl doctor --loud",
        "python -m nothing.here",
        "nothing --here",
        "run=$(dpfl fly --x)",
    ],
)
def test_a_planted_command_that_does_not_exist_is_found(planted: str) -> None:
    told = list(commands_in(f"text\n```sh\n{planted}\n```\n", document="x.md"))
    assert any(fault(command) for command in told)


@pytest.mark.parametrize(
    "fine",
    [
        "make demo EPSILON=3",
        "DPFL_DATA=/var/tmp/x .venv/bin/dpfl up \\\n  --port 8001  # a comment",
        "git status | cat",
        'for name in a b; do\n  dpfl doctor --data "$name"\ndone',
        'run=$(dpfl doctor --data "$(dpfl migrate)")',
    ],
)
def test_commands_that_exist_pass(fine: str) -> None:
    told = list(commands_in(f"```sh\n{fine}\n```", document="x.md"))
    assert told
    assert not any(fault(command) for command in told)


def test_documents_name_files_that_exist() -> None:
    missing = {
        f"{document}: {name}"
        for document, name in named_paths()
        if "NNNN" not in name
        and not name.startswith("out/")
        and not any((root / name).exists() for root in (ROOT, (ROOT / document).parent))
    }
    assert missing == set()
