"""Which robust rule is allowed under which trust, before any update is seen."""

from typing import Literal

from engines.aggregation.rules import RULES, Mixing, SettingMissing
from engines.privacy.sensitivity import NoUsefulBound, require_useful_bound

Trust = Literal["local", "central", "distributed", "none"]


class OnlyTheSum(ValueError):
    """The server sees nothing but the sum of the updates, so no rule can look at single ones."""


def require_allowed(rule: str, *, mixing: Mixing, trust: Trust) -> None:
    """Refuse a rule that its trust does not allow.

    Under `local` updates are private already, under `none` nothing is promised: everything is allowed.
    Under `central` the noise must cover what one client can move, and only some rules have a useful bound.
    Under `distributed` the server sees the sum alone.

    Args:
        rule: a name in the table.
        mixing: what is done before it.
        trust: who is trusted with un-noised updates.
    Raises:
        SettingMissing: there is no such rule.
        NoUsefulBound: central noise cannot usefully cover it; the text names what it can.
        OnlyTheSum: the rule looks at single updates, which are masked.
    """
    if rule not in RULES:
        raise SettingMissing(f"{rule} is no rule; there are {', '.join(sorted(RULES))}")
    if trust == "distributed" and (rule, mixing) != ("mean", Mixing.NONE):
        raise OnlyTheSum(f"{rule}: under secure aggregation there is only the sum; use the mean")
    if trust == "central" and mixing not in RULES[rule].central:
        require_useful_bound(rule)
        raise NoUsefulBound(f"{rule} after {mixing} has no proved bound: use the trimmed mean after it")
