"""Looks at the machine before anything is installed. Standard library only, and readable by old Pythons.

It runs under whatever `python3` is there, so it may not use syntax newer than Python 3.7.
"""

from __future__ import annotations

import importlib.util
import os
import platform
import shutil
import sys

NEEDED_PYTHON = (3, 11)
CPU_BYTES = 4 * 10**9
CUDA_BYTES = 10 * 10**9
"""Room for the wheels and their contents, measured at 2.1 GB (CPU build) and about 7 GB (CUDA build)."""


def expects_cuda(torch_args: str) -> bool:
    """On x86 Linux the default build of torch is the one with CUDA, several GB; elsewhere it is small."""
    return not torch_args and sys.platform == "linux" and platform.machine() == "x86_64"


def faults(folder: str) -> list[str]:
    """What keeps an installation from succeeding here, one line each, with the remedy."""
    found = []
    version = "%d.%d" % sys.version_info[:2]  # noqa: UP031  printable by any Python 3
    if sys.version_info[:2] < NEEDED_PYTHON:
        found.append(
            f"Python 3.11 or newer is needed, {sys.executable} is {version}: "
            "install it, or name it, for example `make setup PYTHON=python3.11`."
        )
    if any(importlib.util.find_spec(name) is None for name in ("venv", "ensurepip")):
        found.append(
            f"Python {version} has no venv or ensurepip: on Debian and Ubuntu install the system package "
            f"python{version}-venv, then run make again."
        )
    free = shutil.disk_usage(folder).free
    if free < CPU_BYTES:
        found.append(f"{free / 1e9:.1f} GB are free in {folder}, about {CPU_BYTES / 1e9:.0f} GB are needed.")
    return found


def main() -> int:
    """Print what will be downloaded, or why nothing can be; exit status 1 for the latter."""
    folder = os.getcwd()
    found = faults(folder)
    for line in found:
        sys.stderr.write(f"setup: {line}\n")
    if found:
        return 1
    sys.stdout.write(
        f"setup: Python {platform.python_version()}; a virtual environment goes into {folder}/.venv.\n"
        "setup: downloads about 0.6 GB of wheels with the CPU build of torch (2.1 GB on disk).\n"
    )
    if expects_cuda(os.environ.get("TORCH_ARGS", "")):
        sys.stdout.write(
            "setup: on x86 Linux pip may choose the CUDA build of torch, several GB more; README.md tells\n"
            "setup: how to get the CPU build with TORCH_ARGS. "
            f"The CUDA build needs {CUDA_BYTES / 1e9:.0f} GB.\n"
        )
    return 0


if __name__ == "__main__":
    sys.exit(main())
