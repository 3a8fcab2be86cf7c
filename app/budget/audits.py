"""Empirical audits of mechanisms: asked for, recorded, listed. An audit never shows that a claim holds."""

from __future__ import annotations

from dataclasses import dataclass
from datetime import datetime
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


@dataclass(frozen=True, slots=True)
class Found:
    """The first audit of a run, and how many there were until now."""

    report: dict[str, Any]
    at: datetime
    audits: int


def first_of(session: Session, run_id: UUID) -> Found | None:
    """The first audit of a run: nobody may ask until one pleases."""
    rows = session.scalars(
        sa.select(PrivacyAudit).where(PrivacyAudit.run_id == run_id).order_by(PrivacyAudit.id)
    ).all()
    return Found(rows[0].report, rows[0].at, len(rows)) if rows else None


def is_refuted(session: Session, run_id: UUID) -> bool:
    """Say whether any audit of a run, by its plan or by hand, refuted what is claimed for its mechanism."""
    return bool(
        session.scalar(
            sa.select(sa.exists().where(PrivacyAudit.run_id == run_id, PrivacyAudit.refuted.is_(True)))
        )
    )


def audits(principal: Principal) -> sa.Select[PrivacyAudit]:
    """The audits that the caller may see: those of its organisation's runs, or all."""
    statement = sa.select(PrivacyAudit)
    if scope_of(principal, "violations:read") is Scope.FEDERATION:
        return statement
    return statement.where(PrivacyAudit.organisation_id == principal.organisation_id)
