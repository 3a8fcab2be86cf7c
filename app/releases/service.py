"""Recording releases. A release is inserted once, by the publish job; only a roll-back's mark is added."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any
from uuid import UUID

from sqlalchemy.orm import Session

from app.audit.record import Action, record
from app.core import clock
from app.core.canonical import canonical_sha256
from app.releases import certificate
from app.releases.certificate import Facts, Sign
from app.releases.models import Release

SERVER = "server"


def keep(
    session: Session,
    *,
    facts: Facts,
    organisation_id: UUID,
    size_bytes: int,
    optimizer_sha256: str | None,
    adapter_config: Mapping[str, Any],
    parent_id: UUID | None,
    sign: Sign,
) -> Release:
    """Sign the certificate of a published adapter and record both."""
    row = Release(
        id=facts.release_id,
        run_id=facts.run_id,
        round_id=facts.round_id,
        organisation_id=organisation_id,
        number=facts.number,
        adapter_sha256=facts.adapter_sha256,
        size_bytes=size_bytes,
        optimizer_sha256=optimizer_sha256,
        adapter_config=dict(adapter_config),
        certificate=certificate.sign(certificate.build(facts), sign),
        parent_id=parent_id,
    )
    session.add(row)
    session.flush()
    _note(session, row)
    return row


def mark_rolled_back(session: Session, rows: Sequence[Release], *, actor: str, reason: str) -> None:
    """Mark releases as rolled back, for good; their files and certificates stay as they are."""
    moment = clock.now()
    for row in rows:
        row.rolled_back_at, row.rolled_back_by, row.rollback_reason = moment, actor, reason
    session.flush()


def _note(session: Session, row: Release) -> None:
    record(
        session,
        action=Action.RELEASE_PUBLISHED,
        actor=SERVER,
        organisation_id=row.organisation_id,
        subject=f"release:{row.id}",
        details={
            "run_id": str(row.run_id),
            "number": row.number,
            "adapter_sha256": row.adapter_sha256,
            "certificate_sha256": canonical_sha256(row.certificate),
        },
    )
