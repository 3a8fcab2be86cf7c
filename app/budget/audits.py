"""Empirical audits of mechanisms: asked for, recorded, listed. An audit never shows that a claim holds."""

from __future__ import annotations

from typing import Any
from uuid import UUID

import sqlalchemy as sa
from sqlalchemy.orm import Session

from app.budget import violations
from app.budget.models import PrivacyAudit, ViolationKind
from app.identity.permissions import Scope, scope_of
from app.identity.roles import Principal


def record(session: Session, *, organisation_id: UUID, run_id: UUID, report: dict[str, Any]) -> None:
    """Keep a report; one that refutes its claim is a violation as well."""
    refuted = bool(report["refuted"])
    session.add(PrivacyAudit(organisation_id=organisation_id, run_id=run_id, refuted=refuted, report=report))
    if refuted:
        detail = {
            name: report[name] for name in ("claimed_epsilon", "claimed_delta", "lower_bound", "method")
        }
        violations.record(
            session,
            ViolationKind.SCALED_NOISE,
            organisation_id=organisation_id,
            run_id=run_id,
            detail=detail,
        )
    session.flush()


def audits(principal: Principal) -> sa.Select[PrivacyAudit]:
    """The audits that the caller may see: those of its organisation's runs, or all."""
    statement = sa.select(PrivacyAudit)
    if scope_of(principal, "violations:read") is Scope.FEDERATION:
        return statement
    return statement.where(PrivacyAudit.organisation_id == principal.organisation_id)
