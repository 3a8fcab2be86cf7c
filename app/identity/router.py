"""Organisations and their ceilings."""

from __future__ import annotations

from typing import Annotated
from uuid import UUID

from fastapi import APIRouter

from app.http.deps import SessionDep, requires
from app.http.idempotency import IdempotentRoute
from app.http.pagination import Page, PageDep, page
from app.identity import queries, service
from app.identity.models import Organisation
from app.identity.roles import Principal
from app.identity.schemas import CeilingIn, OrganisationIn, OrganisationView

router = APIRouter(tags=["organisations"], route_class=IdempotentRoute)


@router.post("/organisations", status_code=201)
def create_organisation(
    body: OrganisationIn,
    session: SessionDep,
    principal: Annotated[Principal, requires("organisations:create")],
) -> OrganisationView:
    """Add an organisation to the federation."""
    row = service.create_organisation(session, principal, name=body.name, region=body.region)
    return OrganisationView.model_validate(row)


@router.get("/organisations")
def list_organisations(
    params: PageDep, session: SessionDep, principal: Annotated[Principal, requires("organisations:read")]
) -> Page[OrganisationView]:
    """List the organisations that you may see, oldest first."""
    rows, cursor = page(session, queries.organisations(principal), Organisation.id, params)
    return Page(items=[OrganisationView.model_validate(row) for row in rows], next_cursor=cursor)


@router.put("/organisations/{organisation_id}/ceiling")
def limit_organisation(
    organisation_id: UUID,
    body: CeilingIn,
    session: SessionDep,
    principal: Annotated[Principal, requires("organisations:limit")],
) -> OrganisationView:
    """Set the most epsilon that any account of the organisation may be granted from now on."""
    row = service.limit_organisation(
        session, principal, organisation_id, epsilon_ceiling=body.epsilon_ceiling
    )
    return OrganisationView.model_validate(row)
