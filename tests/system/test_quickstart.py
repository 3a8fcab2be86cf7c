"""The quickstart, typed as it stands: its own blocks, on a real stack."""

from __future__ import annotations

import os
import subprocess
import sys
from pathlib import Path

import pytest

from cli.embedded.stack import running_stack
from tests.docs.commands import blocks

ROOT = Path(__file__).resolve().parents[2]
GUIDE = ROOT / "docs" / "guides" / "quickstart.md"
PUT_IN_BY_THE_READER = ("make ", "export DPFL_", 'export PATH="$PWD')


def script() -> str:
    """The guide's shell blocks but for what a reader puts in: the first command and two addresses."""
    lines = "\n".join(blocks(GUIDE.read_text("utf-8"))).splitlines()
    return "\n".join(line for line in lines if not line.startswith(PUT_IN_BY_THE_READER))


@pytest.mark.system
@pytest.mark.timeout(300)
def test_the_quickstart_ends_with_a_verified_release(tmp_path: Path) -> None:
    with running_stack(tmp_path / "server") as stack:
        environment = os.environ | {
            "PATH": f"{Path(sys.executable).parent}:{os.environ['PATH']}",
            "PYTHONPATH": str(ROOT),
            "DPFL_SERVER": stack.url,
            "DPFL_KEY_FILE": str(stack.admin_file),
            "DPFL_DATA": str(tmp_path / "server"),
            "OMP_NUM_THREADS": "1",
            "LC_ALL": "C.UTF-8",
        }
        done = subprocess.run(
            ["bash", "-euo", "pipefail", "-c", script()],
            cwd=tmp_path,
            env=environment,
            capture_output=True,
            text=True,
            timeout=280,
            check=False,
        )
    assert done.returncode == 0, f"{done.stdout}\n{done.stderr}"
    assert "holds" in done.stdout
    written = tmp_path / "out" / "quickstart"
    assert (written / "adapter" / "adapter_model.safetensors").exists()
    assert (written / "merged" / "model.safetensors").exists()
    assert (written / "vllm" / "README.md").exists()
