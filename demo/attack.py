"""The membership attack on a silo's own updates: which canaries did its training make fit better?

The honest-but-curious server holds every adapter that it gave out and every update that came back; their
sum is the silo's local model of that round. The score of a canary is how far its loss falls from the one
to the other, averaged over the last rounds: the adapter given out takes away how hard the canary is by
itself (difficulty calibration, Watson et al. 2022, arXiv:2111.08440). The first rounds are left out: while
the model still moves far, nearly every mail comes to fit better.
Canaries in and out of training are alike but for the coin, so the AUC of that fall in telling them apart
is .5 when nothing leaks.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np
import torch
from numpy.typing import NDArray

from modelling.evaluation import auc

RESAMPLES = 2000
ATTACKED_ROUNDS = 4


@dataclass(frozen=True)
class AttackResult:
    """Mean over silos of the AUC, and its 95 % interval by resampling canaries within silos."""

    auc: float
    low: float
    high: float


@dataclass(frozen=True)
class CanaryGains:
    """How far one silo's training lowered the loss of its own canaries, in nats, shape (15,) each."""

    inside: NDArray[np.float64]
    outside: NDArray[np.float64]


def mean_gains(rounds: Sequence[CanaryGains]) -> CanaryGains:
    """One silo's gains, averaged over its rounds."""
    return CanaryGains(
        inside=np.mean([gains.inside for gains in rounds], axis=0),
        outside=np.mean([gains.outside for gains in rounds], axis=0),
    )


def _auc(inside: NDArray[np.float64], outside: NDArray[np.float64]) -> float:
    """Probability that a canary that was in gained more than one that was out."""
    scores = torch.from_numpy(np.concatenate([inside, outside]))
    return auc(scores, torch.arange(len(scores)) < len(inside))


def attack(silos: Sequence[CanaryGains], *, seed: int) -> AttackResult:
    """Attack every silo and average.

    Args:
        silos: each silo's canaries.
        seed: fixes the bootstrap's resampling.
    """
    rng = np.random.default_rng(seed)
    means = [float(np.mean([_auc(silo.inside, silo.outside) for silo in silos]))]
    for _ in range(RESAMPLES):
        drawn = [
            _auc(
                rng.choice(silo.inside, len(silo.inside)),
                rng.choice(silo.outside, len(silo.outside)),
            )
            for silo in silos
        ]
        means.append(float(np.mean(drawn)))
    low, high = np.quantile(means[1:], [0.025, 0.975])
    return AttackResult(auc=means[0], low=float(low), high=float(high))
