"""The price of Gaussian noise: RDP and PLD behind one meaning of the noise multiplier.

Everywhere a noise multiplier is the noise's standard deviation on the SUM divided by the clip norm C. The
relation decides the sensitivity, C or 2C, and that is applied exactly once in either accountant. Every
number is an upper bound; what cannot be computed is refused, never priced at zero. No clock, no I/O.
"""

import dataclasses
import importlib.metadata
from collections.abc import Sequence

from engines.privacy.bounds import LARGEST_EPSILON, SMALLEST_EPSILON, require_delta
from engines.privacy.calibration import (
    CompletePlan,
    ImpossiblePlan,
    affordable_steps,
    calibrate_noise_multiplier,
    complete_plan,
)
from engines.privacy.gaussian_run import (
    CappedPoisson,
    GaussianRun,
    gaussian_run,
    require_cap,
    smallest_cap,
)
from engines.privacy.loss_library import AccountingFailed, Relation
from engines.privacy.pld import CLAIM_INTERVAL, price, require_hope
from engines.privacy.renyi import epsilon_rdp, rdp_at_order, renyi_ceiling

__all__ = [
    "ACCOUNTANT",
    "CLAIM_INTERVAL",
    "LARGEST_EPSILON",
    "SMALLEST_EPSILON",
    "AccountingFailed",
    "CappedPoisson",
    "CompletePlan",
    "GaussianRun",
    "ImpossiblePlan",
    "Relation",
    "affordable_steps",
    "calibrate_noise_multiplier",
    "complete_plan",
    "epsilon_by_round",
    "epsilon_pld",
    "epsilon_rdp",
    "gaussian_run",
    "rdp_at_order",
    "renyi_ceiling",
    "require_cap",
    "smallest_cap",
]

ACCOUNTANT = f"dp-accounting {importlib.metadata.version('dp-accounting')} PLD"
"""Name and version of what computes claims; stands beside every epsilon."""

_PRICED_ROUNDS = 64


def epsilon_pld(runs: Sequence[GaussianRun], *, delta: float) -> float:
    """Price a schedule that is fixed before it starts, by privacy-loss distributions.

    Args:
        runs: the parts of the schedule, all under one relation; rates, multipliers and caps may differ.
        delta: 1e-10 to 0.1, for the whole schedule.
    Returns:
        An epsilon that the whole schedule satisfies, at least 1e-9.
    Raises:
        ValueError: no run, mixed relations, or delta out of range.
        AccountingFailed: no bound up to 200 could be computed.
    Source: as engines.privacy.pld.price.
    """
    require_delta(delta)
    require_hope(runs, delta=delta)
    return price(runs, delta=delta, interval=CLAIM_INTERVAL)


def epsilon_by_round(run: GaussianRun, *, rounds: int, delta: float) -> tuple[float, ...]:
    """Price every prefix of a run that is cut into equal rounds.

    Args:
        run: the whole run; `run.steps` counts the steps of all rounds.
        rounds: number of rounds, a divisor of `run.steps`.
        delta: 1e-10 to 0.1; each value holds at this delta, not at a share of it.
    Returns:
        The cumulative PLD epsilon after each round, never falling; the last is `epsilon_pld` of the run.
        Over 64 rounds only 64 of them are computed, and each other one states the next computed price.
    Raises:
        ValueError: `rounds` does not divide the steps, or delta is out of range.
        AccountingFailed: no bound up to 200 could be computed.
    """
    if rounds < 1 or run.steps % rounds:
        raise ValueError("the rounds must divide the steps evenly")
    require_delta(delta)
    require_hope([run], delta=delta)
    per_round = run.steps // rounds
    computed = sorted({-(-rounds * part // _PRICED_ROUNDS) for part in range(1, _PRICED_ROUNDS + 1)})
    prices: list[float] = []
    for last in computed:
        prefix = dataclasses.replace(run, steps=last * per_round)
        priced = price([prefix], delta=delta, interval=CLAIM_INTERVAL)
        priced = max([priced, *prices[-1:]])  # numerical dust never makes a later round cheaper
        prices += [priced] * (last - len(prices))
    return tuple(prices)
