"""The membership attack on a silo's own update: does the model fit the canaries that were in better?

The honest-but-curious server holds the adapter that it gave out and the update that came back; their
sum is the silo's local model. Canaries in and out of training are alike but for the coin, so the AUC of
the loss in telling them apart is .5 when nothing leaks.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np
import torch
from numpy.typing import NDArray

from modelling.evaluation import auc

RESAMPLES = 2000


@dataclass(frozen=True)
class AttackResult:
    """Mean over silos of the AUC, and its 95 % interval by resampling canaries within silos."""

    auc: float
    low: float
    high: float


@dataclass(frozen=True)
class CanaryLosses:
    """Loss of one silo's local model on its own canaries, shape (15,) each."""

    inside: NDArray[np.float64]
    outside: NDArray[np.float64]


def _auc(inside: NDArray[np.float64], outside: NDArray[np.float64]) -> float:
    """Probability that a canary that was in has the lower loss than one that was out."""
    scores = torch.from_numpy(-np.concatenate([inside, outside]))
    return auc(scores, torch.arange(len(scores)) < len(inside))


def attack(silos: Sequence[CanaryLosses], *, seed: int) -> AttackResult:
    """Attack every silo and average.

    Args:
        silos: the canaries' losses under each silo's local model of the last round.
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
