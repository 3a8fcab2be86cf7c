"""From the plain values of a plan, a ledger entry or a certificate to what the accountants price.

One reading for everybody who computes a price again, so that a certificate, the ledger and their checks
cannot mean different mechanisms by the same words. Nothing is priced here.
"""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

from engines.privacy.gaussian_run import CappedPoisson, GaussianRun
from engines.privacy.loss_library import Relation

__all__ = ["schedule_of"]


def schedule_of(terms: Mapping[str, Any]) -> GaussianRun:
    """Return the schedule that these terms mean.

    Args:
        terms: `trust`, `relation`, `cohort`, `examples`, `noise_multiplier` and `steps`, as in a manifest's
            privacy section, and `canaries`, how many take places of the cohort beside the clients (none where
            it is missing); other members are ignored. Under `local` the sampling is that of records or
            persons, under `central` that of the clients and canaries.
    Raises:
        ValueError: a member is missing, of another type, out of range, or of a kind that has no price.
    """
    try:
        rate, capped = _sampling(terms)
        return GaussianRun(
            noise_multiplier=float(terms["noise_multiplier"]),
            sampling_rate=rate,
            steps=int(terms["steps"]),
            relation=Relation(terms["relation"]),
            capped=capped,
        )
    except (KeyError, TypeError, OverflowError) as error:
        raise ValueError(f"the terms are incomplete or malformed: {error}") from error


def _sampling(terms: Mapping[str, Any]) -> tuple[float, CappedPoisson | None]:
    trust = terms["trust"]
    if trust == "local":
        examples = terms["examples"]
        return {"poisson": lambda: float(examples["rate"]), "all": lambda: 1.0}[examples["kind"]](), None
    if trust != "central":
        raise ValueError(f"trust {trust} has no price")
    cohort = terms["cohort"]
    if cohort["kind"] == "everyone":
        return 1.0, None
    if cohort["kind"] != "poisson":
        raise ValueError(f"a cohort of kind {cohort['kind']} has no price")
    canaries = terms.get("canaries")
    if canaries is not None and (type(canaries) is not int or canaries < 0):
        raise ValueError("the number of canaries is a whole number, at least 0")
    places = int(cohort["n_max"]) + (canaries or 0)
    return float(cohort["rate"]), CappedPoisson(population=places, cap=int(cohort["cap"]))
