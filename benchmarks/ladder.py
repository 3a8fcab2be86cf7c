"""How often honest clients are found odd, and how far up the ladder they come, where nobody attacks.

Simulated updates of 50 values under the default rule: clients alike; of lasting other sizes and learning
rates; with lasting other data; and near the end, where all is noise. Judged, and moved on the ladder, as the
server does it. `python -m benchmarks.ladder`.
"""

from __future__ import annotations

import argparse
from collections.abc import Iterator
from typing import Any

import numpy as np
from numpy.typing import NDArray

from benchmarks.report import goal, report
from engines.aggregation.detection import gather, judge
from engines.aggregation.gram import gram, squared_distances
from engines.aggregation.ladder import START, Observation, Step, follow
from engines.aggregation.rows import Held
from engines.aggregation.rules import Setting, aggregate

DIMENSION, ROUNDS, FEDERATIONS = 50, 100, 20
SIZES = ((8, 2), (20, 5), (60, 15))
"""Clients, and how many of them the default rule takes for hostile."""
KINDS = ("alike", "other sizes", "other data", "late")
ASSUMED = 0.02
"""How often an honest client is odd, as the ladder assumes."""

Vectors = NDArray[np.float64]


def honest(kind: str, clients: int, seed: int) -> Iterator[Vectors]:
    """The updates of each round; what makes a client another than the rest stays with it."""
    generator = np.random.default_rng(seed)
    factor = np.exp(generator.normal(size=(clients, 1)) * (0.3 if kind == "other sizes" else 0.0))
    own = generator.normal(size=(clients, DIMENSION)) * (1.0 if kind == "other data" else 0.0)
    for _ in range(ROUNDS):
        common = generator.normal(size=DIMENSION) * (0.05 if kind == "late" else 1.0)
        yield factor * (common + own + generator.normal(size=(clients, DIMENSION)) * 1.4)


def odd_clients(updates: Vectors, *, faulty: int) -> list[bool]:
    """Who is found odd in a round under the default rule."""
    outcome, _ = aggregate(Held(updates), Setting(faulty=faulty))
    evidence = gather(Held(updates), outcome.values, squared_distances(gram(Held(updates))))
    return [bool(finding.odd) for finding in judge(evidence)]


def watched(kind: str, clients: int, faulty: int, federations: int) -> dict[str, Any]:
    """Follow every client of some federations through all rounds."""
    odd, highest = 0, []
    for seed in range(federations):
        standings, tops = [START] * clients, [Step.OBSERVE] * clients
        for updates in honest(kind, clients, seed):
            for client, is_odd in enumerate(odd_clients(updates, faulty=faulty)):
                odd += is_odd
                standings[client] = follow(standings[client], Observation(odd=is_odd), trust="local")
                tops[client] = max(tops[client], standings[client].step)
        highest += tops
    row: dict[str, Any] = {
        "clients": clients,
        "faulty": faulty,
        "kind": kind,
        "odd_share": float(f"{odd / (len(highest) * ROUNDS):.3g}"),
    }
    for step in (Step.DISCOUNT, Step.QUARANTINE, Step.SUSPEND):
        row[f"ever_at_{step.name.lower()}"] = float(f"{np.mean([top >= step for top in highest]):.3g}")
    return row


def measure(federations: int) -> None:
    """Watch all kinds and sizes, and report."""
    rows = [watched(kind, *size, federations) for size in SIZES for kind in KINDS]
    worst = max(row["odd_share"] for row in rows)
    report("ladder", rows, [goal("largest odd share over the assumed one", worst / ASSUMED, at_most=1.0)])


if __name__ == "__main__":
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--federations", type=int, default=FEDERATIONS, help="of each size and kind")
    measure(parser.parse_args().federations)
