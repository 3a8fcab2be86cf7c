"""Data rules over HTTP: set a version, read every one. On a run: app/runs/ruling_router.py."""

from __future__ import annotations

from typing import Annotated
from uuid import UUID

from fastapi import APIRouter, Path

from app.http.deps import SessionDep, requires
from app.http.idempotency import IdempotentRoute
from app.http.pagination import Page, PageDep, page
from app.identity.roles import Principal
from app.policies import queries, service
from app.policies.models import DataRules
from app.policies.schemas import DataRulesIn, DataRulesView

router = APIRouter(
    prefix="/organisations/{organisation_id}/data-rules", tags=["data rules"], route_class=IdempotentRoute
)

Version = Annotated[int, Path(ge=1, le=2**31 - 1)]
CanReadRules = Annotated[Principal, requires("data_rules:read")]


@router.post("", status_code=201)
def set_data_rules(
    organisation_id: UUID,
    body: DataRulesIn,
    session: SessionDep,
    principal: Annotated[Principal, requires("data_rules:set")],
) -> DataRulesView:
    """Put a new version of the organisation's rules in force; earlier ones stay readable.

    Runs meet it when they start, and running ones before their next round opens.
    """
    row = service.set_rules(session, principal, organisation_id, rules=body.rules)
    return DataRulesView.model_validate(row)


@router.get("")
def list_data_rules(
    organisation_id: UUID, session: SessionDep, principal: CanReadRules, params: PageDep
) -> Page[DataRulesView]:
    """List every version, newest first: the first is in force."""
    statement = queries.versions(session, principal, organisation_id)
    rows, cursor = page(session, statement, DataRules.version, params, newest_first=True)
    return Page(items=[DataRulesView.model_validate(row) for row in rows], next_cursor=cursor)


@router.get("/{version:int}")  # "trials" is none, and has a method of its own
def get_data_rules(
    organisation_id: UUID, version: Version, session: SessionDep, principal: CanReadRules
) -> DataRulesView:
    """Show one version."""
    row = queries.version_of(session, principal, organisation_id, version=version)
    return DataRulesView.model_validate(row)
