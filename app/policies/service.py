"""Setting data rules. Versions are added and never changed; the database refuses anything else."""

from __future__ import annotations

from uuid import UUID

import sqlalchemy as sa
from sqlalchemy.orm import Session

from app.audit.record import Action, record
from app.core.canonical import canonical_sha256
from app.identity.roles import Principal
from app.policies.models import DataRules
from app.policies.queries import require_organisation
from app.policies.rules import Rules


def set_rules(session: Session, principal: Principal, organisation_id: UUID, *, rules: Rules) -> DataRules:
    """Put a new version of an organisation's rules in force; raises NotFound."""
    # The organisation's row is held, so that of two at a time each gets a number of its own.
    require_organisation(session, principal, organisation_id, "data_rules:set", lock=True)
    last = session.scalar(
        sa.select(sa.func.max(DataRules.version)).where(DataRules.organisation_id == organisation_id)
    )
    document = rules.model_dump(mode="json")
    row = DataRules(
        organisation_id=organisation_id,
        version=(last or 0) + 1,
        rules=document,
        sha256=canonical_sha256(document),
        created_by=principal.actor,
    )
    session.add(row)
    session.flush()
    record(
        session,
        action=Action.DATA_RULES_SET,
        actor=principal.actor,
        organisation_id=organisation_id,
        subject=f"organisation:{organisation_id}",
        details={"version": row.version, "rules_sha256": row.sha256},
    )
    return row
