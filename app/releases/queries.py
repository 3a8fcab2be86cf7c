"""Reading releases: what a caller may see. Nothing here writes."""

from __future__ import annotations

from collections.abc import Sequence
from uuid import UUID

import sqlalchemy as sa
from sqlalchemy.orm import Session

from app.core.errors import Conflict, NotFound
from app.core.i18n import _
from app.custody.keys import BlobRef
from app.identity.permissions import Scope, scope_of
from app.identity.roles import Principal
from app.releases.models import Release
from app.rounds.models import Assignment, Round


class ReleaseRolledBack(Conflict):
    """A release that training was taken back from."""

    code, title = "release_rolled_back", _("The release was rolled back")
    meaning = _("Training was taken back to before this release. Nothing goes on from it any more.")
    remedy = _("Choose an earlier release of its run; GET /v1/releases shows which were rolled back.")


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
    """The newest release of a run, rolled back or not: the one that the next certificate follows."""
    return session.scalar(
        sa.select(Release).where(Release.run_id == run_id).order_by(Release.number.desc()).limit(1)
    )


def later_in_run(session: Session, release: Release) -> Sequence[Release]:
    """The releases of the same run after this one that were not rolled back, oldest first."""
    return session.scalars(
        sa.select(Release)
        .where(
            Release.run_id == release.run_id,
            Release.number > release.number,
            Release.rolled_back_at.is_(None),
        )
        .order_by(Release.number)
    ).all()


def rolled_back_rounds(session: Session, run_id: UUID) -> set[UUID]:
    """The rounds of a run whose releases were rolled back."""
    marked = sa.select(Release.round_id).where(Release.run_id == run_id, Release.rolled_back_at.is_not(None))
    return set(session.scalars(marked))


def require_not_rolled_back(release: Release) -> None:
    """Let nothing go on from a release that was rolled back; raises ReleaseRolledBack."""
    if release.rolled_back_at is not None:
        raise ReleaseRolledBack(_("release {release_id} was rolled back"), release_id=str(release.id))


def adapter_state_of(session: Session, release_id: UUID) -> BlobRef | None:
    """Blob of the trained tensors behind a release: what a run that continues it starts from."""
    row = session.execute(
        sa.select(Release.organisation_id, Round.candidate_sha256)
        .join(Release, Release.round_id == Round.id)
        .where(Release.id == release_id)
    ).one_or_none()
    return None if row is None or row[1] is None else BlobRef(row[0], row[1])
