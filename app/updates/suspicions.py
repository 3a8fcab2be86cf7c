"""What an update tells by itself that looks like no training: bytes that were sent before, and haste.

Both are events for somebody to look at. The update is taken, and the client told nothing. Of a round that
keeps its cohort secret nothing is noted: that there is an event would tell that its client was drawn.
"""

from __future__ import annotations

from datetime import datetime

import sqlalchemy as sa
from sqlalchemy.orm import Session

from app.identity.roles import Principal
from app.rounds.models import Round
from app.runs.models import Run
from app.runs.sending import TWO_TURNS
from app.security import events
from app.security.models import Severity
from app.updates.models import Update

STEP_S = 0.001
"""No local step is faster, on whatever machine. It is a forward and a backward pass through the base model
and a clip of every example's gradient: hundreds of operations, each of which waits for the one before.
Starting one of them takes a GPU some microseconds, however small the model."""


def note_haste(
    session: Session, principal: Principal, update: Update, *, trained_from: Round, run: Run
) -> None:
    """Note an update that was announced sooner after its adapter could be had than it can be trained.

    By the database's clock alone, which every gateway shares; the time that downloads take is given away.
    """
    least_s = STEP_S * run.manifest["training"]["local_steps"]
    reads_no_data = run.manifest["lora"]["method"] in TWO_TURNS and trained_from.number % 2 == 0
    if trained_from.cohort_secret or trained_from.opened_at is None or reads_no_data:
        return
    moment: datetime = session.scalars(sa.select(sa.func.clock_timestamp())).one()
    taken_s = (moment - trained_from.opened_at).total_seconds()
    if taken_s >= least_s:
        return
    events.note(
        session,
        kind="update_too_soon",
        subject=f"client:{principal.id}",
        organisation_id=principal.organisation_id,
        severity=Severity.WARNING,
        score=1.0 - max(0.0, taken_s) / least_s,
        evidence={
            "update_id": str(update.id),
            "round_id": str(trained_from.id),
            "opened_at": trained_from.opened_at.isoformat(),
            "announced_at": moment.isoformat(),
            "taken_s": round(taken_s, 3),
            "least_s": least_s,
            "local_steps": run.manifest["training"]["local_steps"],
        },
    )


def note_copies(session: Session, principal: Principal, update: Update, *, round_: Round) -> None:
    """Note bytes that another update of the organisation had: fresh noise never makes the same twice.

    Looked at only where both are noised by their clients, or by nobody. That bytes which the server noises
    were sent before would confirm a guess of who was drawn, to whoever can compute them.
    """
    if round_.cohort_secret or round_.clip_norm is not None:
        return
    same = (
        sa.select(Update.id)
        .join(Round, Round.id == Update.round_id)
        .where(
            Update.blob_sha256 == update.blob_sha256,
            Update.id != update.id,
            Update.organisation_id == update.organisation_id,
            Round.cohort_secret.is_(False),
            Round.clip_norm.is_(None),
        )
    )
    found = session.execute(same.order_by(Update.id).limit(1)).one_or_none()
    if found is None:
        return
    events.note(
        session,
        kind="update_copied",
        subject=f"client:{principal.id}",
        organisation_id=principal.organisation_id,
        severity=Severity.WARNING,
        evidence={"update_id": str(update.id), "earlier_update_id": str(found.id)},
    )
