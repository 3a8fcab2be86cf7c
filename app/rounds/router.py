"""Rounds over HTTP: watch one, read its history, seal it."""

from __future__ import annotations

import asyncio
from typing import Annotated
from uuid import UUID

from fastapi import APIRouter, Header, Query, Request, Response
from sqlalchemy.orm import Session

from app.http.deps import SessionDep, requires, short_tx
from app.http.idempotency import IdempotentRoute
from app.identity.roles import Principal
from app.rounds import lifecycle, queries
from app.rounds.schemas import RoundHistory, RoundOut, RoundStep

router = APIRouter(prefix="/rounds", tags=["rounds"], route_class=IdempotentRoute)

LONGEST_WAIT_S = 30.0
CanReadRounds = Annotated[Principal, requires("rounds:read")]
CanSealRounds = Annotated[Principal, requires("rounds:seal")]


@router.get(
    "/{round_id}",
    response_model=RoundOut,
    responses={304: {"description": "The round is as the caller knows it."}},
)
async def get_round(
    *,
    round_id: UUID,
    request: Request,
    response: Response,
    principal: CanReadRounds,
    wait: Annotated[
        float, Query(ge=0, le=LONGEST_WAIT_S, description="Seconds to wait for a change of state.")
    ] = 0,
    since: Annotated[
        int | None, Query(ge=0, description="The version that you know; wait until it is another.")
    ] = None,
    if_none_match: Annotated[str | None, Header(max_length=200)] = None,
) -> RoundOut | Response:
    """Show a round; with `wait`, hold the answer until its state changes or the time is over.

    Without `since`, what you know is told by `If-None-Match`; with neither, the answer comes at once.
    """

    def read(session: Session) -> RoundOut:
        return queries.show(session, queries.round_for(session, principal, round_id))

    def is_known(shown: RoundOut) -> bool:
        return shown.version == since or shown.etag == if_none_match

    shown = await short_tx(request, "read_round", read)
    if wait and is_known(shown):
        loop = asyncio.get_running_loop()
        until = loop.time() + wait
        with request.app.state.hub.waiter(lifecycle.CHANNEL, str(round_id)) as changed:
            shown = await short_tx(request, "read_round", read)  # again: a change may lie between
            while is_known(shown) and await _woken(changed, until - loop.time()):
                changed.clear()
                shown = await short_tx(request, "read_round", read)
    if shown.etag == if_none_match:
        return Response(status_code=304, headers={"ETag": shown.etag})
    response.headers["ETag"] = shown.etag
    return shown


async def _woken(event: asyncio.Event, seconds: float) -> bool:
    """Wait for the event; False when the time is over first."""
    try:
        await asyncio.wait_for(event.wait(), timeout=max(seconds, 0))
    except TimeoutError:
        return False
    return True


@router.get("/{round_id}/log")
def get_round_log(round_id: UUID, session: SessionDep, principal: CanReadRounds) -> RoundHistory:
    """Show every step of a round with its time and who took it."""
    row = queries.round_for(session, principal, round_id)
    return RoundHistory(items=[RoundStep.of(step) for step in queries.log_of(session, row.id)])


@router.post("/{round_id}/seal", status_code=202)
def seal_round(round_id: UUID, session: SessionDep, principal: CanSealRounds) -> RoundOut:
    """Close the round to further updates and start its aggregation."""
    row = queries.round_for(session, principal, round_id, "rounds:seal")
    lifecycle.seal(session, row.id, actor=principal.actor)
    return queries.show(session, queries.lock_round(session, row.id))
