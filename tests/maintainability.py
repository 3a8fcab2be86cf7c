"""The maintainability index of the product's code, by radon, in the two readings that are in use.

MI = max(0, 100 * (171 - 5.2 ln V - 0.23 G - 16.2 ln L + 50 sin(sqrt(2.4 C))) / 171), with Halstead volume V,
cyclomatic complexity G, source lines L, and the share C of comment lines in radians (docstrings count).

Its authors define V, G and L as averages over a module's procedures (Coleman et al. 1994, IEEE Computer
27(8)): `by_procedure`. Radon's command line puts the totals of a whole file in their place, which measures
mostly how long a file is: `by_file`. Both are reported.
"""

from __future__ import annotations

import ast
import textwrap
from collections.abc import Callable
from statistics import fmean
from typing import NamedTuple

from radon.metrics import mi_compute, mi_parameters

from tests.contracts.sources import ROOT, sources


class Score(NamedTuple):
    """The index of one module."""

    name: str
    points: float


def by_file(source: str, _tree: ast.Module) -> float:
    """The index with the totals of the whole file, as `radon mi` prints it."""
    return float(mi_compute(*mi_parameters(source, True)))


def by_procedure(source: str, tree: ast.Module) -> float:
    """The index with averages over the module's functions; a module without any counts as one."""
    texts = [
        textwrap.dedent(ast.get_source_segment(source, node, padded=True) or "")
        for node in ast.walk(tree)
        if isinstance(node, ast.FunctionDef | ast.AsyncFunctionDef)
    ]
    parameters = [mi_parameters(text, True)[:3] for text in texts or [source]]
    volume, complexity, lines = (fmean(values) for values in zip(*parameters, strict=True))
    return float(mi_compute(volume, complexity, lines, mi_parameters(source, True)[3]))


READINGS: dict[str, Callable[[str, ast.Module], float]] = {
    "averages over each module's procedures (Coleman et al. 1994), by radon's parameters": by_procedure,
    "totals of each file (radon mi)": by_file,
}


def scores(reading: Callable[[str, ast.Module], float]) -> list[Score]:
    """Every module that holds any code, worst first."""
    found = [
        Score(path, reading((ROOT / path).read_text("utf-8"), tree)) for path, tree in sources() if tree.body
    ]
    return sorted(found, key=lambda score: score.points)
