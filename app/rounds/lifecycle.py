"""The life of a round: the only writer of its state. Each verb checks its precondition and commits nothing.

A round whose cohort is secret tells nobody who takes part or how many: not in its history, its jobs or its
refusals. When it is sealed, and when its deadline was, is public.

Every change is notified on channel `dpfl_rounds` with the round's id; when a round opens, also with
`client:<id>` for each client of its cohort, which is what their wait for an assignment listens to.
"""

from __future__ import annotations

from collections.abc import Iterable, Mapping, Sequence
from datetime import datetime, timedelta
from typing import Any
from uuid import UUID

import sqlalchemy as sa
from sqlalchemy.orm import Session

from app.audit.record import Action, record
from app.core import clock
from app.core.canonical import canonical_sha256
from app.core.crypto import Vault
from app.core.db import act_as, notify
from app.core.errors import Conflict, IllegalTransition
from app.core.i18n import _
from app.jobs.queue import enqueue
from app.rounds import canaries, noise_secrets
from app.rounds.models import Assignment, Round
from app.rounds.queries import cohort_size, get_round, lock_round, sealed_set, updates_by_state
from app.rounds.states import RoundState, sources_of

CHANNEL = "dpfl_rounds"
PURGE_AFTER = timedelta(seconds=90)
"""The purge spares files that were written within the last minute: it comes after that."""
SECOND_PURGE_AFTER = timedelta(days=1)
"""Of a round with a secret cohort: whether an update came too late is not to be read from its jobs."""
UNNAMED = "cohort"
"""Who sealed a round with a secret cohort by completing it."""


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
    ranks: Mapping[UUID, int] | None = None,
    clip_norm: float | None = None,
    cohort_secret: bool = False,
    drawn_canaries: Sequence[int] | None = None,
) -> Round:
    """Insert a round with its cohort, in state `planned`; `open_round` lets updates in.

    `ranks` says at which LoRA rank clients train where a run mixes them; `clip_norm` is given where the
    server adds the noise; `cohort_secret` where its price rests on that; `drawn_canaries` where the run has
    canaries, none of them being drawn included.
    """
    act_as(session, actor)
    row = Round(
        run_id=run_id,
        organisation_id=organisation_id,
        number=number,
        min_updates=min_updates,
        max_updates=max_updates,
        deadline=deadline,
        adapter_sha256=adapter_sha256,
        clip_norm=clip_norm,
        cohort_secret=cohort_secret,
    )
    _add(session, row, client_ids, ranks or {})
    if drawn_canaries is not None:
        canaries.keep_draw(session, row.id, drawn_canaries)
    return row


def _add(session: Session, row: Round, client_ids: Iterable[UUID], ranks: Mapping[UUID, int]) -> None:
    """Insert a round and its cohort."""
    session.add(row)
    session.flush()
    session.add_all(Assignment(round_id=row.id, client_id=one, rank=ranks.get(one)) for one in client_ids)
    session.flush()


def open_round(session: Session, round_id: UUID, *, actor: str) -> None:
    """Let the cohort's updates in, and wake its clients. A drawn cohort may be empty."""
    advance(session, round_id, RoundState.OPEN, actor=actor, opened_at=sa.func.now())
    if get_round(session, round_id).cohort_secret:  # empty or not: the job itself tells nothing
        enqueue(session, "deadline", key=f"{round_id}:opened", payload={"round_id": str(round_id)})
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


def seal(session: Session, round_id: UUID, *, actor: str, vault: Vault) -> None:
    """Fix the set of updates for ever and ask for its aggregation; raises QuorumMissing.

    Where the server adds the noise, the secret behind it is drawn in this same transaction.
    """
    row = lock_round(session, round_id)
    received = updates_by_state(session, round_id).get("received", 0)
    if row.state is RoundState.OPEN and received < row.min_updates:
        raise QuorumMissing(
            _("{received} of at least {min_updates} updates are there"),
            received=received,
            min_updates=row.min_updates,
        )
    advance(session, round_id, RoundState.SEALED, actor=actor, sealed_at=sa.func.now())
    if row.clip_norm is not None:
        noise_secrets.make(session, vault, round_id)
    enqueue(session, "aggregate", key=str(round_id), payload={"round_id": str(round_id)})
    sealed = canonical_sha256(sealed_set(session, round_id))
    _note(session, Action.ROUND_SEALED, round_id, actor=actor, concealed={"sealed_set_sha256": sealed})


