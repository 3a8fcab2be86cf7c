"""Security events over HTTP: a list, a live feed, and what was made of them."""

from __future__ import annotations

from collections.abc import Sequence
from datetime import datetime
from typing import Annotated, Any
from uuid import UUID

from fastapi import APIRouter, Request
from pydantic import BaseModel, ConfigDict, StringConstraints

from app.core.strict import StrictModel
from app.http.deps import SessionDep, requires
from app.http.idempotency import IdempotentRoute
from app.http.longpoll import Since, WaitS, read_when
from app.http.pagination import MAX_PAGE, Page, PageDep, page
from app.identity.permissions import Scope, scope_of
from app.identity.roles import Principal
from app.security import events
from app.security.kinds import Advice
from app.security.models import SecurityEvent, Severity

router = APIRouter(prefix="/security-events", tags=["security"], route_class=IdempotentRoute)
CanRead = Annotated[Principal, requires("security_events:read")]
Reason = Annotated[str, StringConstraints(strict=True, min_length=3, max_length=1000)]


class EventView(BaseModel):
    """One kind of thing about one subject within one hour."""

    model_config = ConfigDict(from_attributes=True)

    id: UUID
    version: int
    kind: str
    subject: str
    organisation_id: UUID | None
    severity: Severity
    score: float
    """0 (may well be an accident) to 1 (cannot be one)."""
    advice: Advice
    """What to do first; nothing does it by itself."""
    count: int
    evidence: dict[str, Any]
    first_at: datetime
    last_at: datetime
    resolved_at: datetime | None
    resolved_by: str | None
    resolution: str | None


class Feed(BaseModel):
    """What has changed since a version, oldest change first."""

    items: list[EventView]
    version: int
    """Ask for what comes after this one next."""


class ResolutionIn(StrictModel):
    """What was made of an event."""

    model_config = ConfigDict(json_schema_extra={"examples": [{"reason": "A test of ours, announced."}]})

    reason: Reason


def _organisation(principal: Principal) -> UUID | None:
    reaches_all = scope_of(principal, "security_events:read") is Scope.FEDERATION
    return None if reaches_all else principal.organisation_id


@router.get("")
def list_security_events(params: PageDep, session: SessionDep, principal: CanRead) -> Page[EventView]:
    """List events of your organisation, newest first; administrators see all."""
    statement = events.events(_organisation(principal))
    rows, cursor = page(session, statement, SecurityEvent.id, params, newest_first=True)
    return Page(items=[EventView.model_validate(row) for row in rows], next_cursor=cursor)


@router.get("/feed")
async def follow_security_events(
    request: Request, principal: CanRead, wait: WaitS = 0.0, since: Since = None
) -> Feed:
    """Wait for events that are new or have changed since a version; without one, for any from now on."""
    after, organisation_id = since or 0, _organisation(principal)
    statement = events.events(organisation_id).where(SecurityEvent.version > after)
    rows: Sequence[EventView] = await read_when(
        request,
        lambda session: [
            EventView.model_validate(row)
            for row in session.scalars(statement.order_by(SecurityEvent.version).limit(MAX_PAGE))
        ],
        bool,
        channel=events.CHANNEL,
        payload=events.PAYLOAD,
        wait_s=wait,
    )
    return Feed(items=list(rows), version=max([after, *(row.version for row in rows)]))


@router.post("/{event_id}/resolve")
def resolve_security_event(
    event_id: UUID,
    body: ResolutionIn,
    session: SessionDep,
    principal: Annotated[Principal, requires("security_events:resolve")],
) -> EventView:
    """Write down what was made of an event. It opens again when more of the same is seen."""
    return EventView.model_validate(
        events.resolve(session, event_id, actor=principal.actor, reason=body.reason)
    )
