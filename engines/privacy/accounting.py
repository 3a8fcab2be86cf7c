"""The price of Gaussian noise: RDP and PLD behind one meaning of the noise multiplier.

Everywhere a noise multiplier is the noise's standard deviation on the SUM divided by the clip norm C. The
relation decides the sensitivity, C or 2C, and that is applied exactly once in either accountant. Every
number is an upper bound; what cannot be computed is refused, never priced at zero. No clock, no I/O.
"""

import dataclasses
import importlib.metadata
import math
from collections.abc import Callable, Sequence

from engines.privacy.loss_library import (
    AccountingFailed,
    Relation,
    loss_of_step,
    neighbouring,
    watched_library,
)
from engines.privacy.search import smallest_that_holds

__all__ = [
    "ACCOUNTANT",
    "CLAIM_INTERVAL",
    "LARGEST_EPSILON",
    "SMALLEST_EPSILON",
    "AccountingFailed",
    "GaussianRun",
    "ImpossiblePlan",
    "Relation",
    "calibrate_noise_multiplier",
    "epsilon_by_round",
    "epsilon_pld",
    "epsilon_rdp",
    "rdp_at_order",
    "renyi_ceiling",
]

ACCOUNTANT = f"dp-accounting {importlib.metadata.version('dp-accounting')} PLD"
"""Name and version of what computes claims; stands beside every epsilon."""

CLAIM_INTERVAL = 1e-4
"""Width of the privacy-loss grid for every number that leaves this module."""

LARGEST_EPSILON = 200.0
SMALLEST_EPSILON = 1e-9
_SMALLEST_DELTA, _LARGEST_DELTA = 1e-10, 0.1  # below, float64 transforms are no longer clearly an upper bound
_LARGEST_STEPS = 10_000_000
_SAMPLER_RESERVE = 2.0**-20
"""Share of delta kept back for the noise sampler's distance from the ideal: docs/privacy-proof.md."""
_PRICED_ROUNDS = 64
_SMALLEST_CALIBRATED, _LARGEST_CALIBRATED = 500, 10_000_000  # in steps of 0.0001


class ImpossiblePlan(Exception):
    """No amount of noise makes this plan reach its target; the text says what could."""


class _Hopeless(AccountingFailed):
    """Epsilon is over the largest that is ever claimed."""


@dataclasses.dataclass(frozen=True, kw_only=True)
class GaussianRun:
    """`steps` releases of a Poisson-sampled, clipped sum with Gaussian noise."""

    noise_multiplier: float
    """Standard deviation of the noise on the sum, divided by the clip norm C."""
    sampling_rate: float
    """Probability q that a record takes part in a step, 0 < q <= 1."""
    steps: int
    relation: Relation

    def __post_init__(self) -> None:
        if not 1e-3 <= self.noise_multiplier <= 1e6:  # false for NaN, as below
            raise ValueError("the noise multiplier must lie between 0.001 and 1,000,000")
        if not 1e-9 <= self.sampling_rate <= 1.0:
            raise ValueError("the sampling rate must lie between 1e-9 and 1")
        if not 1 <= self.steps <= _LARGEST_STEPS:
            raise ValueError("the number of steps must lie between 1 and 10,000,000")


def epsilon_pld(runs: Sequence[GaussianRun], *, delta: float) -> float:
    """Price a schedule that is fixed before it starts, by privacy-loss distributions.

    Args:
        runs: the parts of the schedule, all under one relation; rates and multipliers may differ.
        delta: 1e-10 to 0.1, for the whole schedule.
    Returns:
        An epsilon that the whole schedule satisfies, at least 1e-9.
    Raises:
        ValueError: no run, mixed relations, or delta out of range.
        AccountingFailed: no bound up to 200 could be computed.
    Source: connect-the-dots, Doroshenko et al. 2022, arXiv:2207.04380, pessimistic estimate.
    """
    _require_delta(delta)
    _require_hope(runs, delta=delta)
    return _price(_merge(runs), relation=_one_relation(runs), delta=delta, interval=CLAIM_INTERVAL)


def calibrate_noise_multiplier(
    *, epsilon: float, delta: float, sampling_rate: float, steps: int, relation: Relation
) -> float:
    """Find the least noise that keeps a fixed schedule within (epsilon, delta).

    Args:
        epsilon: target, above 0 and at most 200.
        delta: 1e-10 to 0.1.
        sampling_rate: Poisson rate q of every step, 1e-9 to 1.
        steps: number of steps, 1 to 10,000,000.
        relation: neighbouring relation of the claim.
    Returns:
        The smallest multiple of 0.0001, from 0.05 on, whose recomputed `epsilon_pld` is at most `epsilon`.
    Raises:
        ValueError: an argument is out of range.
        ImpossiblePlan: no multiplier up to 1,000 reaches the target.
        AccountingFailed: the accountant failed in a way that more noise does not explain.
    """
    _require_epsilon(epsilon)
    _require_delta(delta)

    def within(interval: float) -> Callable[[int], bool]:
        return lambda noise: _keeps(
            _run_with(noise, sampling_rate=sampling_rate, steps=steps, relation=relation),
            epsilon=epsilon,
            delta=delta,
            interval=interval,
        )

    limits = {"low": _SMALLEST_CALIBRATED, "high": _LARGEST_CALIBRATED}
    start, stride = 10_000, 1_000
    if epsilon >= 0.5:  # the wide grid is close enough to begin with, and ten times faster
        rough = smallest_that_holds(within(10 * CLAIM_INTERVAL), start=start, step=stride, **limits)
        start, stride = rough or _LARGEST_CALIBRATED, 1
    found = smallest_that_holds(within(CLAIM_INTERVAL), start=start, step=stride, **limits)
    if found is None:
        raise ImpossiblePlan("no noise up to 1,000 times the clip norm reaches this epsilon: fewer steps")
    return found / 10_000.0


