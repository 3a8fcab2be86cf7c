"""Privacy costs as whole numbers: nano-epsilon, and delta in units of 1e-18. Costs go up, ceilings down.

A float is taken as the decimal that a person wrote (its shortest form), so that a ceiling of 1e-5 admits
a cost of 1e-5.
"""

from __future__ import annotations

import math
from decimal import ROUND_CEILING, ROUND_FLOOR, Decimal

_NANO, _ATTO = 9, 18


def epsilon_cost(epsilon: float) -> int:
    """Nano-epsilon, rounded up. Raises ValueError unless finite and not negative."""
    return _scaled(epsilon, _NANO, ROUND_CEILING)


def epsilon_ceiling(epsilon: float) -> int:
    """Nano-epsilon, rounded down. Raises ValueError unless finite and not negative."""
    return _scaled(epsilon, _NANO, ROUND_FLOOR)


def delta_cost(delta: float) -> int:
    """Delta in 1e-18, rounded up. Raises ValueError unless finite and not negative."""
    return _scaled(delta, _ATTO, ROUND_CEILING)


def delta_ceiling(delta: float) -> int:
    """Delta in 1e-18, rounded down. Raises ValueError unless finite and not negative."""
    return _scaled(delta, _ATTO, ROUND_FLOOR)


def epsilon_text(nano: int, *, spent: bool) -> str:
    """Show nano-epsilon with three decimals: what is spent rounded up, what is left rounded down."""
    rounding = ROUND_CEILING if spent else ROUND_FLOOR
    return str(Decimal(nano).scaleb(-_NANO).quantize(Decimal("0.001"), rounding=rounding))


def delta_text(atto: int) -> str:
    """Show a delta exactly, in scientific form."""
    return f"{Decimal(atto).scaleb(-_ATTO).normalize():e}" if atto else "0"


def _scaled(value: float, digits: int, rounding: str) -> int:
    if not math.isfinite(value) or value < 0:
        raise ValueError("a privacy amount is a finite number that is not negative")
    exact = Decimal(repr(float(value))).scaleb(digits)
    return int(exact.to_integral_value(rounding=rounding))
