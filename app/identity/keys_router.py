"""API keys, and the federation's own signing keys."""

from __future__ import annotations

from typing import Annotated
from uuid import UUID

from fastapi import APIRouter

from app.http.deps import SessionDep, requires
from app.http.idempotency import IdempotentRoute
from app.http.pagination import Page, PageDep, page
from app.http.state import VaultDep
from app.identity import api_keys, queries
from app.identity.api_keys import NewKey
from app.identity.keys import rotate_signing_keys
from app.identity.models import ApiKey
from app.identity.roles import Principal
from app.identity.schemas import ApiKeyIn, ApiKeyOnce, ApiKeyView, OverlapIn, SigningRotationIn

router = APIRouter(tags=["organisations"], route_class=IdempotentRoute)
CanCreate = Annotated[Principal, requires("api_keys:create")]


@router.post("/api-keys", status_code=201)
def create_api_key(body: ApiKeyIn, session: SessionDep, vault: VaultDep, principal: CanCreate) -> ApiKeyOnce:
    """Make an API key. The answer is the only place where it is ever shown."""
    made = api_keys.create_api_key(
        session,
        principal,
        vault,
        member_id=body.member_id,
        label=body.label,
        expires_in_s=body.expires_in_s,
        scopes=body.scopes,
        networks=body.networks,
    )
    return _once(made)


@router.get("/api-keys")
def list_api_keys(
    params: PageDep, session: SessionDep, principal: Annotated[Principal, requires("api_keys:read")]
) -> Page[ApiKeyView]:
    """List the API keys that you may see, without their secrets."""
    rows, cursor = page(session, queries.api_keys(principal, "api_keys:read"), ApiKey.id, params)
    return Page(items=[ApiKeyView.model_validate(row) for row in rows], next_cursor=cursor)


@router.post("/api-keys/{api_key_id}/rotate", status_code=201)
def rotate_api_key(
    api_key_id: UUID, body: OverlapIn, session: SessionDep, vault: VaultDep, principal: CanCreate
) -> ApiKeyOnce:
    """Make a key on the same terms that follows this one; both work until the overlap is over."""
    return _once(api_keys.rotate_api_key(session, principal, vault, api_key_id, overlap_s=body.overlap_s))


@router.delete("/api-keys/{api_key_id}", status_code=204)
def revoke_api_key(
    api_key_id: UUID, session: SessionDep, principal: Annotated[Principal, requires("api_keys:revoke")]
) -> None:
    """Revoke an API key; it fails from the next request on."""
    api_keys.revoke_api_key(session, principal, api_key_id)


@router.post("/signing-keys/rotate", status_code=204)
def rotate_signing_key(
    body: SigningRotationIn,
    session: SessionDep,
    vault: VaultDep,
    principal: Annotated[Principal, requires("signing_keys:rotate")],
) -> None:
    """Let the next signing key sign. Tokens of the former one hold until they expire, unless it leaked."""
    rotate_signing_keys(session, vault, actor=principal.actor, leaked=body.leaked)


def _once(made: NewKey) -> ApiKeyOnce:
    view = ApiKeyView.model_validate(made.row)
    return ApiKeyOnce(**view.model_dump(), api_key=made.text)
