"""Evidence and the ladder over HTTP: what a round said about each client, and steps by hand."""

from __future__ import annotations

from typing import Annotated
from uuid import UUID

from fastapi import APIRouter

from app.http.deps import SessionDep, requires
from app.http.idempotency import IdempotentRoute
from app.http.pagination import Page, PageDep, page
from app.identity.roles import Principal, Role
from app.rounds import queries, standing
from app.rounds.evidence_schemas import EvidenceOut, EvidencePage, ReversalIn, StandingOut
from app.rounds.models import Evidence, Standing

router = APIRouter(tags=["rounds"], route_class=IdempotentRoute)

CanReadEvidence = Annotated[Principal, requires("evidence:read")]
CanReadStandings = Annotated[Principal, requires("standings:read")]
CanReverse = Annotated[Principal, requires("standings:reverse")]


@router.get("/rounds/{round_id}/evidence")
def list_evidence(
    round_id: UUID, session: SessionDep, principal: CanReadEvidence, params: PageDep
) -> EvidencePage:
    """Show what a round said about each client's update; a training client sees its own norm alone."""
    row = queries.round_for(session, principal, round_id, "evidence:read")
    rows, cursor = page(session, standing.evidence_of(row, principal), Evidence.client_id, params)
    compared = principal.role is not Role.CLIENT
    return EvidencePage(
        detection=queries.detection_of(row),
        items=[EvidenceOut.of(one, compared=compared) for one in rows],
        next_cursor=cursor,
    )


@router.get("/clients/{client_id}/standing")
def list_standings(
    client_id: UUID, session: SessionDep, principal: CanReadStandings, params: PageDep
) -> Page[StandingOut]:
    """List a client's steps on the ladder, newest first; a client without any is at `observe`."""
    statement = standing.history_of(session, principal, client_id)
    rows, cursor = page(session, statement, Standing.id, params, newest_first=True)
    return Page(items=[StandingOut.model_validate(row) for row in rows], next_cursor=cursor)


@router.post("/clients/{client_id}/standing", status_code=201)
def reverse_standing(
    client_id: UUID, body: ReversalIn, session: SessionDep, principal: CanReverse
) -> StandingOut:
    """Take a client back to a lower step, or put it in quarantine, with a reason that is kept for ever.

    Its count starts anew. No other step up is taken by hand: those follow from evidence.
    """
    row = standing.put(session, principal, client_id, to=body.to, reason=body.reason)
    session.refresh(row)
    return StandingOut.model_validate(row)
