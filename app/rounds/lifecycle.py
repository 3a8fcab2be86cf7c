"""The life of a round: the only writer of its state. Each verb checks its precondition and commits nothing.

Every change is notified on channel `dpfl_rounds` with the round's id; when a round opens, also with
`client:<id>` for each client of its cohort, which is what their wait for an assignment listens to.
"""

from __future__ import annotations

from collections.abc import Iterable
from datetime import datetime, timedelta
from typing import Any
from uuid import UUID

import sqlalchemy as sa
from sqlalchemy.orm import Session

from app.core import clock
from app.core.db import act_as, notify
from app.core.errors import Conflict, IllegalTransition
from app.core.i18n import _
from app.jobs.queue import enqueue
from app.rounds.models import Assignment, Round
from app.rounds.queries import lock_round, updates_by_state
from app.rounds.states import RoundState, sources_of

CHANNEL = "dpfl_rounds"
PURGE_AFTER = timedelta(seconds=90)
"""The purge spares files that were written within the last minute: it comes after that."""


class QuorumMissing(Conflict):
    """Too few updates to close the round."""

    code, title = "quorum_missing", _("The quorum is not reached")
    meaning = _("The round has fewer updates than its manifest demands.")
    remedy = _("Wait for more updates or for the deadline, or abort the round.")


class RoundClosed(Conflict):
    """The round takes no updates now."""

    code, title = "round_closed", _("The round takes no updates")
    meaning = _("The round is not open: it was not opened yet, or it is sealed, published or aborted.")
    remedy = _("Wait for your next assignment. Budget that was spent for this round stays spent.")


def advance(session: Session, round_id: UUID, to: RoundState, *, actor: str, **values: Any) -> int:
    """Move a round to `to` if its current state allows it; returns the new version.

    Compare-and-set: of any number of racing callers exactly one succeeds, the others get
    IllegalTransition. `values` are further columns that change with the state.
    """
    act_as(session, actor)
    version: int | None = session.scalar(
        sa.update(Round)
        .where(Round.id == round_id, Round.state.in_(sources_of(to)))
        .values(state=to, version=Round.version + 1, **values)
        .returning(Round.version)
    )
    if version is None:
        raise IllegalTransition(_("the round cannot become {to}"), to=str(to), round_id=str(round_id))
    notify(session, CHANNEL, str(round_id))
    return version


def plan(
    session: Session,
    *,
    run_id: UUID,
    organisation_id: UUID,
    number: int,
    min_updates: int,
    max_updates: int,
    deadline: datetime,
    adapter_sha256: str,
    client_ids: Iterable[UUID],
    actor: str,
) -> Round:
    """Insert a round with its cohort, in state `planned`; `open_round` lets updates in."""
    act_as(session, actor)
    row = Round(
        run_id=run_id,
        organisation_id=organisation_id,
        number=number,
        min_updates=min_updates,
        max_updates=max_updates,
        deadline=deadline,
        adapter_sha256=adapter_sha256,
    )
    session.add(row)
    session.flush()
    session.add_all(Assignment(round_id=row.id, client_id=client_id) for client_id in client_ids)
    session.flush()
    return row


def open_round(session: Session, round_id: UUID, *, actor: str) -> None:
    """Let the cohort's updates in, and wake its clients."""
    advance(session, round_id, RoundState.OPEN, actor=actor, opened_at=sa.func.now())
    session.execute(
        sa.select(sa.func.pg_notify(CHANNEL, sa.func.concat("client:", Assignment.client_id))).where(
            Assignment.round_id == round_id
        )
    )


def hold_open(session: Session, round_id: UUID) -> Round:
    """Keep the round open until this transaction ends, so that what it adds is in the sealed set.

    Raises RoundClosed. Whoever takes an update calls this first: a racing `seal` waits for the commit.
    """
    row = lock_round(session, round_id)
    if row.state is not RoundState.OPEN:
        raise RoundClosed(_("the round is {state}"), state=str(row.state), round_id=str(round_id))
    return row


def seal(session: Session, round_id: UUID, *, actor: str) -> None:
    """Fix the set of updates for ever and ask for its aggregation; raises QuorumMissing."""
    row = lock_round(session, round_id)
    received = updates_by_state(session, round_id).get("received", 0)
    if row.state is RoundState.OPEN and received < row.min_updates:
        raise QuorumMissing(
            _("{received} of at least {min_updates} updates are there"),
            received=received,
            min_updates=row.min_updates,
        )
    advance(session, round_id, RoundState.SEALED, actor=actor, sealed_at=sa.func.now())
    enqueue(session, "aggregate", key=str(round_id), payload={"round_id": str(round_id)})


def seal_if_complete(session: Session, round_id: UUID, *, actor: str) -> bool:
    """Seal the round when no further update can come; called after one was taken.

    Complete means `max_updates` received, or the whole cohort heard of, with the quorum reached.
    """
    row = lock_round(session, round_id)
    counts = updates_by_state(session, round_id)
    received, rejected = counts.get("received", 0), counts.get("rejected", 0)
    cohort = session.scalar(
        sa.select(sa.func.count()).select_from(Assignment).where(Assignment.round_id == round_id)
    )
    complete = received >= row.max_updates or received + rejected >= (cohort or 0)
    if row.state is not RoundState.OPEN or not complete or received < row.min_updates:
        return False
    seal(session, round_id, actor=actor)
    return True


def begin_aggregation(session: Session, round_id: UUID, *, actor: str) -> None:
    """A worker computes from now on."""
    advance(session, round_id, RoundState.AGGREGATING, actor=actor)


def record_candidate(
    session: Session, round_id: UUID, *, candidate_sha256: str, device: str, actor: str
) -> None:
    """Keep the aggregated adapter and ask for its validation."""
    advance(
        session,
        round_id,
        RoundState.VALIDATING,
        actor=actor,
        candidate_sha256=candidate_sha256,
        device=device,
    )
    enqueue(session, "validate", key=str(round_id), payload={"round_id": str(round_id)})


def ask_for_publication(session: Session, round_id: UUID) -> None:
    """The candidate was found fit; publishing it is a job of its own."""
    enqueue(session, "publish", key=str(round_id), payload={"round_id": str(round_id)})


def publish(session: Session, round_id: UUID, *, actor: str) -> None:
    """The round's adapter is released, in the same transaction; its updates may be purged."""
    advance(session, round_id, RoundState.PUBLISHED, actor=actor, finished_at=sa.func.now())
    ask_for_purge(session, round_id)


def abort(session: Session, round_id: UUID, *, code: str, reason: str, actor: str) -> None:
    """End the round without an adapter. `code` is stable; both are shown to everyone who sees the round."""
    advance(
        session,
        round_id,
        RoundState.ABORTED,
        actor=actor,
        abort_code=code,
        abort_reason=reason,
        finished_at=sa.func.now(),
    )
    ask_for_purge(session, round_id)


def ask_for_purge(session: Session, round_id: UUID, *, late: UUID | None = None) -> None:
    """Have the bytes of the round's updates deleted soon; again for the update that came too `late`."""
    key, payload = (str(round_id) if late is None else f"{round_id}:{late}"), {"round_id": str(round_id)}
    enqueue(session, "purge", key=key, payload=payload, run_at=clock.now() + PURGE_AFTER)
