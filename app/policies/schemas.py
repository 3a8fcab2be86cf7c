"""Bodies of the endpoints of data rules."""

from __future__ import annotations

from datetime import datetime
from typing import Self
from uuid import UUID

from pydantic import BaseModel, ConfigDict

from app.core.strict import StrictModel
from app.policies.rules import EXAMPLE, Denial, Rule, Rules


class DataRulesIn(StrictModel):
    """The rules that are to be in force from now on, all of them: what is left out asks nothing any more."""

    model_config = ConfigDict(json_schema_extra={"examples": [{"rules": EXAMPLE}]})

    rules: Rules


class DataRulesView(BaseModel):
    """One version of an organisation's rules."""

    model_config = ConfigDict(from_attributes=True)

    organisation_id: UUID
    version: int
    """Counts from 1; the highest is in force."""
    rules: Rules
    sha256: str
    """Of the rules' canonical form; decisions in the audit log name it."""
    created_by: str
    created_at: datetime


class DenialOut(BaseModel):
    """A rule that denies."""

    rule: Rule
    asked: list[str | None] | float | None
    """What the run asks for; null is what nobody declared."""
    allowed: list[str] | float
    """What the rule would allow."""

    @classmethod
    def of(cls, denial: Denial) -> Self:
        """From a judgement."""
        return cls(rule=denial.rule, asked=denial.asked, allowed=denial.allowed)
