"""Reading data rules. Nothing here writes."""

from __future__ import annotations

from collections.abc import Iterable
from uuid import UUID

import sqlalchemy as sa
from sqlalchemy.dialects import postgresql
from sqlalchemy.orm import Session

from app.core.errors import NotFound
from app.core.i18n import _
from app.identity.models import Organisation
from app.identity.permissions import Scope, held_by, scope_of
from app.identity.roles import Principal
from app.policies.models import DataRules


def require_organisation(
    session: Session, principal: Principal, organisation_id: UUID, permission: str, *, lock: bool = False
) -> None:
    """Raise NotFound unless `permission` reaches this organisation; with `lock` hold its row."""
    statement = sa.select(Organisation.id).where(Organisation.id == organisation_id)
    if scope_of(principal, permission) is not Scope.FEDERATION:
        statement = statement.where(Organisation.id == principal.organisation_id)
    if session.scalar(statement.with_for_update() if lock else statement) is None:
        raise NotFound(_("there is no such organisation"))


def may_read(principal: Principal, organisation_id: UUID) -> bool:
    """Say whether the caller may be shown what this organisation's rules say."""
    if "data_rules:read" not in held_by(principal):
        return False
    reaches_all = scope_of(principal, "data_rules:read") is Scope.FEDERATION
    return reaches_all or principal.organisation_id == organisation_id


def versions(session: Session, principal: Principal, organisation_id: UUID) -> sa.Select[DataRules]:
    """Every version of an organisation's rules; raises NotFound."""
    require_organisation(session, principal, organisation_id, "data_rules:read")
    return sa.select(DataRules).where(DataRules.organisation_id == organisation_id)


def version_of(session: Session, principal: Principal, organisation_id: UUID, *, version: int) -> DataRules:
    """One version; raises NotFound."""
    statement = versions(session, principal, organisation_id).where(DataRules.version == version)
    row = session.scalar(statement)
    if row is None:
        raise NotFound(_("there is no such version"))
    return row


def in_force(session: Session, organisation_ids: Iterable[UUID]) -> list[DataRules]:
    """The rules in force of those organisations that have any, in the order of their ids."""
    statement = (
        sa.select(DataRules)
        .where(DataRules.organisation_id.in_(list(organisation_ids)))
        .ext(postgresql.distinct_on(DataRules.organisation_id))
        .order_by(DataRules.organisation_id, DataRules.version.desc())
    )
    return list(session.scalars(statement))
