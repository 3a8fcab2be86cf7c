"""The updates of a round that is over: their bytes are deleted, their rows stay."""

from __future__ import annotations

import time
from pathlib import Path
from uuid import UUID

import sqlalchemy as sa
from sqlalchemy.orm import Session

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
"""A file that was written this short ago may belong to an upload that is about to be accepted."""


class TooYoung(Exception):
    """A blob was written a moment ago; the job is tried again later."""


def run(context: Context, claim: Claim) -> None:
    """Delete the blobs of one round's updates, except those that something else still needs."""
    round_id = UUID(claim.payload["round_id"])
    with context.database.run_tx("purge read") as session:
        leases.fence(session, claim)
        round_ = get_round(session, round_id)
        if round_.state not in FINAL:
            return
        digests = _only_of(session, round_id)
    young = {digest for digest in digests if _is_young(context.blobs.path(digest))}
    if young and not round_.cohort_secret:
        raise TooYoung
    # A secret cohort's job is never seen to wait for a member; its second job, a day later, takes the rest.
    for digest in digests:
        if digest not in young:
            context.blobs.delete_old(digest, min_age_s=YOUNG_S)


def _is_young(path: Path) -> bool:
    return path.is_file() and time.time() - path.stat().st_mtime < YOUNG_S


def _only_of(session: Session, round_id: UUID) -> list[str]:
    """Blobs of a round's updates to which no adapter and no update of an unfinished round points.

    By the announced digest: bytes that arrived whole and came too late for the round are there as well.
    """
    elsewhere = (
        sa.select(Update.declared_sha256)
        .join(Round, Round.id == Update.round_id)
        .where(Round.state.not_in(FINAL))
    )
    adapters: sa.CompoundSelect[str | None] = sa.union_all(
        sa.select(Round.adapter_sha256),
        sa.select(Round.candidate_sha256).where(Round.candidate_sha256.is_not(None)),
        sa.select(Round.optimizer_sha256).where(Round.optimizer_sha256.is_not(None)),
        sa.select(Release.adapter_sha256),
        sa.select(Run.start_adapter_sha256).where(Run.start_adapter_sha256.is_not(None)),
    )
    return [
        str(digest)
        for digest in session.scalars(
            sa.select(Update.declared_sha256)
            .where(
                Update.round_id == round_id,
                Update.declared_sha256.not_in(elsewhere),
                Update.declared_sha256.not_in(adapters),
            )
            .distinct()
        )
    ]
