"""Who takes part in a round: everyone, or a Poisson cohort that is drawn anew and kept secret.

The price of a Poisson cohort holds only if every client is in it by itself with exactly the manifest's rate,
by chance that nobody can foresee or repeat: from the operating system, never from a seed. What is cut above
the cap is cut at random, before anybody is asked. Places of the priced population that no client holds are
drawn too and come empty, so a smaller pool is the priced mechanism with absent clients. Canaries hold places
like any client's and are drawn and cut together with them. This module remembers nothing; nor may its callers
tell.
"""

from __future__ import annotations

import secrets
from collections.abc import Sequence
from dataclasses import dataclass
from uuid import UUID

_CHANCE = secrets.SystemRandom()


@dataclass(frozen=True, slots=True)
class Cohort:
    """Who is in a round."""

    clients: list[UUID]
    canaries: list[int]
    """Numbers of the run's canaries, ascending."""


def draw_cohort(
    client_ids: Sequence[UUID], *, rate: float, cap: int, population: int, canaries: int = 0
) -> Cohort:
    """Draw a round's cohort; may be empty.

    Args:
        client_ids: the run's clients, each once; at most `population`.
        rate: probability of each place, above 0 and at most 1, by itself of all others.
        cap: the most places that may be kept; of more, a uniform random subset of this size is.
        population: places for clients (the plan's `n_max`), held by a client or empty.
        canaries: further places, one for each canary of the run; the plan was priced for all of them.
    Returns:
        The clients among the kept places, in the order of `client_ids`, and the canaries.
    Source: capped Poisson sampling: docs/privacy-proof.md, section 25.
    """
    drawn = [place for place in range(population + canaries) if _comes(rate)]
    kept = sorted(drawn if len(drawn) <= cap else _CHANCE.sample(drawn, cap))
    return Cohort(
        clients=[client_ids[place] for place in kept if place < len(client_ids)],
        canaries=[place - population for place in kept if place >= population],
    )


def _comes(rate: float) -> bool:
    """True with probability exactly `rate`: a float is a fraction over a power of two."""
    numerator, denominator = rate.as_integer_ratio()
    return secrets.randbelow(denominator) < numerator
