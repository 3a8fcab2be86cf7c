"""Privacy violations and audits over HTTP: how many of each kind, and what was found."""

from __future__ import annotations

from datetime import datetime
from typing import Annotated, Any
from uuid import UUID

from fastapi import APIRouter
from pydantic import BaseModel, ConfigDict

from app.budget import audits, violations
from app.budget.models import PrivacyAudit
from app.budget.violations import ViolationKind
from app.http.deps import SessionDep, requires
from app.http.pagination import Page, PageDep, page
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


class AuditOut(BaseModel):
    """What one audit found; `report` has all that the verdict follows from."""

    model_config = ConfigDict(from_attributes=True)

    id: UUID
    run_id: UUID
    manifest_sha256: str | None
    """Of the frozen manifest that was audited; null of an audit before one was kept."""
    refuted: bool
    """The claim is false, at the report's confidence; false says only that this audit did not show it."""
    report: dict[str, Any]
    at: datetime


@router.get("/audits")
def list_privacy_audits(
    session: SessionDep, principal: Annotated[Principal, requires("violations:read")], params: PageDep
) -> Page[AuditOut]:
    """List audits of your organisation's runs, newest first; administrators see the federation's."""
    rows, cursor = page(session, audits.audits(principal), PrivacyAudit.id, params, newest_first=True)
    return Page(items=[AuditOut.model_validate(row) for row in rows], next_cursor=cursor)


@router.get("/violations")
def count_privacy_violations(
    session: SessionDep, principal: Annotated[Principal, requires("violations:read")]
) -> ViolationCounts:
    """Count the privacy violations of your organisation's runs; administrators count the federation's."""
    return ViolationCounts(counts=violations.counts_for(session, principal))
