"""The mails: splits, silos, and the canaries that the attack looks for.

A canary is a training mail with its label flipped. Fifteen a silo go into training and fifteen stay
out, by a coin that only the experimenter sees; an attacker who tells the two apart has learnt who was in.
"""

from __future__ import annotations

import gzip
import json
import random
from dataclasses import dataclass
from pathlib import Path

DATA_FILE = Path(__file__).parent / "data" / "mails.jsonl.gz"
SILOS = 8
CANARIES_A_SILO = 30
FLIP = {"ham": "spam", "spam": "ham"}

Mail = dict[str, str]


@dataclass(frozen=True)
class Silo:
    """One mailbox: what it trains on, and the two halves of its canaries."""

    number: int
    training: list[Mail]
    """Every mail of the silo's training split; the canaries in it carry the flipped label, those left
    out are missing."""
    canaries_in: list[Mail]
    canaries_out: list[Mail]
    clients: dict[int, list[Mail]]
    """The training mails again, by the small client that holds them: 20 to 22 of them each."""


def _plain(row: dict[str, object], *, label: str | None = None) -> Mail:
    return {
        "subject": str(row["subject"]),
        "body": str(row["body"]),
        "label": label if label is not None else str(row["label"]),
    }


def _rows() -> list[dict[str, object]]:
    with gzip.open(DATA_FILE, "rt", encoding="utf-8") as file:
        return [json.loads(line) for line in file]


def load_test() -> list[Mail]:
    """The 1,066 mails that no silo trains on."""
    return [_plain(row) for row in _rows() if row["split"] == "test"]


def write_mails(mails: list[Mail], path: Path) -> None:
    """Write mails as JSON lines, readable by their owner alone."""
    path.touch(mode=0o600)
    with path.open("w", encoding="utf-8") as file:
        for mail in mails:
            file.write(json.dumps(mail, ensure_ascii=False) + "\n")


def mails_of(number: int) -> list[Mail]:
    """A silo's training mails as they are, without canaries."""
    return [_plain(row) for row in _rows() if row["split"] == "train" and row["silo"] == number]


def load_silos(seed: int) -> list[Silo]:
    """The eight silos with their canaries. The seed picks canaries and tosses their coins, nothing else."""
    rows = [row for row in _rows() if row["split"] == "train"]
    silos = []
    for number in range(SILOS):
        mine = [row for row in rows if row["silo"] == number]
        rng = random.Random(f"canaries/{seed}/{number}")  # noqa: S311  a coin, no secret  # nosec B311
        canaries = rng.sample(mine, CANARIES_A_SILO)
        rng.shuffle(canaries)
        flipped = {str(row["id"]): _plain(row, label=FLIP[str(row["label"])]) for row in canaries}
        inside = {str(row["id"]) for row in canaries[: CANARIES_A_SILO // 2]}
        outside = set(flipped) - inside
        clients: dict[int, list[Mail]] = {}
        for row in mine:
            if str(row["id"]) not in outside:
                clients.setdefault(int(str(row["client"])), []).append(
                    flipped.get(str(row["id"]), _plain(row))
                )
        training = [flipped.get(str(row["id"]), _plain(row)) for row in mine if str(row["id"]) not in outside]
        silos.append(
            Silo(
                number=number,
                training=training,
                canaries_in=[flipped[key] for key in sorted(inside)],
                canaries_out=[flipped[key] for key in sorted(outside)],
                clients=clients,
            )
        )
    return silos
