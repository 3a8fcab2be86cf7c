"""Canaries in a run's own rounds: what they send, how each round is scored, and the report at the end.

They are in the same sums as the clients, under the same clip, grid and noise. A score is a function of what a
round lets out and of the canaries' directions: neither coins nor who was drawn enter it. Coins enter nothing
but the canaries' own contributions, until the report opens them.
"""

from collections.abc import Iterator, Mapping, Sequence

import numpy as np
import torch
from numpy.typing import ArrayLike, NDArray
from torch import Tensor

from engines.privacy.audit_canaries import Canaries
from engines.privacy.audit_one_shot import Statistic
from engines.privacy.audit_report import AuditReport, audit_report
from engines.privacy.round_stream import Parameter

OVER = 100.0
"""How many clip norms long a canary's update is before it is clipped: shows whether anything clips."""


def contributions(
    canaries: Canaries, drawn: Sequence[int], *, clip_norm: float
) -> Iterator[NDArray[np.float32]]:
    """Walk through what the drawn canaries send, one at a time, in their order.

    Args:
        canaries: of the run.
        drawn: the numbers of those that were drawn for the round and kept by its cap.
        clip_norm: C of the round, parameter units.
    Yields:
        Shape (d,): a canary that is in sends `OVER` times C times its direction, so that exactly its clipped
        vector of norm C is summed; one that is out sends the zero vector, and has its place all the same.
    Raises:
        ValueError: there is no such canary, or one is named twice.
    Source: Andrew et al. 2023, arXiv:2302.03098, Section 3: canary clients.
    """
    if len(set(drawn)) != len(drawn) or any(not 0 <= number < canaries.count for number in drawn):
        raise ValueError("a canary is drawn that there is not, or twice")
    coins = canaries.coins()
    for number in drawn:
        if coins[number]:
            yield canaries.direction(number) * np.float32(OVER * clip_norm)
        else:
            yield np.zeros(canaries.dimension, dtype=np.float32)


def stream_parameters(canaries: Canaries, drawn: Sequence[int]) -> dict[str, Parameter]:
    """Return what a round's noise stream is bound to besides: other canaries never get the same noise."""
    return {"canaries": [canaries.commitment, [int(number) for number in drawn]]}


def round_scores(
    canaries: Canaries, update: Mapping[str, Tensor], *, divisor: float, noise_std: float
) -> NDArray[np.float64]:
    """Score every canary by one round, drawn or not, in or out.

    Args:
        canaries: of the run.
        update: what the round lets out, its noised sum over `divisor`; float32 tensors in the flat order.
        divisor: the plan's public constant.
        noise_std: standard deviation of the noise on the sum, parameter units.
    Returns:
        Shape (m,): the inner product of the noised sum and each direction, in standard deviations of the
        noise. A canary that was not in has mean 0, whatever the round's other contributions were.
    Raises:
        ValueError: the update has another length than the directions.
    Source: Andrew et al. 2023, arXiv:2302.03098, Algorithm 2, without the division by the sum's length.
    """
    flat = torch.cat([tensor.reshape(-1) for tensor in update.values()]).to(torch.float64).numpy()
    if flat.shape != (canaries.dimension,):
        raise ValueError("a round's update and its canaries have different lengths")
    noised = flat * (divisor / noise_std)
    found = [float(np.dot(direction.astype(np.float64), noised)) for direction in canaries.directions()]
    return np.array(found, dtype=np.float64)


def run_report(
    canaries: Canaries, by_round: ArrayLike, *, claimed_epsilon: float, claimed_delta: float
) -> AuditReport:
    """Open the coins of a run that is over, and hold its claim against the sum of its rounds' scores.

    Args:
        canaries: of the run.
        by_round: shape (rounds, m), of every round whose noise was drawn, published or not.
        claimed_epsilon: of the whole schedule, cohorts' sampling and cap included.
        claimed_delta: of that claim.
    Raises:
        ValueError: there is no round, or not one score a canary.
    """
    scores = np.asarray(by_round, dtype=np.float64)
    if scores.ndim != 2 or scores.shape[0] < 1:
        raise ValueError("there is one row of scores a round, and at least one round")
    return audit_report(
        canaries,
        scores.sum(axis=0),
        statistic=Statistic.SUM_OF_ROUNDS,
        claimed_epsilon=claimed_epsilon,
        claimed_delta=claimed_delta,
    )
