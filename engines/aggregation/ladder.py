"""From odd rounds to consequences: observe, discount, quarantine, suspend; a pure function of the history.

Suspicion is a sum of log-likelihood ratios that never falls below zero (Page's test): an odd round adds, an
ordinary one takes off, so that only what repeats lifts a client up. An honest client that is odd by chance
at the assumed rate waits more than e^h rounds on average for a step of height h. Only the first step
comes back by itself; an administrator takes back any, with a reason, and starts the count anew.

Source: Page 1954, Biometrika 41; Lorden 1971, Ann. Math. Stat. 42 (the waiting time).
"""

import dataclasses
import enum
import math
from collections.abc import Sequence
from typing import Literal

Trust = Literal["local", "central", "distributed", "none"]


class Step(enum.IntEnum):
    """What a client's updates are worth."""

    OBSERVE = 0  # counts like everybody
    DISCOUNT = 1  # counts half; ends when suspicion is gone
    QUARANTINE = 2  # is received and judged, and counts nothing
    SUSPEND = 3  # is not invited


class Origin(enum.StrEnum):
    """Where a finding comes from, which decides whether a `central` run may act on it."""

    UPDATES = "updates"  # a comparison of un-noised updates with each other
    OWN_TEST = "own_test"  # a data-independent test of that client's own update
    NOISED_OUTPUT = "noised_output"  # a release, or what follows from it
    CHARGED = "charged"  # a release that was charged for this purpose
    NOT_DATA = "not_data"  # a signature, a deadline, a declaration


HEIGHTS = {Step.DISCOUNT: 3.0, Step.QUARANTINE: 6.0, Step.SUSPEND: 12.0}
"""Suspicion from which a step is taken; e^12 is 160,000 honest rounds."""
WORTH = {Step.OBSERVE: 1.0, Step.DISCOUNT: 0.5, Step.QUARANTINE: 0.0, Step.SUSPEND: 0.0}


@dataclasses.dataclass(frozen=True, kw_only=True)
class Observation:
    """One judged round of one client."""

    odd: bool
    origin: Origin = Origin.UPDATES
    honest_rate: float = 0.02
    """How often an honest client is found odd; of a whole group that is judged at once, its rate."""
    hostile_rate: float = 0.5
    """How often a hostile one is; over the honest rate."""

    def __post_init__(self) -> None:
        if not 0.0 < self.honest_rate < self.hostile_rate < 1.0:  # also false for NaN
            raise ValueError("a hostile client is found odd more often than an honest one, neither always")

    @property
    def evidence(self) -> float:
        """Log-likelihood ratio of hostile to honest, in nats."""
        if self.odd:
            return math.log(self.hostile_rate / self.honest_rate)
        return math.log((1.0 - self.hostile_rate) / (1.0 - self.honest_rate))


@dataclasses.dataclass(frozen=True)
class Reversal:
    """An administrator's decision to take a client back."""

    to: Step
    reason: str

    def __post_init__(self) -> None:
        if not self.reason.strip():
            raise ValueError("taking a step back needs a reason")


@dataclasses.dataclass(frozen=True)
class Standing:
    """Where a client stands."""

    step: Step
    suspicion: float
    """Nats, at least 0."""

    @property
    def weight(self) -> float:
        """What its update is multiplied with where the rule takes weights."""
        return WORTH[self.step]


START = Standing(Step.OBSERVE, 0.0)
"""Where everybody begins."""


def acts_on(trust: Trust, origin: Origin) -> bool:
    """Say whether a finding may have consequences under a trust.

    Under `central` an exclusion that looks at un-noised updates would be an output of its own; under
    `distributed` nobody can have made such a comparison.
    """
    return origin is not Origin.UPDATES or trust in ("local", "none")


def climb(history: Sequence[Observation | Reversal], *, trust: Trust) -> Standing:
    """Return where a client stands after its history, one step up a round at most.

    Args:
        history: judged rounds and reversals of one client, in their order.
        trust: of the runs in which it was judged; findings that may have no consequence there count nothing.
    """
    standing = START
    for event in history:
        standing = follow(standing, event, trust=trust)
    return standing


def follow(standing: Standing, event: Observation | Reversal, *, trust: Trust) -> Standing:
    """Return where a client stands after one more event; arguments as `climb`."""
    if isinstance(event, Reversal):
        return Standing(min(event.to, standing.step), 0.0)
    if not acts_on(trust, event.origin):
        return standing
    suspicion = max(standing.suspicion + event.evidence, 0.0)
    step = standing.step
    if event.odd and step is not Step.SUSPEND and suspicion >= HEIGHTS[Step(step + 1)]:
        step = Step(step + 1)
    elif step is Step.DISCOUNT and suspicion == 0.0:
        step = Step.OBSERVE
    return Standing(step, suspicion)
