"""`make setup` looks at the machine first, and says in one line what is missing and how to get it."""

import ast
import subprocess
import sys
from pathlib import Path
from types import SimpleNamespace

import pytest

from cli import preflight

ROOT = Path(__file__).resolve().parents[2]
MAKE = ["make", "-n", "--always-make"]


def told(*arguments: str) -> str:
    return subprocess.run([*MAKE, *arguments], cwd=ROOT, capture_output=True, text=True, check=True).stdout


def test_an_old_python_is_refused_with_the_remedy(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    monkeypatch.setattr(sys, "version_info", (3, 10, 4))
    (fault,) = preflight.faults(str(tmp_path))
    assert "3.10" in fault
    assert "make setup PYTHON=" in fault


def test_a_missing_system_package_is_named(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    monkeypatch.setattr(
        preflight.importlib.util, "find_spec", lambda name: None if name == "ensurepip" else name
    )
    (fault,) = preflight.faults(str(tmp_path))
    assert "-venv" in fault


def test_a_full_disk_is_told_before_anything_is_downloaded(
    monkeypatch: pytest.MonkeyPatch, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.setattr(preflight.shutil, "disk_usage", lambda _folder: SimpleNamespace(free=10**9))
    monkeypatch.chdir(tmp_path)
    assert preflight.main() == 1
    assert "1.0 GB are free" in capsys.readouterr().err


def test_what_will_be_downloaded_is_said(
    monkeypatch: pytest.MonkeyPatch, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.setattr(preflight.shutil, "disk_usage", lambda _folder: SimpleNamespace(free=10**12))
    monkeypatch.setattr(preflight.platform, "machine", lambda: "x86_64")
    monkeypatch.setattr(sys, "platform", "linux")
    monkeypatch.chdir(tmp_path)
    monkeypatch.delenv("TORCH_ARGS", raising=False)
    assert preflight.main() == 0
    assert "TORCH_ARGS" in capsys.readouterr().out
    monkeypatch.setenv("TORCH_ARGS", "--index-url x")
    assert preflight.main() == 0
    assert "TORCH_ARGS" not in capsys.readouterr().out


def test_an_old_python_can_read_the_check_that_refuses_it() -> None:
    ast.parse((ROOT / "cli" / "preflight.py").read_text("utf-8"), feature_version=(3, 7))


def test_the_setup_installs_torch_first_by_the_tested_version() -> None:
    lines = told("setup", "PYTHON=python3.11", "TORCH_ARGS=--index-url x").splitlines()
    installs = [line for line in lines if "pip install" in line]
    assert installs[0].startswith(".venv/bin/pip install --index-url x torch==")
    assert "-c constraints.txt -e '.[dev]'" in installs[1]
    assert "+" not in installs[0]


def test_the_demo_takes_its_budget_and_seed() -> None:
    assert "-m demo --epsilon 3 --seed 2" in told("demo", "EPSILON=3", "SEED=2")


def test_a_benchmark_is_called_by_its_name() -> None:
    assert "-m benchmarks.publish" in told("bench-publish")


def test_ci_runs_the_checks_and_then_every_test() -> None:
    lines = (ROOT / ".ci" / "run").read_text("utf-8").splitlines()
    assert [line for line in lines if line.startswith("make ")] == ["make check", "make test"]
    assert "set -eu" in lines


def test_the_tested_versions_carry_no_build_no_place_and_no_digest() -> None:
    lines = [
        line
        for line in (ROOT / "constraints.txt").read_text("utf-8").splitlines()
        if not line.startswith("#")
    ]
    assert all(line.count("==") == 1 and not set(line) & set("+@/: ") for line in lines)
    assert any(line.startswith("torch==") for line in lines)
