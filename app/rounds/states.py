"""The life of a round, as data."""

from __future__ import annotations

from enum import StrEnum


class RoundState(StrEnum):
    """Where a round is."""

    PLANNED = "planned"  # exists, not open to updates
    OPEN = "open"  # takes updates of its cohort
    SEALED = "sealed"  # its set of updates is fixed for ever
    AGGREGATING = "aggregating"  # a worker computes
    VALIDATING = "validating"  # a candidate adapter exists and is being checked
    PUBLISHED = "published"  # its adapter is released
    ABORTED = "aborted"  # over without an adapter; the round says why


EDGES: frozenset[tuple[str, RoundState]] = frozenset(
    {
        ("new", RoundState.PLANNED),
        (RoundState.PLANNED, RoundState.OPEN),
        (RoundState.OPEN, RoundState.SEALED),
        (RoundState.SEALED, RoundState.AGGREGATING),
        (RoundState.AGGREGATING, RoundState.VALIDATING),
        (RoundState.VALIDATING, RoundState.PUBLISHED),
        (RoundState.PLANNED, RoundState.ABORTED),
        (RoundState.OPEN, RoundState.ABORTED),
        (RoundState.SEALED, RoundState.ABORTED),
        (RoundState.AGGREGATING, RoundState.ABORTED),
        (RoundState.VALIDATING, RoundState.ABORTED),
    }
)

FINAL = frozenset({RoundState.PUBLISHED, RoundState.ABORTED})


def sources_of(to: RoundState) -> list[RoundState]:
    """The states from which a round may become `to`."""
    return sorted(RoundState(src) for src, dst in EDGES if dst is to and src != "new")


class Step(StrEnum):
    """What a client's updates are worth after what was found odd about them."""

    OBSERVE = "observe"  # counts like everybody
    DISCOUNT = "discount"  # counts half where the rule is the mean; ends when suspicion is gone
    QUARANTINE = "quarantine"  # is received and judged, and counts nothing
    SUSPEND = "suspend"  # is not invited


LADDER: tuple[Step, ...] = tuple(Step)
"""From the bottom up."""
