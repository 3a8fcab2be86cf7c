"""Clients' mean updates over a run's rounds: kept while the run needs them, found, and forgotten.

What they are is workers/means.py. Commits nothing.
"""

from __future__ import annotations

from collections.abc import Collection
from uuid import UUID

import sqlalchemy as sa
from sqlalchemy.dialects.postgresql import distinct_on
from sqlalchemy.orm import Session, aliased

from app.custody import keys
from app.custody.keys import BlobRef
from app.rounds.models import Round
from app.rounds.states import FINAL
from app.runs.models import Run
from app.runs.states import RunState
from app.updates.models import UpdateMean

_OVER = (RunState.FINISHED, RunState.ABORTED)


def latest(session: Session, run_id: UUID, client_ids: Collection[UUID]) -> list[tuple[UpdateMean, int]]:
    """Each client's last mean in a run, and the number of its round; clients that have none are missing.

    So are those whose organisation had its keys erased meanwhile: they begin anew.
    """
    rows = session.execute(
        sa.select(UpdateMean, Round.number)
        .join(Round, Round.id == UpdateMean.round_id)
        .where(Round.run_id == run_id, UpdateMean.client_id.in_(client_ids))
        .ext(distinct_on(UpdateMean.client_id))
        .order_by(UpdateMean.client_id, Round.number.desc())
    ).all()
    kept = keys.readable(session, [ref_of(mean) for mean, _number in rows])
    return [(mean, number) for mean, number in rows if ref_of(mean) in kept]


def ref_of(mean: UpdateMean) -> BlobRef:
    """Its bytes."""
    return BlobRef(mean.organisation_id, mean.blob_sha256)


def stale(session: Session, *, at_most: int) -> list[tuple[UUID, UUID, BlobRef]]:
    """Means that no round will read again: their round, their client, and their bytes.

    Those after which the same client has a later one, and those of runs that are over.
    """
    this, later, own, unfinished = aliased(Round), aliased(Round), aliased(UpdateMean), aliased(Round)
    is_superseded = sa.exists().where(
        own.client_id == UpdateMean.client_id,
        own.round_id == later.id,
        later.run_id == this.run_id,
        later.number > this.number,
    )
    is_over = sa.exists().where(Run.id == this.run_id, Run.state.in_(_OVER)) & ~sa.exists().where(
        unfinished.run_id == this.run_id, unfinished.state.not_in(FINAL)
    )
    rows = session.scalars(
        sa.select(UpdateMean)
        .join(this, this.id == UpdateMean.round_id)
        .where(is_superseded | is_over)
        .order_by(UpdateMean.round_id, UpdateMean.client_id)
        .limit(at_most)
    )
    return [(row.round_id, row.client_id, ref_of(row)) for row in rows]


def forget(session: Session, places: Collection[tuple[UUID, UUID]]) -> None:
    """Delete the rows of means by round and client, once their bytes are gone."""
    session.execute(
        sa.delete(UpdateMean).where(sa.tuple_(UpdateMean.round_id, UpdateMean.client_id).in_(places))
    )
