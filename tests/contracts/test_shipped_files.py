"""What is shipped stands by itself: it names no machine, no neighbouring folder and no way it was made."""

import re
from collections.abc import Iterator

import pytest

from tests.contracts.sources import ROOT, shipped_files

# One letter of each is in brackets, so that this file does not hold what it looks for.
TRACES = re.compile(
    r"/[w]ork/|/[r]oot/\w|\.\./[s]hared|/[t]mp/plan|[p]rivacy-rules|\b[i]ssue #?\d"
    r"|[C]laude|[A]nthropic|[C]hatGPT"
)


def traces(text: str) -> Iterator[str]:
    for number, line in enumerate(text.splitlines(), start=1):
        if match := TRACES.search(line):
            yield f"line {number}: {match.group()}"


def test_no_file_tells_where_or_how_it_was_made() -> None:
    found = []
    for path in shipped_files():
        try:
            text = path.read_text("utf-8")
        except UnicodeDecodeError:
            continue
        found += [f"{path.relative_to(ROOT)} {trace}" for trace in traces(text)]
    assert found == []


@pytest.mark.parametrize(
    "parts", [("cd /wo", "rk/main"), ("see ..", "/shared"), ("iss", "ue 2"), ("privacy", "-rules.md")]
)
def test_a_planted_trace_is_found(parts: tuple[str, str]) -> None:
    assert list(traces("".join(parts)))
