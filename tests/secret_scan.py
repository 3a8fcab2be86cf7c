"""`make check`: looks for keys, tokens and passwords in everything that the repository holds.

What is found and is no secret stands in tests/known_secrets.toml, file by file with the reason, by a digest
of the value: another value in the same place is a finding again. Nothing is asked of the network.
"""

from __future__ import annotations

import hashlib
import os
import sys
import tomllib
from collections.abc import Iterable, Iterator, Mapping
from concurrent.futures import ProcessPoolExecutor
from pathlib import Path
from typing import Any, NamedTuple

from detect_secrets.core.scan import scan_file
from detect_secrets.settings import transient_settings

from tests.contracts.sources import ROOT, shipped_files

KNOWN = ROOT / "tests" / "known_secrets.toml"
# Passwords by a variable's name are ruff's to find (S105 to S107): here each error's code would be one.
DETECTORS: tuple[Mapping[str, Any], ...] = (
    *(
        {"name": name}
        for name in (
            "AWSKeyDetector", "AzureStorageKeyDetector", "BasicAuthDetector", "GitHubTokenDetector",
            "JwtTokenDetector", "NpmDetector", "PrivateKeyDetector", "SlackDetector", "StripeDetector",
        )
    ),
    {"name": "Base64HighEntropyString", "limit": 4.5},
    {"name": "HexHighEntropyString", "limit": 3.0},
)  # fmt: skip
# Made from the sources, which are looked through themselves, or kept in the tree for their bytes alone.
MADE = ("openapi.json", "locales/", "demo/data/", "tests/known_secrets.toml")


class Finding(NamedTuple):
    """Something that looks like a secret."""

    path: str
    line: int
    kind: str
    digest: str
    """The first 16 hex digits of the value's SHA-256: a list of findings must not be a list of secrets."""


def findings(paths: Iterable[Path]) -> list[Finding]:
    """All that looks like a secret in these files."""
    found = []
    with transient_settings({"plugins_used": list(DETECTORS)}):
        for path in paths:
            name = path.relative_to(ROOT).as_posix() if path.is_relative_to(ROOT) else path.name
            for one in scan_file(str(path)):
                digest = hashlib.sha256((one.secret_value or "").encode()).hexdigest()[:16]
                found.append(Finding(name, one.line_number, one.type, digest))
    return sorted(set(found))


def known() -> dict[str, frozenset[str]]:
    """What is known to be no secret: digests by file."""
    with KNOWN.open("rb") as file:
        return {path: frozenset(entry["digests"]) for path, entry in tomllib.load(file).items()}


def unknown(found: Iterable[Finding], listed: Mapping[str, frozenset[str]]) -> Iterator[Finding]:
    """The findings that nobody has vouched for."""
    return (one for one in found if one.digest not in listed.get(one.path, frozenset()))


def stale(found: Iterable[Finding], listed: Mapping[str, frozenset[str]]) -> set[str]:
    """Files with an entry that vouches for what is not there any more."""
    there: dict[str, set[str]] = {}
    for one in found:
        there.setdefault(one.path, set()).add(one.digest)
    return {path for path, digests in listed.items() if digests - there.get(path, set())}


def scan() -> list[Finding]:
    """Everything that is shipped, on all cores."""
    paths = [path for path in shipped_files() if not path.relative_to(ROOT).as_posix().startswith(MADE)]
    workers = os.cpu_count() or 1
    with ProcessPoolExecutor(workers) as pool:
        parts = pool.map(findings, [paths[start::workers] for start in range(workers)])
    return sorted(one for part in parts for one in part)


def main() -> int:
    """Print what was found; exit status 1 when something was."""
    found, listed = scan(), known()
    complaints = [f"{one.path}:{one.line}: {one.kind} ({one.digest})" for one in unknown(found, listed)]
    complaints += [f"{KNOWN.name}: {path} vouches for what is gone" for path in sorted(stale(found, listed))]
    sys.stdout.writelines(f"{line}\n" for line in complaints)
    return 1 if complaints else 0


if __name__ == "__main__":
    sys.exit(main())
