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

SUM, RUN = "final_iterate", "sum_of_rounds"
"""What an audit is of, by its report's statistic: one sum of the code, or the rounds of the run itself."""


def record(
    session: Session, *, organisation_id: UUID, run_id: UUID, manifest_sha256: str, report: dict[str, Any]
) -> None:
    """Keep a report; one that refutes its claim is a violation as well.

    `manifest_sha256` is of the frozen manifest that was audited: the report counts for that one alone.
    """
    refuted = bool(report["refuted"])
    session.add(
        PrivacyAudit(
            organisation_id=organisation_id,
            run_id=run_id,
            manifest_sha256=manifest_sha256,
            refuted=refuted,
            report=report,
        )
    )
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
    """The first audit of its kind of a run's frozen manifest, and how many there were until now."""

    report: dict[str, Any]
    at: datetime
    audits: int


def first_of(session: Session, run_id: UUID, manifest_sha256: str | None, *, of: str) -> Found | None:
    """The first audit of a run under this manifest, of `SUM` or `RUN`: nobody may ask until one pleases."""
    rows = session.scalars(
        sa.select(PrivacyAudit)
        .where(*_of(run_id, manifest_sha256), PrivacyAudit.report["statistic"].as_string() == of)
        .order_by(PrivacyAudit.id)
    ).all()
    return Found(rows[0].report, rows[0].at, len(rows)) if rows else None


def is_refuted(session: Session, run_id: UUID, manifest_sha256: str | None) -> bool:
    """Say whether any audit of a run under this manifest, by its plan or by hand, refuted the claim."""
    refuting = sa.exists().where(*_of(run_id, manifest_sha256), PrivacyAudit.refuted.is_(True))
    return bool(session.scalar(sa.select(refuting)))


def refuted_claims() -> sa.Select[UUID, str | None]:
    """Runs, with their manifests, whose claim any audit refuted: no sum of epsilons covers them."""
    return sa.select(PrivacyAudit.run_id, PrivacyAudit.manifest_sha256).where(PrivacyAudit.refuted.is_(True))


def _of(run_id: UUID, manifest_sha256: str | None) -> tuple[sa.ColumnElement[bool], ...]:
    """No audit is of a manifest that is not frozen yet: null equals nothing."""
    return PrivacyAudit.run_id == run_id, PrivacyAudit.manifest_sha256 == manifest_sha256


def audits(principal: Principal) -> sa.Select[PrivacyAudit]:
    """The audits that the caller may see: those of its organisation's runs, or all."""
    statement = sa.select(PrivacyAudit)
    if scope_of(principal, "violations:read") is Scope.FEDERATION:
        return statement
    return statement.where(PrivacyAudit.organisation_id == principal.organisation_id)