def seal_if_complete(session: Session, round_id: UUID, *, actor: str, vault: Vault) -> bool:
    """Seal the round when no further update can come; called after one was taken.

    Complete means `max_updates` received, or the whole cohort heard of, with the quorum reached.
    """
    row = lock_round(session, round_id)
    counts = updates_by_state(session, round_id)
    received, rejected = counts.get("received", 0), counts.get("rejected", 0)
    complete = received >= row.max_updates or received + rejected >= cohort_size(session, round_id)
    if row.state is not RoundState.OPEN or not complete or received < row.min_updates:
        return False
    seal(session, round_id, actor=UNNAMED if row.cohort_secret else actor, vault=vault)
    return True


def begin_aggregation(session: Session, round_id: UUID, *, actor: str) -> None:
    """A worker computes from now on."""
    advance(session, round_id, RoundState.AGGREGATING, actor=actor)


def record_candidate(
    session: Session,
    round_id: UUID,
    *,
    candidate_sha256: str,
    device: str,
    actor: str,
    next_clip_norm: float | None = None,
    optimizer_sha256: str | None = None,
    target_norm: float | None = None,
    missed_norm: float | None = None,
) -> None:
    """Keep the aggregated adapter and what the next round goes on from; ask for its validation."""
    advance(
        session,
        round_id,
        RoundState.VALIDATING,
        actor=actor,
        candidate_sha256=candidate_sha256,
        device=device,
        next_clip_norm=next_clip_norm,
        optimizer_sha256=optimizer_sha256,
        target_norm=target_norm,
        missed_norm=missed_norm,
    )
    enqueue(session, "validate", key=str(round_id), payload={"round_id": str(round_id)})


def ask_for_publication(session: Session, round_id: UUID) -> None:
    """The candidate was found fit; publishing it is a job of its own."""
    enqueue(session, "publish", key=str(round_id), payload={"round_id": str(round_id)})


def publish(session: Session, round_id: UUID, *, actor: str) -> None:
    """The round's adapter is released, in the same transaction; its updates may be purged."""
    advance(session, round_id, RoundState.PUBLISHED, actor=actor, finished_at=sa.func.now())
    _note(session, Action.ROUND_PUBLISHED, round_id, actor=actor)
    _clean_up(session, round_id)


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
    _note(session, Action.ROUND_ABORTED, round_id, actor=actor, code=code, committed={"reason": reason})
    _clean_up(session, round_id)


def _note(
    session: Session,
    action: Action,
    round_id: UUID,
    *,
    actor: str,
    code: str | None = None,
    committed: Mapping[str, Any] | None = None,
    concealed: Mapping[str, Any] | None = None,
) -> None:
    row = get_round(session, round_id)
    record(
        session,
        action=action,
        actor=actor,
        organisation_id=row.organisation_id,
        subject=f"round:{round_id}",
        details={"run_id": str(row.run_id), "number": row.number, "code": code},
        committed=committed,
        concealed=concealed,
    )


def _clean_up(session: Session, round_id: UUID) -> None:
    """The round is over: its noise secret goes, and the bytes of its updates soon after."""
    noise_secrets.destroy(session, round_id)
    _enqueue_purge(session, round_id, key=str(round_id), after=PURGE_AFTER)
    if get_round(session, round_id).cohort_secret:
        _enqueue_purge(session, round_id, key=f"{round_id}:again", after=SECOND_PURGE_AFTER)


def purge_late(session: Session, round_id: UUID, update_id: UUID) -> None:
    """Have the bytes of an update deleted that came when its round was closed.

    Of a secret cohort no update may leave a trace of its own: the second purge of its round finds it.
    """
    if not get_round(session, round_id).cohort_secret:
        _enqueue_purge(session, round_id, key=f"{round_id}:{update_id}", after=PURGE_AFTER)


def _enqueue_purge(session: Session, round_id: UUID, *, key: str, after: timedelta) -> None:
    enqueue(session, "purge", key=key, payload={"round_id": str(round_id)}, run_at=clock.now() + after)
