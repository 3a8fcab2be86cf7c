"""The clients in other languages: what their check needs, and what is committed of them."""

from __future__ import annotations

import json
import os
import re
import shutil
import subprocess
import sys
from pathlib import Path

import pytest

from sdk import tools

SKELETON = tools.TYPESCRIPT / "client.ts"


def put(folder: Path, **programs: str) -> None:
    """Programs that only print or end."""
    for name, body in programs.items():
        file = folder / name
        file.write_text(f"#!/bin/sh\n{body}\n")
        file.chmod(0o755)


def test_where_node_is_missing_the_check_says_so_and_fails(tmp_path: Path) -> None:
    done = subprocess.run(
        [sys.executable, "-m", "sdk"],
        cwd=tools.ROOT,
        env={"PATH": str(tmp_path), "PYTHONPATH": str(tools.ROOT)},
        capture_output=True,
        text=True,
        timeout=60,
        check=False,
    )
    assert (done.returncode, done.stdout) == (1, "")
    assert done.stderr.startswith("sdk-check: not on the path: node, npm. Install Node 20.19")


@pytest.mark.parametrize(
    ("node", "npm", "told"),
    [
        ("echo v18.20.4", "echo 5.9.3", "Node v18.20.4 is too old"),
        ("echo v20.18.9", "echo 5.9.3", "Node v20.18.9 is too old"),
        ("echo v22.1.0", "exit 1", "npm's registry does not answer"),
        ("echo v22.1.0", "exit 0", "npm's registry does not answer"),
        ("echo v22.1.0", "echo 5.9.3", None),
    ],
)
def test_what_is_missing_is_said_in_one_line(
    node: str, npm: str, told: str | None, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    put(tmp_path, node=node, npm=npm)
    monkeypatch.setenv("PATH", f"{tmp_path}{os.pathsep}/usr/bin{os.pathsep}/bin")
    monkeypatch.setattr(tools, "_INSTALLED_LOCK", tmp_path / "none")
    found = tools.faults()
    assert [told in line for line in found if told] == ([True] if told else [])
    assert len(found) == (1 if told else 0)


def test_what_is_installed_already_asks_no_registry(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    put(tmp_path, node="echo v20.19.0", npm="exit 1")
    monkeypatch.setenv("PATH", f"{tmp_path}{os.pathsep}/usr/bin{os.pathsep}/bin")
    monkeypatch.setattr(tools, "_INSTALLED_LOCK", tools._LOCK)
    assert tools.faults() == []


@pytest.mark.parametrize(
    ("missing", "fails", "targets", "code"),
    [
        ("", "", ["check", "test", "sdk-check"], 0),
        ("not on the path: node.", "", ["check", "test"], 0),
        ("", "sdk-check", ["check", "test", "sdk-check"], 2),
        ("not on the path: node.", "test", ["check", "test"], 2),
    ],
)
def test_a_change_is_checked_by_these_clients_or_one_line_says_why_not(
    missing: str, fails: str, targets: list[str], code: int, tmp_path: Path
) -> None:
    for name in (".ci", ".venv/bin", "bin"):
        (tmp_path / name).mkdir(parents=True)
    shutil.copy(tools.ROOT / ".ci" / "run", tmp_path / ".ci" / "run")
    put(tmp_path / ".venv/bin", python=f'echo "{missing}"; test -z "{missing}"')
    put(tmp_path / "bin", make=f'echo "$1" >> targets; test "$1" != "{fails}" || exit 2')
    path = f"{tmp_path}/bin{os.pathsep}/usr/bin{os.pathsep}/bin"
    done = subprocess.run(
        ["sh", tmp_path / ".ci" / "run"], env={"PATH": path}, capture_output=True, text=True, check=False
    )
    assert (done.returncode, (tmp_path / "targets").read_text().split()) == (code, targets)
    left_out = f"sdk-check is left out: {missing}\n" if missing and not fails else ""
    assert done.stdout == left_out


def test_the_skeleton_has_at_most_three_hundred_lines_and_needs_nothing_but_node() -> None:
    lines = SKELETON.read_text("utf-8").splitlines()
    assert len(lines) <= 300
    assert max(map(len, lines)) <= 120
    imported = [match[1] for line in lines if (match := re.search(r'\bfrom "([^"]+)"', line))]
    assert imported
    assert [name for name in imported if not name.startswith("node:")] == []


def test_packages_are_locked_by_version_and_digest_and_by_no_host() -> None:
    wanted = json.loads((tools.TYPESCRIPT / "package.json").read_text("utf-8"))["devDependencies"]
    lock = json.loads((tools.TYPESCRIPT / "package-lock.json").read_text("utf-8"))["packages"]
    assert {name: lock[f"node_modules/{name}"]["version"] for name in wanted} == wanted
    packages = {name: one for name, one in lock.items() if name}
    assert [name for name, one in packages.items() if "resolved" in one or "integrity" not in one] == []
    requirements = (tools.PYTHON / "requirements.txt").read_text("utf-8").splitlines()
    assert [one for one in requirements if not re.fullmatch(r"#.*|[\w.\-]+==[\w.]+", one)] == []
