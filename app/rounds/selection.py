"""Who takes part in a round: everyone, or a Poisson cohort that is drawn anew and kept secret.

The price of a Poisson cohort holds only if every client is in it by itself with exactly the manifest's rate,
by chance that nobody can foresee or repeat: from the operating system, never from a seed. What is cut above
the cap is cut at random, before anybody is asked. This module remembers nothing; nor may its callers tell.
"""

from __future__ import annotations

import secrets
from collections.abc import Sequence
from uuid import UUID

_CHANCE = secrets.SystemRandom()


def draw_cohort(client_ids: Sequence[UUID], *, rate: float, cap: int) -> list[UUID]:
    """Draw a round's cohort; may be empty.

    Args:
        client_ids: the run's clients, each once.
        rate: probability of each, above 0 and at most 1, by itself of all others.
        cap: the most that may come; of more, a uniform random subset of this size is kept.
    Returns:
        The cohort, in the order of `client_ids`.
    Source: capped Poisson sampling: docs/privacy-proof.md.
    """
    drawn = [client_id for client_id in client_ids if _comes(rate)]
    if len(drawn) <= cap:
        return drawn
    kept = set(_CHANCE.sample(drawn, cap))
    return [client_id for client_id in drawn if client_id in kept]


def _comes(rate: float) -> bool:
    """True with probability exactly `rate`: a float is a fraction over a power of two."""
    numerator, denominator = rate.as_integer_ratio()
    return secrets.randbelow(denominator) < numerator
