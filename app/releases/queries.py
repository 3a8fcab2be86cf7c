"""Reading releases: what a caller may see. Nothing here writes."""

from __future__ import annotations

from uuid import UUID

import sqlalchemy as sa
from sqlalchemy.orm import Session

from app.core.errors import NotFound
from app.core.i18n import _
from app.custody.keys import BlobRef
from app.identity.permissions import Scope, scope_of
from app.identity.roles import Principal
from app.releases.models import Release
from app.rounds.models import Assignment, Round


def releases(principal: Principal) -> sa.Select[Release]:
    """The releases within the caller's scope; a training client sees those of rounds it was asked for."""
    statement = sa.select(Release)
    match scope_of(principal, "releases:read"):
        case Scope.FEDERATION:
            return statement
        case Scope.ORGANISATION:
            return statement.where(Release.organisation_id == principal.organisation_id)
        case Scope.OWN:
            mine = sa.select(Assignment.round_id).where(Assignment.client_id == principal.id)
            return statement.where(Release.round_id.in_(mine))


def release_for(session: Session, principal: Principal, release_id: UUID) -> Release:
    """One release that the caller may see; raises NotFound."""
    row = session.scalar(releases(principal).where(Release.id == release_id))
    if row is None:
        raise NotFound(_("there is no such release"))
    return row


def release_of_round(session: Session, round_id: UUID) -> Release | None:
    """The release that a round was published as."""
    return session.scalar(sa.select(Release).where(Release.round_id == round_id))


def latest_of_run(session: Session, run_id: UUID) -> Release | None:
    """The newest release of a run."""
    return session.scalar(
        sa.select(Release).where(Release.run_id == run_id).order_by(Release.number.desc()).limit(1)
    )


def adapter_state_of(session: Session, release_id: UUID) -> BlobRef | None:
    """Blob of the trained tensors behind a release: what a run that continues it starts from."""
    row = session.execute(
        sa.select(Release.organisation_id, Round.candidate_sha256)
        .join(Release, Release.round_id == Round.id)
        .where(Release.id == release_id)
    ).one_or_none()
    return None if row is None or row[1] is None else BlobRef(row[0], row[1])
