"""`python -m demo.split`: write some of one silo's mails to a file, to try a client with."""

from __future__ import annotations

import argparse
from pathlib import Path

from demo.mails import SILOS, mails_of, write_mails


def main() -> None:
    """Write mails of a silo as JSON lines."""
    parser = argparse.ArgumentParser(prog="python -m demo.split", description=__doc__)
    parser.add_argument("--silo", type=int, choices=range(SILOS), required=True)
    parser.add_argument("--limit", type=int, default=400, help="how many mails")
    parser.add_argument("--to", type=Path, required=True)
    options = parser.parse_args()
    options.to.parent.mkdir(parents=True, exist_ok=True)
    mails = mails_of(options.silo)
    step = max(1, len(mails) // max(1, options.limit))  # evenly spaced: ham and spam lie one after the other
    write_mails(mails[::step][: options.limit], options.to)


if __name__ == "__main__":
    main()
