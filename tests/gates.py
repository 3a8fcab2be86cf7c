"""`make gates`: the whole suite under coverage, and the figures that a release has to reach, as JSON.

Progress goes to standard error. Exit status 1 when a goal is missed; a missed goal stays in the list.
"""

from __future__ import annotations

import json
import os
import subprocess
import sys
import tempfile
from collections.abc import Sequence
from pathlib import Path
from statistics import fmean
from typing import Any

from benchmarks.report import machine
from tests import maintainability
from tests.contracts.sources import ROOT
from tests.requirements import Requirement, outcomes, read_requirements, unproved

ROOMS = ("app", "workers", "engines", "modelling", "client", "cli", "demo", "migrations")
COVERAGE_GOAL = 90.0
MAINTAINABILITY_GOAL = 85.0


def run(arguments: Sequence[str], *, folder: Path, shown: bool = False) -> str:
    """Run a tool of this environment in the root and return what it prints, or show it on standard error."""
    ended = subprocess.run(
        [sys.executable, "-m", *arguments],
        cwd=ROOT,
        env=os.environ | {"COVERAGE_FILE": str(folder / ".coverage")},
        stdout=sys.stderr if shown else subprocess.PIPE,
        text=True,
        check=False,
    )
    return ended.stdout or ""


def measure_suite(folder: Path) -> dict[str, Any]:
    """Run every test under coverage, processes that tests start included."""
    suite = ["pytest", "-n", "2", "--dist=worksteal", f"--junitxml={folder / 'junit.xml'}"]
    run(["coverage", "run", "-m", *suite], folder=folder, shown=True)
    run(["coverage", "combine", "-q"], folder=folder, shown=True)
    run(["coverage", "json", "-q", "-o", str(folder / "coverage.json")], folder=folder, shown=True)
    report: dict[str, Any] = json.loads((folder / "coverage.json").read_text("utf-8"))
    return report


def coverage_row(report: dict[str, Any]) -> dict[str, Any]:
    """Line coverage, with the modules that pull it down."""
    files = {name: file["summary"] for name, file in report["files"].items()}
    worst = sorted(files, key=lambda name: -files[name]["missing_lines"])[:10]
    return {
        "metric": "line coverage",
        "lines": report["totals"]["num_statements"],
        "percent": round(report["totals"]["percent_covered"], 2),
        "most_uncovered": {name: files[name]["missing_lines"] for name in worst},
    }


def maintainability_rows() -> list[dict[str, Any]]:
    """Both readings of the index with their worst modules."""
    rows = []
    for formula, reading in maintainability.READINGS.items():
        scores = maintainability.scores(reading)
        rows.append(
            {
                "metric": "maintainability index, mean over modules",
                "formula": formula,
                "modules": len(scores),
                "mean": round(fmean(score.points for score in scores), 2),
                "worst": {score.name: round(score.points, 2) for score in scores[:5]},
            }
        )
    return rows


def critical_findings(folder: Path) -> list[str]:
    """Findings of bandit at high severity, and of ruff's security rules."""
    bandit = run(["bandit", "-q", "-r", "-lll", "-f", "json", "-c", "pyproject.toml", *ROOMS], folder=folder)
    ruff = run(["ruff", "check", "--select", "S", "--output-format", "json", *ROOMS], folder=folder)
    return [
        *(f"bandit {row['test_id']} {row['filename']}" for row in json.loads(bandit)["results"]),
        *(f"ruff {row['code']} {row['filename']}" for row in json.loads(ruff)),
    ]


def goal(name: str, value: float, wanted: float, *, at_most: bool = False) -> dict[str, Any]:
    """One goal in the form that every measurement here prints."""
    holds = value <= wanted if at_most else value >= wanted
    return {"name": name, "value": value, "goal": wanted, "holds": holds}


def report(folder: Path) -> dict[str, Any]:
    """Measure everything."""
    covered = coverage_row(measure_suite(folder))
    indices = maintainability_rows()
    findings = critical_findings(folder)
    requirements: list[Requirement] = read_requirements()
    missing = unproved(requirements, outcomes(folder / "junit.xml"))
    goals = [goal("line coverage, percent", covered["percent"], COVERAGE_GOAL)]
    goals += [
        goal(f"{row['metric']}, {row['formula']}", row["mean"], MAINTAINABILITY_GOAL) for row in indices
    ]
    goals.append(goal("critical findings", len(findings), 0, at_most=True))
    goals.append(goal("requirements with passing tests", len(requirements) - len(missing), len(requirements)))
    rows = [
        covered,
        *indices,
        {"metric": "critical findings", "found": findings},
        {"metric": "requirements", "count": len(requirements), "unproved": missing},
    ]
    return {"bench": "gates", "machine": machine(), "rows": rows, "goals": goals}


def main() -> int:
    """Print the JSON line; exit status 1 when a goal is missed."""
    with tempfile.TemporaryDirectory(prefix="dpfl-gates-") as folder:
        result = report(Path(folder))
    sys.stdout.write(json.dumps(result) + "\n")
    return 0 if all(row["holds"] for row in result["goals"]) else 1


if __name__ == "__main__":
    sys.exit(main())
