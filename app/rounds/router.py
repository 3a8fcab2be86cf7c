"""Rounds over HTTP: watch one, read its history, seal it."""

from __future__ import annotations

from typing import Annotated
from uuid import UUID

from fastapi import APIRouter, Request, Response
from sqlalchemy.orm import Session

from app.http.deps import SessionDep, requires
from app.http.downloads import UNCHANGED, is_known, unchanged
from app.http.idempotency import IdempotentRoute
from app.http.longpoll import Since, WaitS, read_when
from app.http.state import VaultDep
from app.identity.roles import Principal
from app.rounds import lifecycle, queries
from app.rounds.schemas import RoundHistory, RoundOut, RoundStep

router = APIRouter(prefix="/rounds", tags=["rounds"], route_class=IdempotentRoute)

CanReadRounds = Annotated[Principal, requires("rounds:read")]
CanSealRounds = Annotated[Principal, requires("rounds:seal")]


@router.get("/{round_id}", response_model=RoundOut, responses=UNCHANGED)
async def get_round(
    *,
    round_id: UUID,
    request: Request,
    response: Response,
    principal: CanReadRounds,
    wait: WaitS = 0,
    since: Since = None,
) -> RoundOut | Response:
    """Show a round; with `wait`, hold the answer until its version is another than `since`.

    Without `since`, what you know is told by If-None-Match; with neither, the version of now counts.
    """
    seen: list[int] = []

    def read(session: Session) -> RoundOut:
        return queries.show(session, queries.round_for(session, principal, round_id))

    def is_awaited(shown: RoundOut) -> bool:
        seen.append(shown.version)
        if since is None and "if-none-match" in request.headers:
            return not is_known(request, shown.tag)
        return shown.version != (seen[0] if since is None else since)

    shown = await read_when(
        request, read, is_awaited, channel=lifecycle.CHANNEL, payload=str(round_id), wait_s=wait
    )
    if is_known(request, shown.tag):
        return unchanged(shown.tag)
    response.headers["ETag"] = f'"{shown.tag}"'
    return shown


@router.get("/{round_id}/log")
def get_round_log(round_id: UUID, session: SessionDep, principal: CanReadRounds) -> RoundHistory:
    """Show every step of a round with its time and who took it."""
    row = queries.round_for(session, principal, round_id)
    return RoundHistory(items=[RoundStep.of(step) for step in queries.log_of(session, row.id)])


@router.post("/{round_id}/seal", status_code=202)
def seal_round(round_id: UUID, session: SessionDep, principal: CanSealRounds, vault: VaultDep) -> RoundOut:
    """Close the round to further updates and start its aggregation."""
    row = queries.round_for(session, principal, round_id, "rounds:seal")
    lifecycle.seal(session, row.id, actor=principal.actor, vault=vault)
    return queries.show(session, queries.lock_round(session, row.id))
