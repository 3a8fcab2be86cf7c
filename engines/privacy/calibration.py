"""Of noise, steps and epsilon the one that a plan leaves open; given all three, whether they agree.

What is found is always priced again as it will be stored, and never over the target. Prices come from
engines.privacy.pld.
"""

import dataclasses

from engines.privacy.bounds import require_delta, require_epsilon
from engines.privacy.gaussian_run import LARGEST_STEPS, CappedPoisson, GaussianRun
from engines.privacy.loss_library import Relation
from engines.privacy.pld import CLAIM_INTERVAL, WIDE_UP_TO, keeps, price, require_hope, uncut
from engines.privacy.renyi import rdp_price
from engines.privacy.search import smallest_that_holds

_SMALLEST_CALIBRATED, _LARGEST_CALIBRATED = 500, 10_000_000  # in steps of 0.0001
_WIDE_INTERVALS = (100 * CLAIM_INTERVAL, 10 * CLAIM_INTERVAL)
_COARSE_FROM = 0.5
"""From this epsilon on, wider grids are close enough to begin with; they are as many times faster."""


class ImpossiblePlan(Exception):
    """The plan does not reach its target; the text says what could."""


@dataclasses.dataclass(frozen=True, kw_only=True)
class CompletePlan:
    """A schedule, and the epsilon that it was priced at."""

    run: GaussianRun
    epsilon: float
    """By PLD, at most the plan's target where it names one."""


def complete_plan(
    *,
    noise_multiplier: float | None,
    steps: int | None,
    epsilon: float | None,
    delta: float,
    sampling_rate: float,
    relation: Relation,
    capped: CappedPoisson | None = None,
) -> CompletePlan:
    """Compute the one of (noise, steps, epsilon) that is None; given all three, verify them.

    Args:
        noise_multiplier: standard deviation over C, or None for the least that reaches epsilon.
        steps: number of steps, or None for the most that epsilon affords.
        epsilon: target, or None for the price; `delta` is 1e-10 to 0.1.
        capped: the cut of a Poisson cohort, if there is one.
    Raises:
        ValueError: more than one is None, or an argument is out of range.
        ImpossiblePlan: no noise, or not one step, reaches epsilon; or all three are given and do not agree.
        AccountingFailed: the plan has no price that can be trusted.
    """
    if [noise_multiplier, steps, epsilon].count(None) > 1:
        raise ValueError("a plan leaves at most one of noise, steps and epsilon open")
    require_delta(delta)
    run = GaussianRun(
        noise_multiplier=1.0 if noise_multiplier is None else noise_multiplier,
        sampling_rate=sampling_rate,
        steps=1 if steps is None else steps,
        relation=relation,
        capped=capped,
    )
    if epsilon is not None:
        require_epsilon(epsilon)
        if noise_multiplier is None:
            run = _with_least_noise(run, epsilon=epsilon, delta=delta)
        elif steps is None:
            run = _with_most_steps(run, epsilon=epsilon, delta=delta)
    return _verified(run, epsilon=epsilon, delta=delta)


def _verified(run: GaussianRun, *, epsilon: float | None, delta: float) -> CompletePlan:
    """Price a run and hold it to its target, if it has one."""
    require_hope([run], delta=delta)
    reached = price([run], delta=delta, interval=CLAIM_INTERVAL)
    if epsilon is not None and reached > epsilon:
        raise ImpossiblePlan(f"this noise gives epsilon {reached:.4f}, which is over the target")
    return CompletePlan(run=run, epsilon=reached)


def calibrate_noise_multiplier(
    *,
    epsilon: float,
    delta: float,
    sampling_rate: float,
    steps: int,
    relation: Relation,
    capped: CappedPoisson | None = None,
) -> float:
    """Find the least noise that keeps a fixed schedule within (epsilon, delta).

    Args:
        epsilon: target, above 0 and at most 200.
        delta: 1e-10 to 0.1.
        sampling_rate: Poisson rate q of every step, 1e-9 to 1.
        steps: number of steps, 1 to 10,000,000.
        relation: neighbouring relation of the claim.
        capped: the cut of a Poisson cohort, if there is one.
    Returns:
        The smallest multiple of 0.0001, from 0.05 on, whose recomputed `epsilon_pld` is at most `epsilon`.
    Raises:
        ValueError: an argument is out of range.
        ImpossiblePlan: no multiplier up to 1,000 reaches the target.
        AccountingFailed: the accountant failed in a way that more noise does not explain.
    """
    require_epsilon(epsilon)
    require_delta(delta)
    plan = GaussianRun(
        noise_multiplier=1.0, sampling_rate=sampling_rate, steps=steps, relation=relation, capped=capped
    )
    return _with_least_noise(plan, epsilon=epsilon, delta=delta).noise_multiplier


