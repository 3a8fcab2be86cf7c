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
from app.rounds.queries import adapter_at
from app.runs.models import Run
from app.runs.sending import TWO_TURNS
from app.security import events
from app.security.models import Severity
from app.updates.models import Update

STEP_S = 1e-4
"""No local step is faster, on whatever machine. A step without a single example, which is all that a client
without data does, still draws noise for each tensor and moves it: dozens of operations in a row, each of
which costs microseconds to begin. The bundled client takes a millisecond for it, for the smallest of models.
"""


def note_haste(
    session: Session, principal: Principal, update: Update, *, trained_from: Round, run: Run
) -> None:
    """Note an update whose client never asked for the adapter, or sooner after it than it can be trained.

    By the database's clock alone, which every gateway shares; the time that the download takes is given away.
    """
    if trained_from.cohort_secret or _needs_no_training(run, trained_from):
        return
    steps: int = run.manifest["training"]["local_steps"]
    moment: datetime = session.scalars(sa.select(sa.func.clock_timestamp())).one()
    asked_at = adapter_at(session, trained_from.id, principal.id)
    least_s = STEP_S * steps
    taken_s = None if asked_at is None else max(0.0, (moment - asked_at).total_seconds())
    if taken_s is not None and taken_s >= least_s:
        return
    events.note(
        session,
        kind="update_untrained" if taken_s is None else "update_too_soon",
        subject=f"client:{principal.id}",
        organisation_id=principal.organisation_id,
        severity=Severity.WARNING,
        score=None if taken_s is None else 1.0 - taken_s / least_s,
        evidence={
            "update_id": str(update.id),
            "round_id": str(trained_from.id),
            "adapter_asked_at": None if asked_at is None else asked_at.isoformat(),
            "announced_at": moment.isoformat(),
            "taken_s": None if taken_s is None else round(taken_s, 4),
            "least_s": least_s,
            "local_steps": steps,
        },
    )


def _needs_no_training(run: Run, round_: Round) -> bool:
    """The second message about one training says what the first left out, and reads no data."""
    return run.manifest["lora"]["method"] in TWO_TURNS and round_.number % 2 == 0


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
