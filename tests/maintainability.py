"""The maintainability index of the product's code, by radon, in the two readings that are in use.

MI = max(0, 100 * (171 - 5.2 ln V - 0.23 G - 16.2 ln L + 50 sin(sqrt(2.4 C))) / 171), with Halstead volume V,
cyclomatic complexity G, source lines L and the comment ratio C in radians (docstrings count as comments).

Its authors defined it on averages over procedures (Coleman et al. 1994, IEEE Computer 27(8)): `of_functions`.
Radon's command line puts the totals of a whole file into it, which measures mostly how long the file is:
`of_modules`. Both are reported.
"""

from __future__ import annotations

import ast
import textwrap
from collections.abc import Iterator
from statistics import fmean
from typing import NamedTuple

from radon.metrics import mi_visit

from tests.contracts.sources import ROOT, sources

FORMULA = "radon mi_visit, docstrings counted as comments"


class Score(NamedTuple):
    """The index of one piece of code."""

    name: str
    points: float


def functions(path: str, tree: ast.Module) -> Iterator[Score]:
    """Every function and method of a module, scored by itself."""
    source = (ROOT / path).read_text("utf-8")
    for node in ast.walk(tree):
        if isinstance(node, ast.FunctionDef | ast.AsyncFunctionDef):
            text = ast.get_source_segment(source, node, padded=True) or ""
            yield Score(f"{path}:{node.name}", float(mi_visit(textwrap.dedent(text), multi=True)))


def of_functions() -> list[Score]:
    """Scores of all functions, worst first."""
    return sorted(
        (score for path, tree in sources() for score in functions(path, tree)), key=lambda s: s.points
    )


def of_modules() -> list[Score]:
    """Scores of all modules that hold any code, worst first."""
    texts = {path: (ROOT / path).read_text("utf-8") for path, tree in sources() if tree.body}
    return sorted(
        (Score(path, float(mi_visit(t, multi=True))) for path, t in texts.items()), key=lambda s: s.points
    )


def mean(scores: list[Score]) -> float:
    """The plain mean of the scores."""
    return round(fmean(score.points for score in scores), 2)
