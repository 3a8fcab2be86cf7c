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
from numpy.typing import NDArray

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


def _wins(silo: CanaryGains) -> NDArray[np.float64]:
    """Each in against each out: 1 where it gained more, a half where as much; their mean is the AUC."""
    inside, outside = silo.inside[:, None], silo.outside[None, :]
    return np.where(inside == outside, 0.5, (inside > outside).astype(np.float64))


def attack(silos: Sequence[CanaryGains], *, seed: int) -> AttackResult:
    """Attack every silo and average.

    Args:
        silos: each silo's canaries.
        seed: fixes the bootstrap's resampling.
    """
    rng = np.random.default_rng(seed)
    wins = [_wins(silo) for silo in silos]
    resampled = []
    for _ in range(RESAMPLES):
        drawn = []
        for one in wins:
            rows, columns = (rng.integers(0, size, size) for size in one.shape)
            drawn.append(one[rows][:, columns].mean())
        resampled.append(np.mean(drawn))
    low, high = np.quantile(resampled, [0.025, 0.975])
    return AttackResult(auc=float(np.mean([one.mean() for one in wins])), low=float(low), high=float(high))
