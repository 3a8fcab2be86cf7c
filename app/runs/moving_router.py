"""Moving training clients between organisations."""

from __future__ import annotations

from typing import Annotated
from uuid import UUID

from fastapi import APIRouter

from app.http.deps import SessionDep, requires
from app.http.idempotency import IdempotentRoute
from app.identity.account_schemas import MoveIn
from app.identity.roles import Principal
from app.identity.schemas import ClientView
from app.runs import moving

router = APIRouter(tags=["clients"], route_class=IdempotentRoute)


@router.post("/clients/{client_id}/move")
def move_client(
    client_id: UUID,
    body: MoveIn,
    session: SessionDep,
    principal: Annotated[Principal, requires("clients:move")],
) -> ClientView:
    """Move a training client that took part in nothing yet. One with spent budget stays."""
    row = moving.move_client(session, principal, client_id, organisation_id=body.organisation_id)
    return ClientView.model_validate(row)
