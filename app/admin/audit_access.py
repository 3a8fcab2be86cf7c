"""Whose entries of the audit log a caller may read, and reading them."""

from __future__ import annotations

from uuid import UUID

import sqlalchemy as sa
from sqlalchemy.orm import Session

from app.audit import queries, tree
from app.audit.models import AuditCheckpoint, AuditEntry
from app.audit.queries import Filters
from app.core.errors import NotFound
from app.core.i18n import _
from app.identity.permissions import Scope, scope_of
from app.identity.roles import Principal


class LogEmpty(NotFound):
    """There is no checkpoint yet."""

    code, title = "log_empty", _("The audit log has no checkpoint yet")
    meaning = _("Nothing was logged and signed so far; that happens within seconds of the first act.")
    remedy = _("Ask again in a few seconds; if it stays, see whether the dispatcher runs.")
    retry_after_s = 2


class ProofImpossible(NotFound):
    """No proof of these numbers exists."""

    code, title = "proof_impossible", _("There is no such proof")
    meaning = _("A proof needs 0 <= index < size, or 0 < first <= second, within the newest checkpoint.")
    remedy = _("Read the newest checkpoint; its second line is the number of entries.")


def visible(principal: Principal, filters: Filters) -> sa.Select[AuditEntry]:
    """The entries that the caller may read: all, its organisation's, or its own acts."""
    statement = queries.entries(filters)
    match scope_of(principal, "audit:read"):
        case Scope.FEDERATION:
            return statement
        case Scope.ORGANISATION:
            return statement.where(AuditEntry.organisation_id == principal.organisation_id)
        case Scope.OWN:
            return statement.where(AuditEntry.actor == principal.actor)


def entry_for(session: Session, principal: Principal, entry_id: UUID) -> AuditEntry:
    """One entry that the caller may read, read afresh; raises NotFound."""
    statement = visible(principal, Filters()).where(AuditEntry.id == entry_id)
    row = session.scalar(statement.execution_options(populate_existing=True))
    if row is None:
        raise NotFound(_("there is no such entry"))
    return row


def exported_to(principal: Principal) -> UUID | None:
    """Whose entries an export shows; None for all. Of the others it has the hashes."""
    reaches_all = scope_of(principal, "audit:export") is Scope.FEDERATION
    return None if reaches_all else principal.organisation_id


def newest(session: Session) -> AuditCheckpoint:
    """The newest checkpoint; raises LogEmpty."""
    row = tree.latest(session)
    if row is None:
        raise LogEmpty(_("the log is empty"))
    return row


def require_within(session: Session, size: int) -> None:
    """Refuse a tree larger than was ever signed; raises ProofImpossible."""
    row = tree.latest(session)
    most = 0 if row is None else row.size
    if size > most:
        raise ProofImpossible(_("the log has {size} signed entries"), size=most)
