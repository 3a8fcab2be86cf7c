"""Organisations, members and API keys."""

from __future__ import annotations

from typing import Annotated
from uuid import UUID

from fastapi import APIRouter

from app.http.deps import SessionDep, requires
from app.http.idempotency import IdempotentRoute
from app.http.pagination import Page, PageDep, page
from app.http.state import VaultDep
from app.identity import queries, service
from app.identity.models import ApiKey, Member, Organisation
from app.identity.roles import Principal, Role
from app.identity.schemas import (
    ApiKeyIn,
    ApiKeyOnce,
    ApiKeyView,
    CeilingIn,
    MemberIn,
    MemberView,
    OrganisationIn,
    OrganisationView,
)

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


@router.post("/members", status_code=201)
def create_member(
    body: MemberIn, session: SessionDep, principal: Annotated[Principal, requires("members:create")]
) -> MemberView:
    """Add a person or an automation to an organisation; API keys are made for it afterwards."""
    row = service.create_member(
        session, principal, organisation_id=body.organisation_id, name=body.name, role=Role(body.role)
    )
    return MemberView.model_validate(row)


@router.get("/members")
def list_members(
    params: PageDep, session: SessionDep, principal: Annotated[Principal, requires("members:read")]
) -> Page[MemberView]:
    """List the members that you may see, oldest first."""
    rows, cursor = page(session, queries.members(principal), Member.id, params)
    return Page(items=[MemberView.model_validate(row) for row in rows], next_cursor=cursor)


@router.post("/api-keys", status_code=201)
def create_api_key(
    body: ApiKeyIn,
    session: SessionDep,
    vault: VaultDep,
    principal: Annotated[Principal, requires("api_keys:create")],
) -> ApiKeyOnce:
    """Make an API key. The answer is the only place where it is ever shown."""
    made = service.create_api_key(
        session,
        principal,
        vault,
        member_id=body.member_id,
        label=body.label,
        expires_in_s=body.expires_in_s,
    )
    view = ApiKeyView.model_validate(made.row)
    return ApiKeyOnce(**view.model_dump(), api_key=made.text)


@router.get("/api-keys")
def list_api_keys(
    params: PageDep, session: SessionDep, principal: Annotated[Principal, requires("api_keys:read")]
) -> Page[ApiKeyView]:
    """List the API keys that you may see, without their secrets."""
    rows, cursor = page(session, queries.api_keys(principal, "api_keys:read"), ApiKey.id, params)
    return Page(items=[ApiKeyView.model_validate(row) for row in rows], next_cursor=cursor)


@router.delete("/api-keys/{api_key_id}", status_code=204)
def revoke_api_key(
    api_key_id: UUID, session: SessionDep, principal: Annotated[Principal, requires("api_keys:revoke")]
) -> None:
    """Revoke an API key; it fails from the next request on."""
    service.revoke_api_key(session, principal, api_key_id)
