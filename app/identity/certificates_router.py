"""Client certificates over HTTP."""

from __future__ import annotations

from typing import Annotated
from uuid import UUID

from fastapi import APIRouter, Request

from app.http.deps import SessionDep, SettingsDep, requires
from app.http.idempotency import IdempotentRoute
from app.http.pagination import Page, PageDep, page
from app.identity import certificates
from app.identity.certificate_schemas import CertificateIn, CertificateOnce, CertificateView
from app.identity.models import ClientCertificate
from app.identity.roles import Principal

router = APIRouter(tags=["clients"], route_class=IdempotentRoute)


@router.post("/certificates", status_code=201)
def create_certificate(
    body: CertificateIn,
    session: SessionDep,
    settings: SettingsDep,
    request: Request,
    principal: Annotated[Principal, requires("certificates:create")],
) -> CertificateOnce:
    """Sign a short-lived certificate for the calling training client, from a PKCS #10 request.

    Connections that show it, on a server that takes client certificates, get tokens bound to it (RFC 8705)
    and need no proof for each request. The private key never leaves the client.
    """
    made = certificates.issue(
        session, principal, settings, request.app.state.authority, request_pem=body.signing_request
    )
    view = CertificateView.model_validate(made.row)
    return CertificateOnce(
        **view.model_dump(), certificate=made.certificate_pem, authority=made.authority_pem
    )


@router.get("/clients/{client_id}/certificates")
def list_certificates(
    client_id: UUID,
    params: PageDep,
    session: SessionDep,
    principal: Annotated[Principal, requires("certificates:read")],
) -> Page[CertificateView]:
    """List a training client's certificates, oldest first."""
    statement = certificates.certificates_of(session, principal, client_id)
    rows, cursor = page(session, statement, ClientCertificate.id, params)
    return Page(items=[CertificateView.model_validate(row) for row in rows], next_cursor=cursor)


@router.post("/clients/{client_id}/certificates/{certificate_id}/revoke")
def revoke_certificate(
    client_id: UUID,
    certificate_id: UUID,
    session: SessionDep,
    principal: Annotated[Principal, requires("certificates:revoke")],
) -> CertificateView:
    """Take a certificate back: tokens that are bound to it are refused from the next request on."""
    row = certificates.revoke(session, principal, client_id, certificate_id)
    return CertificateView.model_validate(row)
