"""Privacy violations over HTTP: how many of each kind."""

from __future__ import annotations

from typing import Annotated

from fastapi import APIRouter
from pydantic import BaseModel, ConfigDict

from app.budget import violations
from app.budget.violations import ViolationKind
from app.http.deps import SessionDep, requires
from app.http.routes import ThreadedRoute
from app.identity.roles import Principal

router = APIRouter(prefix="/privacy", tags=["budgets"], route_class=ThreadedRoute)


class ViolationCounts(BaseModel):
    """How many violations of each kind were recorded; a kind without any is 0."""

    model_config = ConfigDict(
        json_schema_extra={
            "examples": [{"counts": {kind.value: int(kind == "ceiling_hit") for kind in ViolationKind}}]
        }
    )

    counts: dict[ViolationKind, int]


@router.get("/violations")
def count_privacy_violations(
    session: SessionDep, principal: Annotated[Principal, requires("violations:read")]
) -> ViolationCounts:
    """Count the privacy violations of your organisation's runs; administrators count the federation's."""
    return ViolationCounts(counts=violations.counts_for(session, principal))
