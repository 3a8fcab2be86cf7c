"""The updates of a round that is over: their bytes are deleted, their rows stay."""

from __future__ import annotations

from uuid import UUID

import sqlalchemy as sa
from sqlalchemy.orm import Session

from app.custody.keys import BlobRef
from app.jobs import leases
from app.jobs.leases import Claim
from app.releases.models import Release
from app.rounds.models import Round
from app.rounds.queries import get_round
from app.rounds.states import FINAL
from app.runs.models import Run
from app.updates.models import Update
from workers.context import Context

YOUNG_S = 60.0
"""Bytes that came this short ago may belong to an upload that is about to be accepted."""


class TooYoung(Exception):
    """A blob came a moment ago; the job is tried again later."""


def run(context: Context, claim: Claim) -> None:
    """Delete the blobs of one round's updates, except those that something else still needs."""
    round_id = UUID(claim.payload["round_id"])
    with context.database.run_tx("purge read") as session:
        leases.fence(session, claim)
        round_ = get_round(session, round_id)
        if round_.state not in FINAL:
            return
        refs = _only_of(session, round_id)
    young = context.blobs.young(refs, within_s=YOUNG_S)
    if young and not round_.cohort_secret:
        raise TooYoung
    # A secret cohort's job is never seen to wait for a member; its second job, a day later, takes the rest.
    for ref in refs:
        if ref not in young:
            context.blobs.delete_old(ref, min_age_s=YOUNG_S)


def _only_of(session: Session, round_id: UUID) -> list[BlobRef]:
    """Blobs of a round's updates to which no adapter and no update of an unfinished round points.

    By the announced digest: bytes that arrived whole and came too late for the round are there as well.
    """
    own = sa.tuple_(Update.organisation_id, Update.declared_sha256)
    elsewhere = (
        sa.select(Update.organisation_id, Update.declared_sha256)
        .join(Round, Round.id == Update.round_id)
        .where(Round.state.not_in(FINAL))
    )
    adapters: sa.CompoundSelect[UUID, str | None] = sa.union_all(
        sa.select(Round.organisation_id, Round.adapter_sha256),
        sa.select(Round.organisation_id, Round.candidate_sha256).where(Round.candidate_sha256.is_not(None)),
        sa.select(Round.organisation_id, Round.optimizer_sha256).where(Round.optimizer_sha256.is_not(None)),
        sa.select(Release.organisation_id, Release.adapter_sha256),
        sa.select(Run.organisation_id, Run.start_adapter_sha256).where(Run.start_adapter_sha256.is_not(None)),
    )
    rows = session.execute(
        sa.select(Update.organisation_id, Update.declared_sha256)
        .where(Update.round_id == round_id, own.not_in(elsewhere), own.not_in(adapters))
        .distinct()
    )
    return [BlobRef(tenant, sha256) for tenant, sha256 in rows]
