"""Enrolments, training clients and their access tokens."""

from __future__ import annotations

from typing import Annotated
from uuid import UUID

from fastapi import APIRouter, Form, Request, Response

from app.core.canonical import Json
from app.http.deps import SessionDep, SettingsDep, presented, public, requires
from app.http.idempotency import IdempotentRoute
from app.http.limits import limited
from app.http.pagination import Page, PageDep, page
from app.http.state import KeyRingDep
from app.identity import assertions, clients, queries, service
from app.identity.authentication import Authenticator
from app.identity.models import Client, ClientState, Enrolment
from app.identity.roles import Principal
from app.identity.schemas import (
    ClientKeyIn,
    ClientView,
    EnrolmentView,
    TokenForm,
    TokenView,
    WebKeySet,
    decode,
)

router = APIRouter(tags=["clients"], route_class=IdempotentRoute)
keys_router = APIRouter(tags=["clients"])
PROOF_PARAMETER: Json = {
    "name": "DPoP",
    "in": "header",
    "required": False,
    "description": "A proof that the caller holds the key to which the token is to be bound (RFC 9449): a "
    "JWT of type `dpop+jwt`, signed with Ed25519, about this method and address.",
    "schema": {"type": "string", "maxLength": 4096},
}
CanApprove = Annotated[Principal, requires("clients:approve")]
CanSuspend = Annotated[Principal, requires("clients:suspend")]


@router.get("/enrolments")
def list_enrolments(
    params: PageDep, session: SessionDep, principal: Annotated[Principal, requires("enrolments:read")]
) -> Page[EnrolmentView]:
    """List invitations, used ones included, without their tokens."""
    rows, cursor = page(session, queries.enrolments(principal), Enrolment.id, params)
    return Page(items=[EnrolmentView.model_validate(row) for row in rows], next_cursor=cursor)


@router.get("/clients")
def list_clients(
    params: PageDep, session: SessionDep, principal: Annotated[Principal, requires("clients:read")]
) -> Page[ClientView]:
    """List the training clients that you may see, oldest first."""
    rows, cursor = page(session, queries.clients(principal, "clients:read"), Client.id, params)
    return Page(items=[ClientView.model_validate(row) for row in rows], next_cursor=cursor)


@router.get("/clients/{client_id}")
def get_client(
    client_id: UUID, session: SessionDep, principal: Annotated[Principal, requires("clients:read")]
) -> ClientView:
    """Show one training client, with what its machine can carry."""
    return ClientView.model_validate(queries.client(session, principal, client_id))


@router.post("/clients/{client_id}/suspend")
def suspend_client(client_id: UUID, session: SessionDep, principal: CanSuspend) -> ClientView:
    """Switch a training client off: it gets no token, and its running tokens are refused."""
    row = service.set_client_state(session, principal, client_id, ClientState.SUSPENDED)
    return ClientView.model_validate(row)


@router.post("/clients/{client_id}/reinstate")
def reinstate_client(client_id: UUID, session: SessionDep, principal: CanSuspend) -> ClientView:
    """Switch a suspended training client on again."""
    row = service.set_client_state(session, principal, client_id, ClientState.ACTIVE)
    return ClientView.model_validate(row)


@router.post("/clients/{client_id}/approve")
def approve_client(client_id: UUID, session: SessionDep, principal: CanApprove) -> ClientView:
    """Let a training client in that waits for approval."""
    return ClientView.model_validate(clients.approve_client(session, principal, client_id))


@router.post("/clients/{client_id}/reject")
def reject_client(client_id: UUID, session: SessionDep, principal: CanApprove) -> ClientView:
    """Refuse a training client that waits for approval, for good."""
    return ClientView.model_validate(clients.reject_client(session, principal, client_id))


@router.post("/clients/{client_id}/revoke")
def revoke_client(
    client_id: UUID, session: SessionDep, principal: Annotated[Principal, requires("clients:revoke")]
) -> ClientView:
    """Trust a training client's key no more, for good; its running tokens stop."""
    return ClientView.model_validate(clients.revoke_client(session, principal, client_id))


@router.post("/clients/{client_id}/key")
def rotate_client_key(
    client_id: UUID,
    body: ClientKeyIn,
    session: SessionDep,
    principal: Annotated[Principal, requires("clients:rotate_key")],
) -> ClientView:
    """Give yourself a new key, vouched for by the present one; both are taken until the overlap is over."""
    row = clients.rotate_client_key(
        session,
        principal,
        client_id,
        public_key=decode(body.public_key),
        proof=decode(body.proof),
        own_proof=decode(body.own_proof),
        overlap_s=body.overlap_s,
    )
    return ClientView.model_validate(row)


@router.post(
    "/tokens",
    dependencies=[public("the login itself"), limited("tokens", per_minute=240)],
    openapi_extra={"parameters": [PROOF_PARAMETER]},
)
def create_token(
    form: Annotated[TokenForm, Form()],
    session: SessionDep,
    settings: SettingsDep,
    keys: KeyRingDep,
    request: Request,
) -> TokenView:
    """Exchange a signed client assertion for an access token (RFC 7523).

    The token is bound to the key of the proof in the header `DPoP` (RFC 9449), or without one to the
    connection's client certificate (RFC 8705): whoever copies it alone can do nothing with it.
    """
    authenticator: Authenticator = request.app.state.authenticator
    made = assertions.exchange(
        session,
        settings,
        keys,
        assertion=form.client_assertion,
        possession=authenticator.possession,
        presented=presented(request),
    )
    return TokenView(access_token=made.access_token, token_type=made.token_type, expires_in=made.expires_in)


@keys_router.get("/.well-known/jwks.json", dependencies=[public("public keys are public")])
def get_signing_keys(response: Response, keys: KeyRingDep) -> WebKeySet:
    """The public keys that verify access tokens and release certificates, the next one included."""
    response.headers["Cache-Control"] = "public, max-age=300"
    return WebKeySet.model_validate(keys.jwks())
