"""What a job is asked to do reaches no shell and no environment: parameters are typed JSON and stay that."""

import ast
from collections.abc import Iterator

import pytest

from tests.contracts.sources import calls, constant_keywords, dotted, offences

# A command line runs processes and sets their environment; no room that handles requests or jobs does.
EXEMPT = ("cli/", "demo/", "benchmarks/", "migrations/")
SHELLS = {
    "os.system", "os.popen", "os.execv", "os.execve", "os.execvp", "os.spawnv", "os.putenv",
    "os.posix_spawn", "pty.spawn", "asyncio.create_subprocess_shell", "subprocess.getoutput",
    "subprocess.getstatusoutput", "importlib.import_module", "__import__",
}  # fmt: skip
WRITES = {"setdefault", "update", "pop", "clear"}


def outgrown(tree: ast.AST) -> Iterator[str]:
    """Where a value could become a command, a variable of the environment, or a module's name."""
    for node in ast.walk(tree):
        if isinstance(node, ast.Subscript) and not isinstance(node.ctx, ast.Load):
            if dotted(node.value) == "os.environ":
                yield f"line {node.lineno} changes the environment"
        elif isinstance(node, ast.Attribute) and dotted(node.value) == "os.environ" and node.attr in WRITES:
            yield f"line {node.lineno} changes the environment"
    for call, name in calls(tree):
        if name in SHELLS or constant_keywords(call).get("shell"):
            yield f"line {call.lineno} calls {name}"


def test_no_parameter_reaches_a_shell_an_environment_or_an_import() -> None:
    assert offences(outgrown, exempt=EXEMPT) == []


@pytest.mark.parametrize(
    "planted",
    [
        "os.environ[claim.payload['name']] = value",
        "del os.environ['HOME']",
        "os.environ.update(claim.payload['env'])",
        "os.system(command)",
        "subprocess.run(command, shell=True)",
        "importlib.import_module(claim.payload['module'])",
    ],
)
def test_a_planted_way_out_is_found(planted: str) -> None:
    assert list(outgrown(ast.parse(planted)))
