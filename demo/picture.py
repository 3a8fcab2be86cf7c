"""The picture: learning by round with the epsilon spent, and the attack without and with privacy."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

import matplotlib as mpl
from matplotlib.axes import Axes
from matplotlib.figure import Figure

from demo.attack import AttackResult

PRIVATE, OPEN, QUIET = "#1b7f5c", "#b5482f", "#7a7f87"


@dataclass(frozen=True)
class Curve:
    """Accuracy after each round of one arm; index 0 is the untrained adapter."""

    label: str
    accuracy: Sequence[float]


@dataclass(frozen=True)
class Results:
    """What the picture shows."""

    private: Curve
    non_private: Curve
    epsilon_by_round: Sequence[float]
    majority: float
    bag_of_words: float
    attack_private: AttackResult
    attack_non_private: AttackResult
    epsilon: float


def _draw_learning(axes: Axes, results: Results) -> None:
    for curve, colour in ((results.non_private, OPEN), (results.private, PRIVATE)):
        axes.plot(range(len(curve.accuracy)), curve.accuracy, color=colour, marker="o", label=curve.label)
    last = len(results.private.accuracy) - 1
    for value, name in ((results.majority, "always “ham”"), (results.bag_of_words, "central bag of words")):
        axes.axhline(value, color=QUIET, linewidth=1, linestyle="--")
        axes.annotate(name, (last, value), ha="right", va="bottom", color=QUIET, fontsize=8)
    axes.set_xlabel("round")
    axes.set_ylabel("accuracy on 1,066 unseen mails")
    axes.set_title("Learning, and the ε spent on it")
    spent = axes.twinx()
    spent.fill_between(
        range(len(results.epsilon_by_round) + 1),
        [0, *results.epsilon_by_round],
        color=PRIVATE,
        alpha=0.12,
        step="pre",
    )
    spent.set_ylim(0, max(results.epsilon_by_round) * 2.2)
    spent.set_ylabel(f"ε spent (δ fixed, ends at {results.epsilon_by_round[-1]:.2f})", color=PRIVATE)
    axes.legend(loc="center right", frameon=False)


def _draw_attack(axes: Axes, results: Results) -> None:
    arms = (
        ("without DP", results.attack_non_private, OPEN),
        (f"ε = {results.epsilon:g}", results.attack_private, PRIVATE),
    )
    for position, (_label, result, colour) in enumerate(arms):
        axes.bar(position, result.auc - 0.5, bottom=0.5, color=colour, width=0.6)
        axes.errorbar(
            position,
            result.auc,
            yerr=[[result.auc - result.low], [result.high - result.auc]],
            color="black",
            capsize=4,
        )
        axes.annotate(f"{result.auc:.2f}", (position + 0.08, result.auc), va="bottom", ha="left")
    axes.axhline(0.5, color=QUIET, linewidth=1, linestyle="--")
    axes.annotate("a coin toss", (1.45, 0.5), ha="right", va="bottom", color=QUIET, fontsize=8)
    axes.set_xticks([0, 1], [label for label, _result, _colour in arms])
    axes.set_ylim(0.4, 1.0)
    axes.set_ylabel("AUC of “was this mail trained on?”")
    axes.set_title("Attack on a mailbox's own update")


def draw(results: Results, path: Path) -> None:
    """Write the picture as PNG."""
    mpl.use("Agg")
    figure = Figure(figsize=(11, 4.4), layout="constrained")
    left, right = figure.subplots(1, 2, width_ratios=[2, 1])
    _draw_learning(left, results)
    _draw_attack(right, results)
    figure.savefig(path, dpi=150)
