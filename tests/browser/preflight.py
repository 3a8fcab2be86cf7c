"""What `make test-browser` needs of this machine, and what to do where it is missing."""

from __future__ import annotations

import shutil
import sys
from collections.abc import Iterator

BROWSERS = ("chromium", "chromium-browser", "google-chrome", "google-chrome-stable")
DRIVERS = ("chromedriver",)


def program(names: tuple[str, ...]) -> str | None:
    """Where the first of these programs is."""
    return next((found for name in names if (found := shutil.which(name))), None)


def missing() -> Iterator[str]:
    """What is not there, each with the package that brings it."""
    if program(BROWSERS) is None:
        yield "Chromium (Debian and Ubuntu: apt-get install chromium)"
    if program(DRIVERS) is None:
        yield "chromedriver, of the same version (Debian: apt-get install chromium-driver)"


def main() -> int:
    """Say what is missing; exit status 1 when something is."""
    absent = list(missing())
    if absent:
        sys.stderr.write(
            f"make test-browser drives a real browser, and this is missing: {'; '.join(absent)}\n"
        )
    return 1 if absent else 0


if __name__ == "__main__":
    sys.exit(main())
