"""Who may import whom: the contracts of pyproject.toml hold, and break when they should."""

import shutil
import subprocess
import sys
from pathlib import Path

import pytest

from tests.contracts.sources import ROOT

ROOMS = ("app", "workers", "engines", "modelling", "client", "cli", "demo")
LINTER = Path(sys.executable).with_name("lint-imports")


def lint_imports(folder: Path) -> subprocess.CompletedProcess[str]:
    environment = {"PYTHONPATH": str(folder), "PATH": str(LINTER.parent)}
    return subprocess.run(
        [str(LINTER), "--no-cache"], cwd=folder, env=environment, capture_output=True, text=True, check=False
    )


@pytest.fixture
def copied(tmp_path: Path) -> Path:
    """The rooms and their contracts in a folder where a fault can be planted."""
    for room in ROOMS:
        shutil.copytree(ROOT / room, tmp_path / room, ignore=shutil.ignore_patterns("data", "__pycache__"))
    shutil.copy(ROOT / "pyproject.toml", tmp_path)
    return tmp_path


def test_the_import_contracts_hold() -> None:
    answer = lint_imports(ROOT)
    assert answer.returncode == 0, answer.stdout


@pytest.mark.parametrize(
    ("file", "planted", "contract"),
    [
        ("app/core/ids.py", "import torch", "The gateway stays light"),
        ("engines/lora/seeding.py", "import app.core.ids", "Engines are pure"),
        ("app/rounds/lifecycle.py", "import app.runs.models", "Features in layers"),
        ("app/rounds/lifecycle.py", "import app.budget.models", "Only the ledger touches"),
        ("client/errors.py", "import app.core.errors", "The client knows the wire only"),
        ("workers/shell.py", "import fastapi", "HTTP stays at the edge"),
    ],
)
def test_a_planted_import_breaks_its_contract(copied: Path, file: str, planted: str, contract: str) -> None:
    with (copied / file).open("a", encoding="utf-8") as source:
        source.write(f"\n{planted}\n")
    answer = lint_imports(copied)
    assert answer.returncode == 1, answer.stdout
    assert any(contract in line and "BROKEN" in line for line in answer.stdout.splitlines()), answer.stdout
