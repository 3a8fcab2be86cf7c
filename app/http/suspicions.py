"""Refusals that look like an attack become security events, in a transaction of their own."""

from __future__ import annotations

import structlog
from fastapi import Request
from sqlalchemy.exc import SQLAlchemyError

from app.core.errors import DomainError
from app.http.failures import operation_of
from app.security import events
from app.security.models import Severity

log = structlog.get_logger("security")


def note_refusal(request: Request, error: DomainError) -> None:
    """Note a refusal by its code, about the caller's address; an answer never fails for it."""
    address = request.client.host if request.client else "unknown"
    evidence: events.Evidence = {"operation": operation_of(request.scope), "status": error.status}
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
