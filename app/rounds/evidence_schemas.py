"""What the API shows of evidence about updates, and of where clients stand."""

from __future__ import annotations

from datetime import datetime
from typing import Any, Literal, Self
from uuid import UUID

from pydantic import BaseModel, ConfigDict

from app.core.strict import Reason, StrictModel
from app.http.pagination import Page
from app.rounds.models import Evidence
from app.rounds.states import Step

_CLIENT = "01976c5e-0000-7c3a-9f4e-2b6d1a0c9e02"
_ROUND = "01976c5e-8d2b-7c3a-9f4e-2b6d1a0c9e77"
_EVIDENCE: dict[str, Any] = {
    "client_id": _CLIENT,
    "finite": True,
    "norm": 9.5,
    "clipped": False,
    "comparison": {
        "norm_ratio": 9.1,
        "distance_ratio": 8.8,
        "cosine": -0.9,
        "nearest_ratio": 7.0,
        "odd": ["norm", "distance", "direction"],
        "score": 21.0,
        "weight": 1.0,
    },
}


class Comparison(BaseModel):
    """One update beside the others of its round; ratios are to the round's median."""

    norm_ratio: float | None
    """Null, as the next ones, where fewer than 5 or more than 1,024 updates could be compared."""
    distance_ratio: float | None
    cosine: float | None
    nearest_ratio: float | None
    odd: list[str]
    """`norm`, `distance`, `direction`, `twin` (too near to another), `not_finite`."""
    score: float | None
    """By how many robust standard deviations it is odd, at most."""
    weight: float
    """What it counted by its client's standing: 1, one half (where the rule is the mean), or 0."""


class EvidenceOut(BaseModel):
    """What one round says about one client's update."""

    client_id: UUID
    finite: bool
    norm: float | None
    """L2 norm before clipping; null where it is not finite."""
    clipped: bool
    comparison: Comparison | None
    """Null for a training client: it is told only its own finite and norm result."""

    @classmethod
    def of(cls, row: Evidence, *, compared: bool) -> Self:
        """From a row; with the comparison for operators alone."""
        comparison = None
        if compared:
            comparison = Comparison(
                norm_ratio=row.norm_ratio,
                distance_ratio=row.distance_ratio,
                cosine=row.cosine,
                nearest_ratio=row.nearest_ratio,
                odd=row.odd,
                score=row.score,
                weight=row.weight,
            )
        return cls(
            client_id=row.client_id,
            finite=row.finite,
            norm=row.norm,
            clipped=row.clipped,
            comparison=comparison,
        )


class EvidencePage(Page[EvidenceOut]):
    """One page of a round's evidence."""

    model_config = ConfigDict(
        json_schema_extra={
            "examples": [{"detection": "each_update", "items": [_EVIDENCE], "next_cursor": None}]
        }
    )

    detection: Literal["each_update", "none"]
    """What was looked at. `none` under trust `central`: of single updates nothing is shown there."""


class StandingOut(BaseModel):
    """One step of a client, up by evidence or by an administrator's hand."""

    model_config = ConfigDict(
        from_attributes=True,
        json_schema_extra={
            "examples": [
                {
                    "client_id": _CLIENT,
                    "round_id": _ROUND,
                    "odd": True,
                    "step": "discount",
                    "suspicion": 3.2,
                    "reason": None,
                    "actor": "worker",
                    "at": "2026-11-25T12:00:00Z",
                }
            ]
        },
    )

    client_id: UUID
    round_id: UUID | None
    """The round that was judged; null for a step by hand."""
    odd: bool | None
    step: Step
    suspicion: float
    """Sum of log-likelihood ratios, in nats; never under 0."""
    reason: str | None
    """Why an administrator took the step."""
    actor: str
    at: datetime


class ReversalIn(StrictModel):
    """To which lower step a client is taken back, or `quarantine`, and why."""

    model_config = ConfigDict(
        json_schema_extra={
            "examples": [{"to": "observe", "reason": "The scanner was replaced; its data had shifted."}]
        }
    )

    to: Step
    reason: Reason
