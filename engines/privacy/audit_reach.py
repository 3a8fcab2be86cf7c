"""Whether an audit could refute at all: what is claimed for the one sum that it attacks, and its reach.

An audit whose largest bound is not above that claim finds nothing however broken the code is.
"""

from engines.privacy.accounting import GaussianRun, Relation, epsilon_pld
from engines.privacy.audit_one_run import GuessPlan, largest_reachable_bound

_STEP = 10


def claim_of_one_sum(noise_multiplier: float, *, delta: float) -> float:
    """Price one noised sum at full participation under zero-out: what an audit of it is held against.

    Args:
        noise_multiplier: z, noise over clip norm.
        delta: of the claim.
    Raises:
        AccountingFailed: no accountant bounds it.
    """
    once = GaussianRun(
        noise_multiplier=noise_multiplier, sampling_rate=1.0, steps=1, relation=Relation.ZERO_OUT
    )
    return epsilon_pld([once], delta=delta)


def can_refute(canaries: int, *, claimed_epsilon: float, delta: float) -> bool:
    """Say whether so many canaries, all guessed right, would show the claim to be false."""
    return largest_reachable_bound(GuessPlan.standard(canaries), delta=delta) > claimed_epsilon


def canaries_that_can_refute(*, claimed_epsilon: float, delta: float, most: int) -> int | None:
    """Return the first multiple of ten, from 20 to `most`, with which an audit can refute; None without one.

    Every one is tried: more canaries reach further only while their share of delta stays small.
    """
    tried = range(2 * _STEP, most + 1, _STEP)
    return next((one for one in tried if can_refute(one, claimed_epsilon=claimed_epsilon, delta=delta)), None)
