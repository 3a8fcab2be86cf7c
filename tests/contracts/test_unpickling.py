"""Bytes from outside are never turned into objects by a format that can run code."""

import ast
from collections.abc import Iterator

import pytest

from tests.contracts.sources import calls, constant_keywords, offences

FORBIDDEN_MODULES = {
    "pickle", "_pickle", "cPickle", "pickletools", "cloudpickle", "dill", "joblib", "marshal", "shelve",
    "jsonpickle",
}  # fmt: skip
FORBIDDEN_CALLS = {
    "torch.load", "torch.jit.load", "torch.package.PackageImporter", "numpy.load", "np.load", "yaml.load",
    "yaml.unsafe_load", "yaml.full_load", "pandas.read_pickle", "pd.read_pickle", "eval", "exec",
}  # fmt: skip
SAFE_NUMPY = {"numpy.load", "np.load"}  # with allow_pickle=False they read arrays alone


def imported(node: ast.AST) -> Iterator[str]:
    if isinstance(node, ast.Import):
        yield from (alias.name for alias in node.names)
    elif isinstance(node, ast.ImportFrom) and node.module:
        yield node.module
        yield from (f"{node.module}.{alias.name}" for alias in node.names)


def unpickling(tree: ast.AST) -> Iterator[str]:
    for node in ast.walk(tree):
        for name in imported(node):
            if name.partition(".")[0] in FORBIDDEN_MODULES or name in FORBIDDEN_CALLS:
                yield f"imports {name}"
    for call, name in calls(tree):
        keywords = constant_keywords(call)
        is_safe = name in SAFE_NUMPY and keywords.get("allow_pickle") is False
        if keywords.get("allow_pickle") is True or (name in FORBIDDEN_CALLS and not is_safe):
            yield f"line {call.lineno} calls {name}"


def test_nothing_is_unpickled_or_evaluated() -> None:
    assert offences(unpickling) == []


@pytest.mark.parametrize(
    "planted",
    [
        "import pickle",
        "from joblib import load",
        "import os, marshal",
        "torch.load(path, weights_only=True)",
        "from torch import load",
        "np.load(path)",
        "numpy.load(path, allow_pickle=True)",
        "archive.read(path, allow_pickle=True)",
        "yaml.load(text, Loader=yaml.SafeLoader)",
        "def f():\n    import dill as d",
    ],
)
def test_a_planted_unpickling_is_found(planted: str) -> None:
    assert list(unpickling(ast.parse(planted)))
