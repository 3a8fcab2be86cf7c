"""The ledger's arithmetic: integers only, costs rounded up, ceilings rounded down.

A float stands for the shortest decimal that reads back as it (0.1 is one tenth, as it was written), and
that decimal is scaled exactly; no float is ever multiplied. May not touch the database.
"""

from __future__ import annotations

import math
from decimal import ROUND_CEILING, ROUND_FLOOR, Context, Decimal, localcontext

from app.core.errors import Invalid
from app.core.i18n import _

NANO = 9
"""Decimal places of an amount: nano-epsilon in a basic account, nano-RDP in a renyi one."""
DELTA_PLACES = 18
"""Decimal places of a delta."""
LEAST_RENYI_CHARGE = 1e-6
"""Times 1/(order - 1): every price at an order holds that much for the noise sampler (engines.privacy)."""
DELTA_ONE = 10**DELTA_PLACES
MAX_AMOUNT = 2**63 - 1
_WIDE = Context(prec=60)
_MARGIN = Decimal("1e-30")
"""Far above the rounding of 60 digits, far below one unit: what keeps a logarithm on the safe side."""


class AmountInvalid(Invalid):
    """A privacy cost or ceiling that is no finite number in range."""

    code, title = "amount_invalid", _("Not a usable privacy amount")
    meaning = _("A privacy parameter is not a finite number of a size that the ledger can hold.")
    remedy = _("Give epsilon above 0 and below a million, and delta between 0 and 1.")


class CeilingNotPositive(Invalid):
    """A Renyi account whose order leaves nothing to spend."""

    code, title = "ceiling_not_positive", _("This order leaves no budget")
    meaning = _("At the order that was asked for, the epsilon and delta translate into no divergence at all.")
    remedy = _("Choose a higher order, or grant more epsilon.")


def _exact(value: float) -> Decimal:
    if not math.isfinite(value) or value < 0:
        raise AmountInvalid(_("a privacy amount must be a finite number, not negative"))
    return Decimal(repr(float(value)))


def _scaled(value: Decimal, places: int, rounding: str) -> int:
    with localcontext(_WIDE):
        amount = int(value.scaleb(places).to_integral_value(rounding=rounding))
    if amount > MAX_AMOUNT:
        raise AmountInvalid(_("a privacy amount is too large for the ledger"))
    return amount


def cost(value: float) -> int:
    """Nano units of an epsilon or divergence that is charged: rounded up."""
    return _scaled(_exact(value), NANO, ROUND_CEILING)


def ceiling(value: float) -> int:
    """Nano units of an epsilon or divergence that is granted: rounded down."""
    return _scaled(_exact(value), NANO, ROUND_FLOOR)


def delta_cost(value: float) -> int:
    """Units of 1e-18 of a delta that is charged: rounded up."""
    return _scaled(_delta(value), DELTA_PLACES, ROUND_CEILING)


def delta_ceiling(value: float) -> int:
    """Units of 1e-18 of a delta that is granted: rounded down."""
    return _scaled(_delta(value), DELTA_PLACES, ROUND_FLOOR)


def _delta(value: float) -> Decimal:
    exact = _exact(value)
    if exact >= 1:
        raise AmountInvalid(_("delta must be below 1"))
    return exact


def _conversion(order: float, delta: float) -> Decimal:
    """log1p(-1/a) - log(delta a)/(a - 1): what (epsilon, delta) costs above the divergence at order a."""
    if not math.isfinite(order) or order <= 1:
        raise AmountInvalid(_("the order of a Renyi account must be above 1"))
    if delta <= 0:
        raise AmountInvalid(_("the delta of a Renyi account must be above 0"))
    a, d = _exact(order), _delta(delta)
    return (1 - 1 / a).ln() - (d * a).ln() / (a - 1)


def renyi_ceiling(epsilon: float, delta: float, *, order: float) -> int:
    """The divergence at `order` that fits into (epsilon, delta), in nano-RDP, rounded down.

    Raises:
        CeilingNotPositive: nothing fits.
    Source: Canonne, Kamath and Steinke 2020, arXiv:2004.00010, proposition 12, solved for the divergence.
    """
    with localcontext(_WIDE):
        room = _exact(epsilon) - _conversion(order, delta) - _MARGIN
    if room <= 0 or (amount := _scaled(room, NANO, ROUND_FLOOR)) == 0:
        raise CeilingNotPositive(
            _("order {order} leaves no budget within epsilon {epsilon} and delta {delta}"),
            order=order,
            epsilon=epsilon,
            delta=delta,
        )
    return amount


def renyi_epsilon(amount: int, delta: float, *, order: float) -> Decimal:
    """The epsilon at `delta` that a divergence of `amount` nano-RDP implies, rounded up to nano; 0 for 0."""
    if amount == 0:
        return Decimal(0)
    with localcontext(_WIDE):
        epsilon = Decimal(amount).scaleb(-NANO) + _conversion(order, delta) + _MARGIN
        return max(Decimal(0), epsilon).quantize(Decimal("1e-9"), rounding=ROUND_CEILING)


def shown_spent(amount: int | Decimal, places: int = 4) -> float:
    """What is gone, for a reader: nano units (or a decimal value) rounded up at `places`."""
    return _shown(amount, places, ROUND_CEILING)


def shown_left(amount: int | Decimal, places: int = 4) -> float:
    """What is left, for a reader: rounded down at `places`."""
    return _shown(amount, places, ROUND_FLOOR)


def _shown(amount: int | Decimal, places: int, rounding: str) -> float:
    value = Decimal(amount).scaleb(-NANO) if isinstance(amount, int) else amount
    return float(value.quantize(Decimal(1).scaleb(-places), rounding=rounding))


def shown_delta(amount: int) -> float:
    """A delta in units of 1e-18 as the number that it is."""
    return float(Decimal(amount).scaleb(-DELTA_PLACES))


def shares(total: int, weights: list[int]) -> list[int]:
    """Split `total` into one part per cumulative weight: each rounded up, the last takes what is left.

    `weights` are cumulative (non-decreasing); part k is the step from k - 1 to k, so that the sum of the
    first k parts is at least the cost of k rounds, and the sum of all of them is `total` exactly.
    """
    parts: list[int] = []
    paid = 0
    for number, reached in enumerate(weights, start=1):
        target = total if number == len(weights) else min(total, max(paid, reached))
        parts.append(target - paid)
        paid = target
    return parts
