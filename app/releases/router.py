"""Releases over HTTP: list them, download an adapter, its PEFT configuration and its certificate."""

from __future__ import annotations

from typing import Annotated, Any
from uuid import UUID

from fastapi import APIRouter, Query, Request, Response

from app.core.canonical import canonical_bytes, canonical_sha256
from app.custody.keys import BlobRef
from app.http.deps import SessionDep, requires
from app.http.downloads import OCTETS, UNCHANGED, Responses, blob_response, is_known, unchanged
from app.http.pagination import Page, PageDep, page
from app.http.routes import ThreadedRoute
from app.identity.roles import Principal
from app.releases import queries
from app.releases.models import Release
from app.releases.schemas import ReleaseOut

router = APIRouter(prefix="/releases", tags=["releases"], route_class=ThreadedRoute)

CanReadReleases = Annotated[Principal, requires("releases:read")]
ROLLED_BACK = "Rolled-Back"
"""Header of a rolled-back release's parts: when it was."""
_JSON: Responses = {
    200: {"content": {"application/json": {"schema": {"type": "object"}}}},
    **UNCHANGED,
}


@router.get("")
def list_releases(
    session: SessionDep,
    principal: CanReadReleases,
    params: PageDep,
    run_id: Annotated[UUID | None, Query(description="Only releases of this run.")] = None,
) -> Page[ReleaseOut]:
    """List published adapters, newest first."""
    statement = queries.releases(principal)
    if run_id is not None:
        statement = statement.where(Release.run_id == run_id)
    rows, cursor = page(session, statement, Release.id, params, newest_first=True)
    return Page(items=[ReleaseOut.of(row) for row in rows], next_cursor=cursor)


@router.get("/{release_id}")
def get_release(release_id: UUID, session: SessionDep, principal: CanReadReleases) -> ReleaseOut:
    """Show a release, with links to its parts."""
    return ReleaseOut.of(queries.release_for(session, principal, release_id))


@router.get("/{release_id}/adapter", response_class=Response, responses={**OCTETS, **UNCHANGED})
def get_release_adapter(
    release_id: UUID, request: Request, session: SessionDep, principal: CanReadReleases
) -> Response:
    """Download adapter_model.safetensors, frozen factors included.

    Of a release that was rolled back, this answer and those of its other parts say when: `Rolled-Back`.
    """
    row = queries.release_for(session, principal, release_id)
    ref = BlobRef(row.organisation_id, row.adapter_sha256)
    return _marked(row, blob_response(request, session, ref, filename="adapter_model.safetensors"))


@router.get("/{release_id}/config", response_class=Response, responses=_JSON)
def get_release_config(
    release_id: UUID, request: Request, session: SessionDep, principal: CanReadReleases
) -> Response:
    """Download adapter_config.json, as PEFT reads it."""
    row = queries.release_for(session, principal, release_id)
    return _marked(row, _json(request, row.adapter_config))


@router.get("/{release_id}/certificate", response_class=Response, responses=_JSON)
def get_certificate(
    release_id: UUID, request: Request, session: SessionDep, principal: CanReadReleases
) -> Response:
    """Download the signed certificate: what is claimed, on what it rests, and what is not claimed."""
    row = queries.release_for(session, principal, release_id)
    return _marked(row, _json(request, row.certificate))


def _marked(row: Release, response: Response) -> Response:
    """The answer, which says where the release was rolled back: its bytes cannot."""
    if row.rolled_back_at is not None:
        response.headers[ROLLED_BACK] = row.rolled_back_at.isoformat()
    return response


def _json(request: Request, value: dict[str, Any]) -> Response:
    """A stored document in its canonical form, so that its bytes are always the same."""
    digest = canonical_sha256(value)
    if is_known(request, digest):
        return unchanged(digest)
    return Response(canonical_bytes(value), media_type="application/json", headers={"ETag": f'"{digest}"'})
