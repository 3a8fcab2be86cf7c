"""`python -m demo.split`: write some of one silo's mails to a file, to try a client with."""

from __future__ import annotations

import argparse
from pathlib import Path

from demo.mails import SILOS, mails_of, write_mails


def main() -> None:
    """Write the first mails of a silo as JSON lines."""
    parser = argparse.ArgumentParser(prog="python -m demo.split", description=__doc__)
    parser.add_argument("--silo", type=int, choices=range(SILOS), required=True)
    parser.add_argument("--limit", type=int, default=400, help="how many mails")
    parser.add_argument("--to", type=Path, required=True)
    options = parser.parse_args()
    options.to.parent.mkdir(parents=True, exist_ok=True)
    write_mails(mails_of(options.silo)[: options.limit], options.to)


if __name__ == "__main__":
    main()
