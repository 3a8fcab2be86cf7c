"""What an organisation's data may be used for, and the judgement of a run by it. Pure: reads no database.

Rules only ever deny. Without a rule nothing is denied, and no rule allows what a role does not.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from decimal import Decimal
from enum import StrEnum
from typing import Annotated, Any, Literal

from pydantic import ConfigDict, Field

from app.core.strict import Epsilon, Jurisdiction, Region, StrictModel, Term

_MOST_TERMS = 100


class Rule(StrEnum):
    """The rules there are, by the names under which they deny. None is ever renamed."""

    PURPOSE = "purpose"  # the run's declared purpose
    DATA_CATEGORY = "data_category"  # each category of data that the run declares
    JURISDICTION = "jurisdiction"  # whose law the organisation's clients in the run are under
    PROCESSING_REGION = "processing_region"  # where this server computes and stores
    TRUST = "trust"  # who may see updates before noise is added
    EPSILON_PER_PERIOD = "epsilon_per_period"  # of each of the organisation's accounts
    SMALLEST_COHORT = "smallest_cohort"  # with how few clients a round may close


class PeriodCeiling(StrictModel):
    """The most epsilon that may be set aside or spent on one account within a sliding period."""

    model_config = ConfigDict(frozen=True)

    epsilon: Epsilon
    days: Annotated[int, Field(strict=True, ge=1, le=3660)]


EXAMPLE: dict[str, Any] = {
    "purposes": ["spam-filtering", "fraud-detection"],
    "data_categories": ["email"],
    "jurisdictions": ["DE", "FR"],
    "processing_regions": ["eu-west-1", "eu-central-1"],
    "trusts": ["local"],
    "epsilon_per_period": {"epsilon": 8.0, "days": 365},
    "smallest_cohort": 2,
}


class Rules(StrictModel):
    """One version of an organisation's rules. What is null asks nothing; an empty list allows nothing."""

    model_config = ConfigDict(frozen=True, json_schema_extra={"examples": [EXAMPLE]})

    purposes: Annotated[list[Term], Field(max_length=_MOST_TERMS)] | None = None
    data_categories: Annotated[list[Term], Field(max_length=_MOST_TERMS)] | None = None
    jurisdictions: Annotated[list[Jurisdiction], Field(max_length=_MOST_TERMS)] | None = None
    """A country stands for its parts too: `US` allows `US-CA`."""
    processing_regions: Annotated[list[Region], Field(max_length=_MOST_TERMS)] | None = None
    trusts: (
        Annotated[list[Literal["local", "central", "distributed", "none"]], Field(max_length=4)] | None
    ) = None
    epsilon_per_period: PeriodCeiling | None = None
    smallest_cohort: Annotated[int, Field(strict=True, ge=1, le=10_000)] | None = None


@dataclass(frozen=True, slots=True, kw_only=True)
class Asked:
    """What a run asks of one organisation's data. None stands for what nobody declared, and is denied."""

    purpose: str | None
    data_categories: Sequence[str | None]
    jurisdictions: Sequence[str | None]
    """Of the organisation's own clients in the run."""
    processing_region: str | None
    trust: str
    epsilon_in_period: Decimal | None
    """With this run's whole price, on whichever account of the organisation it is most."""
    smallest_cohort: int


@dataclass(frozen=True, slots=True)
class Denial:
    """A rule that denies, with what was asked and what it would allow."""

    rule: Rule
    asked: list[str | None] | float | None
    allowed: list[str] | float


def denials(rules: Rules, asked: Asked) -> list[Denial]:
    """Every rule that denies, in the order of `Rule`; none: the run is allowed."""
    found = (
        _listed(Rule.PURPOSE, [asked.purpose], rules.purposes),
        _listed(Rule.DATA_CATEGORY, asked.data_categories, rules.data_categories),
        _jurisdictions(asked.jurisdictions, rules.jurisdictions),
        _listed(Rule.PROCESSING_REGION, [asked.processing_region], rules.processing_regions),
        _listed(Rule.TRUST, [asked.trust], rules.trusts),
        _epsilon(asked.epsilon_in_period, rules.epsilon_per_period),
        _cohort(asked.smallest_cohort, rules.smallest_cohort),
    )
    return [one for one in found if one is not None]


def _listed(rule: Rule, asked: Sequence[str | None], allowed: Sequence[str] | None) -> Denial | None:
    if allowed is None or set(asked) <= set(allowed):
        return None
    return Denial(rule, _sorted(asked), sorted(allowed))


def _jurisdictions(asked: Sequence[str | None], allowed: Sequence[str] | None) -> Denial | None:
    """A part of a country is allowed by its own name or by the country's."""
    if allowed is None or all(one is not None and {one, one[:2]} & set(allowed) for one in asked):
        return None
    return Denial(Rule.JURISDICTION, _sorted(asked), sorted(allowed))


def _epsilon(asked: Decimal | None, allowed: PeriodCeiling | None) -> Denial | None:
    if allowed is None or (asked is not None and asked <= Decimal(repr(allowed.epsilon))):
        return None
    return Denial(Rule.EPSILON_PER_PERIOD, None if asked is None else float(asked), allowed.epsilon)


def _cohort(asked: int, allowed: int | None) -> Denial | None:
    if allowed is None or asked >= allowed:
        return None
    return Denial(Rule.SMALLEST_COHORT, asked, allowed)


def _sorted(asked: Sequence[str | None]) -> list[str | None]:
    """Each once, what is undeclared last."""
    return [*sorted({one for one in asked if one is not None}), *([None] if None in asked else [])]
