"""Renyi divergences of Gaussian schedules: what accounts of kind `renyi` are charged, and epsilon by RDP.

Sums at one fixed order stay valid however later parameters are chosen. Claims about schedules that are
fixed beforehand are priced tighter by engines.privacy.accounting.epsilon_pld.
"""

import math
from collections.abc import Sequence

from engines.privacy.bounds import (
    SAMPLER_RESERVE,
    merge,
    one_relation,
    require_delta,
    require_epsilon,
    trusted,
)
from engines.privacy.gaussian_run import GaussianRun
from engines.privacy.loss_library import AccountingFailed, Relation, neighbouring, watched_library


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
    one_relation(runs)
    require_delta(delta)
    return trusted(rdp_price(runs, delta=delta))


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
        AccountingFailed: the series does not converge at this order (an integer order always does), or no
            bound is known here: replace-one with a sampling rate below 1, and cohorts that may be cut.
    Source: Mironov et al. 2019, arXiv:1908.10530, section 3.3.
    """
    if not 1.0 < order <= 10_000.0:
        raise ValueError("the Renyi order must be above 1 and at most 10,000")
    one_relation(runs)
    with watched_library():
        value = _divergences(runs, [order])[0]
    if not 0.0 < value < math.inf:
        raise AccountingFailed(f"the Renyi divergence of order {order} could not be computed")
    return value - math.log1p(-SAMPLER_RESERVE) / (order - 1.0)


def renyi_ceiling(*, epsilon: float, delta: float, order: float) -> float:
    """Return the RDP that an account of (epsilon, delta) may spend at `order`.

    Raises:
        ValueError: an argument is out of range, or the order leaves nothing to spend.
    Source: the conversion of Canonne et al. 2020, arXiv:2004.00010, solved for the divergence.
    """
    require_epsilon(epsilon)
    require_delta(delta)
    if not 1.0 < order <= 10_000.0:
        raise ValueError("the Renyi order must be above 1 and at most 10,000")
    ceiling = epsilon - math.log1p(-1.0 / order) + math.log(delta * order) / (order - 1.0)
    if ceiling <= 0.0:
        raise ValueError("this order leaves nothing to spend: choose a higher one")
    return ceiling


def rdp_price(runs: Sequence[GaussianRun], *, delta: float) -> float:
    """Return the RDP epsilon, infinity where no order converges; AccountingFailed as `rdp_at_order`."""
    with watched_library():
        from dp_accounting.rdp import compute_epsilon  # noqa: PLC0415  (1.2 s to import)
        from dp_accounting.rdp.rdp_privacy_accountant import DEFAULT_RDP_ORDERS  # noqa: PLC0415

        orders = [float(order) for order in DEFAULT_RDP_ORDERS]
        curve = zip(orders, _divergences(runs, orders), strict=True)
        converged = [(order, value) for order, value in curve if value < math.inf]
        if not converged:
            return math.inf
        kept, values = zip(*converged, strict=True)
        return float(compute_epsilon(kept, values, delta * (1.0 - SAMPLER_RESERVE))[0])


def _divergences(runs: Sequence[GaussianRun], orders: list[float]) -> list[float]:
    """Compose `runs` at each order; an order that does not converge is infinite."""
    import dp_accounting  # noqa: PLC0415  (1.2 s to import)

    relation = one_relation(runs)
    accountant = dp_accounting.rdp.RdpAccountant(orders, neighbouring(relation))
    for (multiplier, rate, cut), steps in merge(runs).items():
        if cut is not None:
            raise AccountingFailed("no RDP bound for a cohort that may be cut; price it by PLD")
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
