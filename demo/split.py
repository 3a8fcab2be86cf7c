"""`python -m demo.split`: write some of one silo's mails to a file, to try a client with."""

from __future__ import annotations

import argparse
from pathlib import Path

from demo.mails import SILOS, Mail, mails_of, write_mails


def sample(mails: list[Mail], limit: int) -> list[Mail]:
    """Take at most `limit` mails, evenly spaced, each label in its share and with one mail at least."""
    limit = min(limit, len(mails))
    spam = [at for at, mail in enumerate(mails) if mail["label"] == "spam"]
    ham = [at for at, mail in enumerate(mails) if mail["label"] == "ham"]
    of_spam = min(max(round(limit * len(spam) / len(mails)), 1), limit - 1)
    chosen = {*_spaced(spam, of_spam), *_spaced(ham, limit - of_spam)}
    return [mail for at, mail in enumerate(mails) if at in chosen]


def _spaced(places: list[int], count: int) -> list[int]:
    return [places[number * len(places) // count] for number in range(count)]


def main() -> None:
    """Write mails of a silo as JSON lines."""
    parser = argparse.ArgumentParser(prog="python -m demo.split", description=__doc__)
    parser.add_argument("--silo", type=int, choices=range(SILOS), required=True)
    parser.add_argument("--limit", type=int, default=400, help="how many mails")
    parser.add_argument("--to", type=Path, required=True)
    options = parser.parse_args()
    if options.limit < 2:
        parser.error("--limit must be at least 2: one mail of each label")
    options.to.parent.mkdir(parents=True, exist_ok=True)
    write_mails(sample(mails_of(options.silo), options.limit), options.to)


if __name__ == "__main__":
    main()
