"""What the checks need beside the product: Node, npm, and both generators in folders of their own.

`python -m sdk.tools` says what is missing here, one line each, and exits with 1 if anything is.
"""

from __future__ import annotations

import json
import re
import shutil
import subprocess
import sys
import venv
from collections.abc import Sequence
from pathlib import Path

ROOT = Path(__file__).resolve().parents[1]
TYPESCRIPT = ROOT / "sdk" / "typescript"
PYTHON = ROOT / "sdk" / "python"
PYTHON_TOOLS = ROOT / ".venv-sdk"
NEEDED_NODE = (20, 19)
_LOCK = TYPESCRIPT / "package-lock.json"
_INSTALLED_LOCK = TYPESCRIPT / "node_modules" / "installed-lock.json"
_INSTALLED_REQUIREMENTS = PYTHON_TOOLS / "installed-requirements.txt"
_REGISTRY_PATIENCE_S = 60
_LIMIT_S = 300
"""No single step takes that long; one that hangs is named."""


def run(command: Sequence[object], *, cwd: Path = ROOT, environment: dict[str, str] | None = None) -> str:
    """Run a command and return what it printed; its failure ends the check with all that it said."""
    words = [str(word) for word in command]
    try:
        done = subprocess.run(
            words, cwd=cwd, env=environment, capture_output=True, text=True, timeout=_LIMIT_S, check=False
        )
    except subprocess.TimeoutExpired as error:
        raise SystemExit(f"sdk-check: `{' '.join(words)}` did not end in {_LIMIT_S} s") from error
    if done.returncode != 0:
        said = "\n".join(filter(None, (done.stdout.strip(), done.stderr.strip())))
        raise SystemExit(f"sdk-check: `{' '.join(words)}` failed\n{said}")
    return done.stdout


def faults() -> list[str]:
    """What keeps the clients from being checked here, one line each, with the remedy."""
    node, npm = shutil.which("node"), shutil.which("npm")
    if node is None or npm is None:
        missing = ", ".join(name for name, found in (("node", node), ("npm", npm)) if found is None)
        return [f"not on the path: {missing}. Install Node {NEEDED_NODE[0]}.{NEEDED_NODE[1]} or newer."]
    told = run([node, "--version"]).strip()
    version = tuple(map(int, re.findall(r"\d+", told)[:2]))
    if version < NEEDED_NODE:
        return [f"Node {told} is too old: {NEEDED_NODE[0]}.{NEEDED_NODE[1]} or newer is needed."]
    if not _is_installed(_LOCK, _INSTALLED_LOCK) and not _registry_answers(npm):
        return ["npm's registry does not answer, and the packages of sdk/typescript are not here yet."]
    return []


def install() -> None:
    """Bring both generators into their folders, in exactly the versions that are committed."""
    if not _is_installed(_LOCK, _INSTALLED_LOCK):
        run(["npm", "ci", "--no-audit", "--no-fund", "--ignore-scripts"], cwd=TYPESCRIPT)
        shutil.copy(_LOCK, _INSTALLED_LOCK)
    requirements = PYTHON / "requirements.txt"
    if not _is_installed(requirements, _INSTALLED_REQUIREMENTS):
        venv.create(PYTHON_TOOLS, with_pip=True, clear=True)
        run([PYTHON_TOOLS / "bin" / "pip", "install", "--quiet", "--no-deps", "-r", requirements])
        shutil.copy(requirements, _INSTALLED_REQUIREMENTS)


def _is_installed(wanted: Path, installed: Path) -> bool:
    return installed.exists() and installed.read_bytes() == wanted.read_bytes()


def _registry_answers(npm: str) -> bool:
    """Ask for one of the packages that are needed, as npm itself would."""
    version = json.loads((TYPESCRIPT / "package.json").read_text("utf-8"))["devDependencies"]["typescript"]
    try:
        done = subprocess.run(
            [npm, "view", f"typescript@{version}", "version", "--fetch-retries=1"],
            cwd=TYPESCRIPT,
            capture_output=True,
            timeout=_REGISTRY_PATIENCE_S,
            check=False,
        )
    except subprocess.TimeoutExpired:
        return False
    return done.returncode == 0 and bool(done.stdout.strip())


def main() -> int:
    """Print what is missing."""
    found = faults()
    for line in found:
        sys.stdout.write(f"{line}\n")
    return 1 if found else 0


if __name__ == "__main__":
    sys.exit(main())
