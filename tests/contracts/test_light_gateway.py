"""The gateway's process never loads what computes: it stays small and starts quickly."""

import json
import subprocess
import sys
from pathlib import Path

from tests.contracts.sources import ROOT
from tests.database import TEST_MASTER_KEY

HEAVY = ("torch", "numpy", "scipy", "celery", "opacus", "peft", "transformers", "kombu")
PROGRAM = f"""
import json, sys
from app.core.settings import Settings
from app.main import build_app
build_app(Settings.load()).openapi()
print(json.dumps(sorted(set(sys.modules) & set({HEAVY!r}))))
"""


def heavy_modules(program: str, blobs: Path) -> list[str]:
    """The heavy modules that a fresh process holds after `program`."""
    environment = {
        "DATABASE_URL": "postgresql+psycopg://nobody@127.0.0.1:1/none",
        "BLOB_URL": f"file://{blobs}",
        "DPFL_MASTER_KEY": TEST_MASTER_KEY,
    }
    ended = subprocess.run(
        [sys.executable, "-c", program], cwd=ROOT, env=environment, capture_output=True, text=True, check=True
    )
    found: list[str] = json.loads(ended.stdout.splitlines()[-1])
    return found


def test_the_gateway_loads_no_heavy_module(tmp_path: Path) -> None:
    assert heavy_modules(PROGRAM, tmp_path) == []


def test_a_planted_heavy_import_is_found(tmp_path: Path) -> None:
    assert heavy_modules("import numpy\n" + PROGRAM, tmp_path) == ["numpy"]