def affordable_steps(
    *,
    epsilon: float,
    delta: float,
    noise_multiplier: float,
    sampling_rate: float,
    relation: Relation,
    capped: CappedPoisson | None = None,
) -> int:
    """Find the largest number of steps that stays within (epsilon, delta); 0 if not even one does.

    Args:
        epsilon: target, above 0 and at most 200.
        delta: 1e-10 to 0.1.
        noise_multiplier: standard deviation of the noise on the sum over C.
        sampling_rate: Poisson rate q of every step, 1e-9 to 1.
        relation: neighbouring relation of the claim.
        capped: the cut of a Poisson cohort, if there is one.
    Returns:
        A number of steps whose `epsilon_pld` is at most `epsilon` while that of one more is not, or the
        largest number that can be priced, 10,000,000.
    Raises:
        ValueError: an argument is out of range.
        AccountingFailed: the accountant failed in a way that fewer steps do not explain.
    """
    require_epsilon(epsilon)
    require_delta(delta)
    plan = GaussianRun(
        noise_multiplier=noise_multiplier,
        sampling_rate=sampling_rate,
        steps=1,
        relation=relation,
        capped=capped,
    )
    try:
        return _with_most_steps(plan, epsilon=epsilon, delta=delta).steps
    except ImpossiblePlan:
        return 0


def _with_least_noise(plan: GaussianRun, *, epsilon: float, delta: float) -> GaussianRun:
    def noised(ten_thousandths: int) -> GaussianRun:
        return dataclasses.replace(plan, noise_multiplier=ten_thousandths / 10_000.0)

    def within(noise: int) -> bool:
        return keeps(noised(noise), epsilon=epsilon, delta=delta, interval=CLAIM_INTERVAL)

    limits = {"low": _SMALLEST_CALIBRATED, "high": _LARGEST_CALIBRATED}
    start, stride = 10_000, 1_000
    for interval in _WIDE_INTERVALS:
        if epsilon >= _COARSE_FROM and plan.steps <= WIDE_UP_TO * CLAIM_INTERVAL / interval:

            def roughly(noise: int, interval: float = interval) -> bool:  # a sound cap costs next to nothing
                plain = dataclasses.replace(noised(noise), capped=None)
                return keeps(plain, epsilon=epsilon, delta=delta, interval=interval)

            rough = smallest_that_holds(roughly, start=start, step=stride, **limits)
            start, stride = rough or _LARGEST_CALIBRATED, 1
    found = smallest_that_holds(within, start=start, step=stride, **limits)
    if found is None:
        raise ImpossiblePlan("no noise up to 1,000 times the clip norm reaches this epsilon: fewer steps")
    return noised(found)


def _with_most_steps(plan: GaussianRun, *, epsilon: float, delta: float) -> GaussianRun:
    def after(steps: int) -> GaussianRun:
        return dataclasses.replace(plan, steps=steps)

    def too_many(steps: int) -> bool:
        return not keeps(after(steps), epsilon=epsilon, delta=delta, interval=CLAIM_INTERVAL)

    def too_many_by_rdp(steps: int) -> bool:  # where to begin; what is returned has been asked of the PLD
        return rdp_price(uncut([after(steps)]), delta=delta) > epsilon

    limits = {"low": 1, "high": LARGEST_STEPS}
    near = smallest_that_holds(too_many_by_rdp, start=1, step=1, **limits) or LARGEST_STEPS
    first = smallest_that_holds(too_many, start=near, step=max(1, near // 16), **limits)
    if first == 1:
        raise ImpossiblePlan("not even one step stays within this epsilon: more noise")
    return after(LARGEST_STEPS if first is None else first - 1)
