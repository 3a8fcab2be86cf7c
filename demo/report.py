"""What the demo found: a table for a person, `report.json` for a program."""

from __future__ import annotations

import json
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from rich.console import Console
from rich.table import Table

from demo.attack import AttackResult
from demo.bench import Score
from demo.plan import BASE_MODEL, DELTA
from demo.reference import BagOfWords

DATASET = "SpamAssassin public corpus, 4,205 training and 1,066 test mails"


@dataclass(frozen=True, kw_only=True)
class Findings:
    """All that was measured."""

    seed: int
    clients: int
    rounds: int
    unit: str
    """What one epsilon covers."""
    trainable_parameters: int
    epsilon: float
    """As certified: recomputed for the whole schedule."""
    noise_multiplier: float
    majority: float
    before: Score
    private: list[Score]
    """After each round."""
    non_private: list[Score]
    bag_of_words: BagOfWords
    attack_private: AttackResult
    attack_non_private: AttackResult
    train_s: float
    total_s: float
    adapter_sha256: str

    def as_json(self) -> dict[str, Any]:
        """The content of report.json."""
        return {
            "base_model": BASE_MODEL,
            "dataset": DATASET,
            "seed": self.seed,
            "clients": self.clients,
            "rounds": self.rounds,
            "trainable_parameters": self.trainable_parameters,
            "unit": self.unit,
            "epsilon": self.epsilon,
            "delta": DELTA,
            "noise_multiplier": self.noise_multiplier,
            "accuracy": {
                "majority": self.majority,
                "before": self.before.accuracy,
                "after": self.private[-1].accuracy,
                "non_private": self.non_private[-1].accuracy,
                "bag_of_words": self.bag_of_words.accuracy,
                "by_round": [score.accuracy for score in self.private],
                "non_private_by_round": [score.accuracy for score in self.non_private],
            },
            "auc": self.private[-1].auc,
            "auc_non_private": self.non_private[-1].auc,
            "attack": {
                "non_private": self.attack_non_private.auc,
                "private": self.attack_private.auc,
                "interval": {
                    "non_private": [self.attack_non_private.low, self.attack_non_private.high],
                    "private": [self.attack_private.low, self.attack_private.high],
                },
            },
            "seconds": {"train": round(self.train_s, 1), "total": round(self.total_s, 1)},
            "adapter_sha256": self.adapter_sha256,
        }


def write(findings: Findings, path: Path) -> None:
    """Write report.json."""
    path.write_text(json.dumps(findings.as_json(), indent=2) + "\n", encoding="utf-8")


def show(findings: Findings, console: Console, *, title: str, covers: str) -> None:
    """Print the table and what its numbers do and do not say.

    Args:
        covers: what one epsilon covers, from whom, and who says so.
    """
    table = Table(title=title)
    for heading, justify in (("", "left"), ("accuracy", "right"), ("AUC", "right"), ("attack AUC", "right")):
        table.add_column(heading, justify="left" if justify == "left" else "right")
    table.add_row("always “ham”", f"{findings.majority:.3f}", "", "")
    table.add_row("before training", f"{findings.before.accuracy:.3f}", f"{findings.before.auc:.3f}", "")
    for name, scores, attack in (
        ("federated, without DP", findings.non_private, findings.attack_non_private),
        (f"federated, epsilon {findings.epsilon:.2f}", findings.private, findings.attack_private),
    ):
        table.add_row(
            name,
            f"{scores[-1].accuracy:.3f}",
            f"{scores[-1].auc:.3f}",
            f"{attack.auc:.2f} [{attack.low:.2f}, {attack.high:.2f}]",
        )
    words = findings.bag_of_words
    table.add_row("bag of words, all mails in one place", f"{words.accuracy:.3f}", f"{words.auc:.3f}", "")
    console.print(table)
    console.print(
        f"The epsilon of {findings.epsilon:.4f} at delta {DELTA:g} covers {covers}. "
        "Tuning is not counted in it. The run without DP is there to compare with and protects nothing. "
        "A bag of words over pooled mails does better: the point is that nobody pooled any.",
        highlight=False,
    )
