"""Refusals that look like an attack become security events, in a transaction of their own."""

from __future__ import annotations

import structlog
from fastapi import Request
from sqlalchemy.exc import SQLAlchemyError

from app.core.errors import DomainError
from app.core.networks import subscriber
from app.http.failures import operation_of
from app.security import events
from app.security.models import Severity

log = structlog.get_logger("security")


def note_refusal(request: Request, error: DomainError) -> None:
    """Note a refusal by its code, about the caller's network; an answer never fails for it.

    What a client calls in its rounds is left out where cohorts may be secret, as metrics leave it out: that
    a proxy repeated such a call would tell who was drawn.
    """
    operation = operation_of(request.scope)
    if operation in request.app.state.metrics.hidden:
        return
    address = subscriber(request.client.host if request.client else None)
    evidence: events.Evidence = {"operation": operation, "status": error.status}
    try:
        with request.app.state.database.run_tx("note_refusal") as session:
            events.note(
                session,
                kind=error.code,
                subject=f"address:{address}",
                organisation_id=None,
                severity=Severity.WARNING,
                evidence=evidence,
            )
    except SQLAlchemyError as failed:
        log.warning("security_event_lost", kind=error.code, error=type(failed).__name__)
