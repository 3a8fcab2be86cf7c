"""The one line of JSON that every benchmark ends with, and what it says about the machine."""

import json
import os
import platform
from collections.abc import Sequence
from typing import Any


def machine() -> dict[str, Any]:
    """Describe where the figures were measured, the load of the moment included."""
    return {
        "platform": platform.platform(),
        "python": platform.python_version(),
        "cores": os.cpu_count(),
        "load": round(os.getloadavg()[0], 2),
    }


def goal(
    name: str, value: float, *, at_most: float | None = None, at_least: float | None = None
) -> dict[str, Any]:
    """State a goal that a ratio or a count stays under, or reaches; a missed one is shown as missed.

    Raises:
        ValueError: not exactly one limit is given.
    """
    if at_most is not None and at_least is None:
        return {"name": name, "value": value, "goal": at_most, "holds": value <= at_most}
    if at_least is not None and at_most is None:
        return {"name": name, "value": value, "goal": at_least, "holds": value >= at_least}
    raise ValueError("a goal has one limit: at most, or at least")


def report(bench: str, rows: Sequence[dict[str, Any]], goals: Sequence[dict[str, Any]]) -> None:
    """Print the rows for people, then everything as one JSON object on the last line."""
    for row in rows:
        print("  ".join(f"{key}={value}" for key, value in row.items()))
    print(json.dumps({"bench": bench, "machine": machine(), "rows": list(rows), "goals": list(goals)}))
