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


def goal(name: str, value: float, *, at_most: float) -> dict[str, Any]:
    """State a goal that a ratio or a count stays at or under; a missed one is shown as missed."""
    return {"name": name, "value": value, "goal": at_most, "holds": value <= at_most}


def report(bench: str, rows: Sequence[dict[str, Any]], goals: Sequence[dict[str, Any]]) -> None:
    """Print the rows for people, then everything as one JSON object on the last line."""
    for row in rows:
        print("  ".join(f"{key}={value}" for key, value in row.items()))
    print(json.dumps({"bench": bench, "machine": machine(), "rows": list(rows), "goals": list(goals)}))
