"""`make sdk-check`: generate, compile and run both clients, and the skeleton, against a live server."""

from __future__ import annotations

import sys
import tempfile
import time
from pathlib import Path

from sdk import tools


def main() -> int:
    """Say how it goes, a line for each thing that holds; the first that does not ends it."""
    missing = tools.faults()
    for line in missing:
        sys.stderr.write(f"sdk-check: {line}\n")
    if missing:
        return 1
    began = time.monotonic()
    tools.install()

    from sdk.exchanges import check_exchanges  # noqa: PLC0415  (torch: nothing that a missing Node waits for)
    from sdk.generated import make_python, make_typescript  # noqa: PLC0415
    from sdk.live import server  # noqa: PLC0415
    from sdk.skeleton import check_skeleton, check_vectors  # noqa: PLC0415

    sys.stdout.write(f"sdk-check: python, {make_python()} operations generated, imported and type-checked\n")
    sys.stdout.write(f"sdk-check: typescript, {make_typescript()} operations generated and compiled\n")
    check_vectors()
    sys.stdout.write("sdk-check: skeleton, the vectors of docs/wire.md hold\n")
    with tempfile.TemporaryDirectory(prefix="dpfl-sdk-") as name, server(Path(name) / "server") as live:
        check_skeleton(live, Path(name))
        check_exchanges(live, Path(name))
    sys.stdout.write(f"sdk-check: all of it holds ({time.monotonic() - began:.0f} s)\n")
    return 0


if __name__ == "__main__":
    sys.exit(main())
