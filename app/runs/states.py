"""The life of a run, as data."""

from __future__ import annotations

from enum import StrEnum


class RunState(StrEnum):
    """Where a run is."""

    DRAFT = "draft"  # its manifest may still be changed
    PRICING = "pricing"  # the price job computes noise and cost
    PRICED = "priced"  # may be started, at the price shown
    REFUSED = "refused"  # the plan is impossible or over budget; the run says why
    RUNNING = "running"  # rounds are open or under way
    PAUSED = "paused"  # no new round opens until it is resumed
    FINISHED = "finished"  # every round is over
    ABORTED = "aborted"  # stopped for good


EDGES: frozenset[tuple[str, RunState]] = frozenset(
    {
        ("new", RunState.DRAFT),
        (RunState.DRAFT, RunState.PRICING),
        (RunState.PRICING, RunState.PRICED),
        (RunState.PRICING, RunState.REFUSED),
        (RunState.PRICED, RunState.RUNNING),
        (RunState.PRICED, RunState.REFUSED),
        (RunState.RUNNING, RunState.PAUSED),
        (RunState.PAUSED, RunState.RUNNING),
        (RunState.RUNNING, RunState.FINISHED),
        (RunState.PAUSED, RunState.FINISHED),
        (RunState.DRAFT, RunState.ABORTED),
        (RunState.PRICED, RunState.ABORTED),
        (RunState.RUNNING, RunState.ABORTED),
        (RunState.PAUSED, RunState.ABORTED),
    }
)


def sources_of(to: RunState) -> list[RunState]:
    """The states from which a run may become `to`."""
    return sorted(RunState(src) for src, dst in EDGES if dst is to and src != "new")
