"""What several runs on one data set claim together: for which unit, under which relation, against whom.

Epsilons may be added only as losses of one pair of data sets, seen by one adversary. Pure; the proof is in
section 10 of docs/privacy-proof.md.
"""

from __future__ import annotations

from collections.abc import Collection, Iterable
from dataclasses import dataclass

FINENESS = ("example", "person", "client")
"""Units, the finest first."""
REPLACE_ONE, ZERO_OUT = "replace_one", "zero_out"
TRUSTS = ("local", "central")


@dataclass(frozen=True, slots=True, order=True)
class Terms:
    """What a run's epsilon is about."""

    unit: str
    relation: str

    def implies(self, other: Terms) -> bool:
        """Say whether a guarantee under these terms is one under `other`, at the same epsilon and delta.

        Under replace-one a contribution may become any other that the clip allows, so also zero, and also
        what it is without one record of it. Under zero-out it may become zero alone: a coarser unit's
        zero-out is two steps from what a change of one record makes of it, and implies nothing else.
        """
        if self == other:
            return True
        if self.relation != REPLACE_ONE or other.relation not in {REPLACE_ONE, ZERO_OUT}:
            return False
        if self.unit not in FINENESS or other.unit not in FINENESS:
            return False
        return FINENESS.index(self.unit) >= FINENESS.index(other.unit)


@dataclass(frozen=True, slots=True, order=True)
class Paid:
    """What an account's entry says of a run that it pays for; None where it says nothing."""

    unit: str | None
    relation: str | None
    trust: str | None
    secret_cohort: bool


@dataclass(frozen=True, slots=True)
class Common:
    """What all runs claim together: the strongest terms that every run's own imply, and the trusts."""

    terms: Terms
    trusts: tuple[str, ...]
    secret_cohort: bool
    """Whether the price of one of them rests on nobody learning who was drawn."""


def common_of(paid: Collection[Paid]) -> Common | None:
    """What these runs claim together, or None where there is no unit and relation that all of them cover."""
    terms = {Terms(one.unit, one.relation) for one in paid if one.unit and one.relation}
    trusts = {one.trust for one in paid if one.trust in TRUSTS}
    if not paid or any(not one.unit or not one.relation or one.trust not in trusts for one in paid):
        return None
    shared = strongest(terms)
    if shared is None:
        return None
    return Common(
        terms=shared,
        trusts=tuple(trust for trust in TRUSTS if trust in trusts),
        secret_cohort=any(one.secret_cohort for one in paid),
    )


def strongest(terms: Iterable[Terms]) -> Terms | None:
    """Return the terms that all of these imply, or None. Where there are any, they are one run's own."""
    own = set(terms)
    return next((one for one in own if all(other.implies(one) for other in own)), None)