def _run_with(ten_thousandths: int, *, sampling_rate: float, steps: int, relation: Relation) -> GaussianRun:
    return GaussianRun(
        noise_multiplier=ten_thousandths / 10_000.0,
        sampling_rate=sampling_rate,
        steps=steps,
        relation=relation,
    )


def _keeps(run: GaussianRun, *, epsilon: float, delta: float, interval: float) -> bool:
    """Say whether a run stays within its target, priced on a grid of this width."""
    try:
        _require_hope([run], delta=delta)
    except _Hopeless:
        return False
    return _price(_merge([run]), relation=run.relation, delta=delta, interval=interval) <= epsilon


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
    _require_delta(delta)
    _require_hope([run], delta=delta)
    per_round = run.steps // rounds
    computed = sorted({-(-rounds * part // _PRICED_ROUNDS) for part in range(1, _PRICED_ROUNDS + 1)})
    prices: list[float] = []
    for last in computed:
        parts = {(run.noise_multiplier, run.sampling_rate): last * per_round}
        price = _price(parts, relation=run.relation, delta=delta, interval=CLAIM_INTERVAL)
        price = max([price, *prices[-1:]])  # numerical dust never makes a later round cheaper
        prices += [price] * (last - len(prices))
    return tuple(prices)


def epsilon_rdp(runs: Sequence[GaussianRun], *, delta: float) -> float:
    """Price a schedule by Renyi divergences over the library's default orders.

    Orders at which a fractional series does not converge are left out: fewer orders can only raise the
    minimum, so the bound stays valid and becomes looser.

    Raises:
        ValueError: no run, mixed relations, or delta out of range.
        AccountingFailed: as `rdp_at_order`, or no order converges.
    Source: Mironov 2017, arXiv:1702.07476; Mironov et al. 2019, arXiv:1908.10530; conversion of Canonne
        et al. 2020, arXiv:2004.00010, Proposition 12.
    """
    _one_relation(runs)
    _require_delta(delta)
    return _trusted(_rdp_price(runs, delta=delta))


def rdp_at_order(runs: Sequence[GaussianRun], *, order: float) -> float:
    """Return the Renyi divergence of `runs` at one order: what an account of kind `renyi` is charged.

    Args:
        runs: the parts of the schedule, all under one relation.
        order: Renyi order, 1 < order <= 10,000.
    Returns:
        An upper bound on the divergence of that order, plus what the noise sampler's distance from the
        ideal costs there (below 1e-6 / (order - 1)).
    Raises:
        ValueError: no run, mixed relations, or the order is out of range.
        AccountingFailed: the series does not converge at this order (an integer order always does), or
            the relation is replace-one with a sampling rate below 1, for which no bound is known here.
    Source: Mironov et al. 2019, arXiv:1908.10530, section 3.3.
    """
    if not 1.0 < order <= 10_000.0:
        raise ValueError("the Renyi order must be above 1 and at most 10,000")
    _one_relation(runs)
    with watched_library():
        value = _divergences(runs, [order])[0]
    if not 0.0 < value < math.inf:
        raise AccountingFailed(f"the Renyi divergence of order {order} could not be computed")
    return value - math.log1p(-_SAMPLER_RESERVE) / (order - 1.0)


def renyi_ceiling(*, epsilon: float, delta: float, order: float) -> float:
    """Return the RDP that an account of (epsilon, delta) may spend at `order`.

    Raises:
        ValueError: an argument is out of range, or the order leaves nothing to spend.
    Source: the conversion of Canonne et al. 2020, arXiv:2004.00010, solved for the divergence.
    """
    _require_epsilon(epsilon)
    _require_delta(delta)
    if not 1.0 < order <= 10_000.0:
        raise ValueError("the Renyi order must be above 1 and at most 10,000")
    ceiling = epsilon - math.log1p(-1.0 / order) + math.log(delta * order) / (order - 1.0)
    if ceiling <= 0.0:
        raise ValueError("this order leaves nothing to spend: choose a higher one")
    return ceiling


def _rdp_price(runs: Sequence[GaussianRun], *, delta: float) -> float:
    """Return the RDP epsilon, infinity where no order converges."""
    with watched_library():
        from dp_accounting.rdp import compute_epsilon  # noqa: PLC0415  (1.2 s to import)
        from dp_accounting.rdp.rdp_privacy_accountant import DEFAULT_RDP_ORDERS  # noqa: PLC0415

        orders = [float(order) for order in DEFAULT_RDP_ORDERS]
        curve = zip(orders, _divergences(runs, orders), strict=True)
        converged = [(order, value) for order, value in curve if value < math.inf]
        if not converged:
            return math.inf
        kept, values = zip(*converged, strict=True)
        return float(compute_epsilon(kept, values, _usable(delta))[0])


def _divergences(runs: Sequence[GaussianRun], orders: list[float]) -> list[float]:
    """Compose `runs` at each order; an order that does not converge is infinite."""
    import dp_accounting  # noqa: PLC0415  (1.2 s to import)

    relation = _one_relation(runs)
    accountant = dp_accounting.rdp.RdpAccountant(orders, neighbouring(relation))
    for (multiplier, rate), steps in _merge(runs).items():
        if relation is Relation.REPLACE_ONE and rate < 1.0:
            raise AccountingFailed("no RDP bound for replace-one with sampling; price it by PLD")
        # RdpAccountant wants noise over the relation's sensitivity; it does not double it by itself.
        effective = multiplier / 2.0 if relation is Relation.REPLACE_ONE else multiplier
        event = dp_accounting.GaussianDpEvent(effective)
        if rate < 1.0:
            event = dp_accounting.PoissonSampledDpEvent(rate, event)
        accountant.compose(event, steps)
    # The library has no public way to read the curve; a test against the closed form guards this access.
    values = [float(value) for value in accountant._rdp]
    if any(math.isnan(value) or value < 0.0 for value in values):
        raise AccountingFailed("the Renyi accountant returned a value that is no divergence")
    return values


def _price(
    parts: dict[tuple[float, float], int], *, relation: Relation, delta: float, interval: float
) -> float:
    with watched_library():
        total = None
        for (multiplier, rate), steps in parts.items():
            # n Gaussian releases are one with the deviation divided by sqrt(n); with sampling they are not.
            if rate == 1.0:
                part = loss_of_step(multiplier / math.sqrt(steps), rate, relation, interval)
            else:
                part = loss_of_step(multiplier, rate, relation, interval).self_compose(steps)
            total = part if total is None else total.compose(part)
        if total is None:
            raise AccountingFailed("there is nothing to price")
        epsilon = float(total.get_epsilon_for_delta(_usable(delta)))
    return _trusted(epsilon)


def _require_hope(runs: Sequence[GaussianRun], *, delta: float) -> None:
    """Refuse what would take minutes and gigabytes only to show an epsilon over 200."""
    relation = _one_relation(runs)
    sensitivity = 2.0 if relation is Relation.REPLACE_ONE else 1.0
    mean = sensitivity * math.sqrt(sum(run.steps / run.noise_multiplier**2 for run in runs))
    if mean * mean / 2.0 + 8.0 * mean <= LARGEST_EPSILON:  # even without sampling
        return
    halved = [
        dataclasses.replace(
            run,
            noise_multiplier=max(run.noise_multiplier / sensitivity, 1e-3),
            relation=Relation.ZERO_OUT,
        )
        for run in runs
    ]
    if _rdp_price(halved, delta=delta) > LARGEST_EPSILON:
        raise _Hopeless("epsilon is over 200, which claims nothing: more noise or fewer steps")


def _merge(runs: Sequence[GaussianRun]) -> dict[tuple[float, float], int]:
    merged: dict[tuple[float, float], int] = {}
    for run in runs:
        key = (run.noise_multiplier, run.sampling_rate)
        merged[key] = merged.get(key, 0) + run.steps
    return merged


def _one_relation(runs: Sequence[GaussianRun]) -> Relation:
    relations = {run.relation for run in runs}
    if len(relations) != 1:
        raise ValueError("a price needs at least one run, and all under one relation")
    return relations.pop()


def _usable(delta: float) -> float:
    return delta * (1.0 - _SAMPLER_RESERVE)


def _require_delta(delta: float) -> None:
    if not _SMALLEST_DELTA <= delta <= _LARGEST_DELTA:
        raise ValueError("delta must lie between 1e-10 and 0.1")


def _require_epsilon(epsilon: float) -> None:
    if not SMALLEST_EPSILON <= epsilon <= LARGEST_EPSILON:
        raise ValueError("epsilon must be above 0 and at most 200")


def _trusted(epsilon: float) -> float:
    """Pass on a bound that is a number; a bound of zero becomes the smallest claim."""
    if not 0.0 <= epsilon < math.inf:
        raise AccountingFailed("the accountant found no epsilon for this plan")
    if epsilon > LARGEST_EPSILON:
        raise _Hopeless("epsilon is over 200, which claims nothing: more noise or fewer steps")
    return max(epsilon, SMALLEST_EPSILON)
