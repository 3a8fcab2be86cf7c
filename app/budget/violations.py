"""What went against a privacy promise, or would have: recorded where it is found, counted for operators.

A record is evidence and stays. It names rules and numbers, never data, and never a client of a secret cohort.
"""

from __future__ import annotations

from typing import Any
from uuid import UUID

import sqlalchemy as sa
from sqlalchemy.dialects import postgresql
from sqlalchemy.orm import Session

from app.audit.record import Action
from app.audit.record import record as note_act
from app.budget.models import PrivacyViolation, ViolationKind
from app.core.ids import new_id
from app.identity.permissions import Scope, scope_of
from app.identity.roles import Principal

__all__ = ["ViolationKind", "counted", "counts_for", "record", "record_first", "record_once"]


def record(
    session: Session,
    kind: ViolationKind,
    *,
    organisation_id: UUID,
    run_id: UUID | None = None,
    client_id: UUID | None = None,
    detail: dict[str, Any],
) -> None:
    """Note a violation, in the transaction that found it.

    `client_id` only where it is public who takes part; under a secret cohort it is never given.
    """
    row = PrivacyViolation(
        kind=kind, organisation_id=organisation_id, run_id=run_id, client_id=client_id, detail=detail
    )
    session.add(row)
    session.flush()
    _note(session, row)


def record_once(
    session: Session,
    kind: ViolationKind,
    *,
    organisation_id: UUID,
    run_id: UUID | None = None,
    client_id: UUID | None = None,
    detail: dict[str, Any],
) -> bool:
    """Note a violation that a check finds again and again; False when one with this detail is known."""
    known = session.scalar(
        sa.select(PrivacyViolation.id)
        .where(
            PrivacyViolation.kind == kind,
            PrivacyViolation.organisation_id == organisation_id,
            PrivacyViolation.run_id.is_not_distinct_from(run_id),
            PrivacyViolation.client_id.is_not_distinct_from(client_id),
            PrivacyViolation.detail == detail,
        )
        .limit(1)
    )
    if known is None:
        record(
            session,
            kind,
            organisation_id=organisation_id,
            run_id=run_id,
            client_id=client_id,
            detail=detail,
        )
    return known is None


def record_first(
    session: Session,
    kind: ViolationKind,
    *,
    once: str,
    organisation_id: UUID,
    run_id: UUID,
    client_id: UUID,
    detail: dict[str, Any],
) -> bool:
    """Note the first violation of a kind under the name `once`; False when there is one.

    Whoever causes it chooses `detail`, and may cause it as often as it likes, at the same time: the name is
    unique in the table, so that one row is all that it gets.
    """
    statement = (
        postgresql.insert(PrivacyViolation)
        .values(
            id=new_id(),
            kind=kind,
            once=f"{kind.value}:{once}",
            organisation_id=organisation_id,
            run_id=run_id,
            client_id=client_id,
            detail=detail,
        )
        .on_conflict_do_nothing(index_elements=["once"])
        .returning(PrivacyViolation)
    )
    row: PrivacyViolation | None = session.scalar(statement)
    if row is not None:
        _note(session, row)
    return row is not None


def _note(session: Session, row: PrivacyViolation) -> None:
    note_act(
        session,
        action=Action.VIOLATION_FOUND,
        actor="server",
        organisation_id=row.organisation_id,
        subject=f"violation:{row.id}",
        details={
            "kind": row.kind.value,
            "run_id": None if row.run_id is None else str(row.run_id),
            "client_id": None if row.client_id is None else str(row.client_id),
        },
        committed={"detail": row.detail},
    )


def counted(session: Session) -> dict[ViolationKind, int]:
    """How many of each kind there are in the federation; every kind is named."""
    return _counts(session, sa.true())


def counts_for(session: Session, principal: Principal) -> dict[ViolationKind, int]:
    """How many of each kind the caller may see: those of its organisation's runs, or all."""
    if scope_of(principal, "violations:read") is Scope.FEDERATION:
        return counted(session)
    return _counts(session, PrivacyViolation.organisation_id == principal.organisation_id)


def _counts(session: Session, which: sa.ColumnElement[bool]) -> dict[ViolationKind, int]:
    rows = session.execute(
        sa.select(PrivacyViolation.kind, sa.func.count()).where(which).group_by(PrivacyViolation.kind)
    )
    return dict.fromkeys(ViolationKind, 0) | {row[0]: row[1] for row in rows}
