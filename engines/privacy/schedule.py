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

_UNITS_OF = {"local": {"example", "person"}, "central": {"client"}}
"""What the sampling that each trust is priced with is of."""


def schedule_of(terms: Mapping[str, Any]) -> GaussianRun:
    """Return the schedule that these terms mean.

    Args:
        terms: `trust`, `unit`, `relation`, `cohort`, `examples`, `noise_multiplier` and `steps`, as in a
            manifest's privacy section, and `canaries`, how many take places of the cohort beside the clients
            (none where it is missing); other members are ignored. Under `local` the sampling is that of
            records or persons, under `central` that of the clients and canaries.
    Raises:
        ValueError: a member is missing, of another type, out of range, or of a kind that has no price.
    """
    try:
        trust, unit = terms["trust"], terms["unit"]
        if unit not in _UNITS_OF.get(trust, ()):
            raise ValueError(f"unit {unit} under trust {trust} has no price")
        rate, capped = _of_records(terms["examples"]) if trust == "local" else _of_clients(terms)
        return GaussianRun(
            noise_multiplier=_number(terms["noise_multiplier"]),
            sampling_rate=rate,
            steps=_whole(terms["steps"]),
            relation=Relation(terms["relation"]),
            capped=capped,
        )
    except (KeyError, TypeError, OverflowError) as error:
        raise ValueError(f"the terms are incomplete or malformed: {error}") from error


def _of_records(examples: Mapping[str, Any]) -> tuple[float, None]:
    if examples["kind"] == "all":
        return 1.0, None
    if examples["kind"] != "poisson":
        raise ValueError(f"a sampling of kind {examples['kind']} has no price")
    return _number(examples["rate"]), None


def _of_clients(terms: Mapping[str, Any]) -> tuple[float, CappedPoisson | None]:
    cohort, canaries = terms["cohort"], terms.get("canaries")
    seats = 0 if canaries is None else _whole(canaries)
    if seats < 0:
        raise ValueError("the number of canaries is at least 0")
    if cohort["kind"] == "everyone":
        return 1.0, None
    if cohort["kind"] != "poisson":
        raise ValueError(f"a cohort of kind {cohort['kind']} has no price")
    places = CappedPoisson(population=_whole(cohort["n_max"]) + seats, cap=_whole(cohort["cap"]))
    return _number(cohort["rate"]), places


def _number(value: Any) -> float:
    """A number as JSON writes one: no text that reads like one, and no truth value."""
    if type(value) not in (int, float):
        raise TypeError(f"{value!r} is no number")
    return float(value)


def _whole(value: Any) -> int:
    if type(value) is not int:
        raise TypeError(f"{value!r} is no whole number")
    return value
