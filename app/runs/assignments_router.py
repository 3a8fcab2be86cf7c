"""What a training client asks for: its assignments, and the adapter that a round starts from."""

from __future__ import annotations

from typing import Annotated
from uuid import UUID

from fastapi import APIRouter, Request, Response
from sqlalchemy.orm import Session

from app.custody.keys import BlobRef
from app.http.deps import SessionDep, requires
from app.http.downloads import OCTETS, UNCHANGED, blob_response
from app.http.longpoll import WaitS, read_when
from app.http.routes import ThreadedRoute
from app.identity.roles import Principal
from app.rounds import lifecycle
from app.rounds.queries import note_adapter, round_for
from app.runs import queries
from app.runs.schemas import AssignmentOut, Assignments

router = APIRouter(tags=["rounds"], route_class=ThreadedRoute)


@router.get("/assignments")
async def list_assignments(
    request: Request, principal: Annotated[Principal, requires("assignments:read")], wait: WaitS = 0
) -> Assignments:
    """Open rounds that wait for this client's update; with `wait`, hold the answer until there is one."""

    def read(session: Session) -> Assignments:
        found = queries.assignments_of(session, principal.id)
        return Assignments(items=[AssignmentOut.of(one) for one in found])

    return await read_when(
        request,
        read,
        lambda assignments: bool(assignments.items),
        channel=lifecycle.CHANNEL,
        payload=f"client:{principal.id}",
        wait_s=wait,
    )


@router.get("/rounds/{round_id}/adapter", response_class=Response, responses={**OCTETS, **UNCHANGED})
def get_round_adapter(
    round_id: UUID,
    request: Request,
    session: SessionDep,
    principal: Annotated[Principal, requires("adapters:read")],
) -> Response:
    """Download the trained tensors that the round starts from, as safetensors; the ETag is their digest."""
    row = round_for(session, principal, round_id, "adapters:read")
    note_adapter(session, row, principal.id)
    return blob_response(
        request, session, BlobRef(row.organisation_id, row.adapter_sha256), filename="adapter.safetensors"
    )
