"""Reading rounds. Nothing here writes."""

from __future__ import annotations

from collections.abc import Sequence
from datetime import datetime
from typing import Literal
from uuid import UUID

import sqlalchemy as sa
from sqlalchemy.orm import Session

from app.core.errors import NotFound
from app.core.i18n import _
from app.identity.permissions import Scope, scope_of
from app.identity.roles import Principal
from app.jobs.models import Job
from app.rounds.models import Assignment, Round, RoundLog
from app.rounds.schemas import RoundOut
from app.rounds.states import RoundState

# The feature of updates lies above this one and cannot be imported: its table is read by name.
UPDATES = sa.table(
    "updates",
    sa.column("round_id", sa.Uuid),
    sa.column("client_id", sa.Uuid),
    sa.column("state", sa.String),
    sa.column("blob_sha256", sa.String),
)

JOB_OF: dict[RoundState, tuple[str, ...]] = {
    RoundState.SEALED: ("aggregate",),
    RoundState.AGGREGATING: ("aggregate",),
    RoundState.VALIDATING: ("validate", "publish"),
}
"""The jobs that a round in this state waits for; the newest of them counts."""


def get_round(session: Session, round_id: UUID) -> Round:
    """One round by id; raises NotFound."""
    row = session.get(Round, round_id)
    if row is None:
        raise NotFound(_("there is no such round"))
    return row


def rounds(principal: Principal, permission: str = "rounds:read") -> sa.Select[Round]:
    """The rounds within the caller's scope; a training client sees those whose cohort it belongs to."""
    statement = sa.select(Round)
    match scope_of(principal, permission):
        case Scope.FEDERATION:
            return statement
        case Scope.ORGANISATION:
            return statement.where(Round.organisation_id == principal.organisation_id)
        case Scope.OWN:
            mine = sa.select(Assignment.round_id).where(Assignment.client_id == principal.id)
            return statement.where(Round.id.in_(mine))


def round_for(
    session: Session, principal: Principal, round_id: UUID, permission: str = "rounds:read"
) -> Round:
    """One round that the caller may see; raises NotFound."""
    row = session.scalar(rounds(principal, permission).where(Round.id == round_id))
    if row is None:
        raise NotFound(_("there is no such round"))
    return row


def show(session: Session, row: Round) -> RoundOut:
    """A round as the API shows it: of a secret cohort, without any count of its updates."""
    kind = JOB_OF.get(row.state)
    job = None
    if kind is not None:
        job = session.scalar(
            sa.select(Job).where(Job.kind.in_(kind), Job.key == str(row.id)).order_by(Job.id.desc()).limit(1)
        )
    updates = None if row.cohort_secret else updates_by_state(session, row.id)
    return RoundOut.of(row, updates=updates, job=job)


def detection_of(row: Round) -> Literal["each_update", "none"]:
    """What the evidence about a round's clients covers: `each_update`, or `none` under `central`."""
    return "none" if row.clip_norm is not None else "each_update"


def lock_round(session: Session, round_id: UUID) -> Round:
    """One round by id, read afresh and held until the transaction ends; raises NotFound."""
    row = session.scalar(
        sa.select(Round)
        .where(Round.id == round_id)
        .with_for_update()
        .execution_options(populate_existing=True)
    )
    if row is None:
        raise NotFound(_("there is no such round"))
    return row


def rounds_of(session: Session, run_id: UUID) -> Sequence[Round]:
    """A run's rounds, in order."""
    return session.scalars(sa.select(Round).where(Round.run_id == run_id).order_by(Round.number)).all()


def log_of(session: Session, round_id: UUID) -> Sequence[RoundLog]:
    """What happened to a round, oldest first."""
    return session.scalars(
        sa.select(RoundLog).where(RoundLog.round_id == round_id).order_by(RoundLog.id)
    ).all()


def overdue(session: Session) -> Sequence[Round]:
    """Open rounds whose deadline has passed, by the database's clock."""
    return session.scalars(
        sa.select(Round).where(Round.state == RoundState.OPEN, Round.deadline <= sa.func.now())
    ).all()


def cohort_of(session: Session, round_id: UUID) -> Sequence[UUID]:
    """The clients that a round asks, by id."""
    return session.scalars(
        sa.select(Assignment.client_id).where(Assignment.round_id == round_id).order_by(Assignment.client_id)
    ).all()


def cohort_size(session: Session, round_id: UUID) -> int:
    """How many clients a round asks; never to be shown where its cohort is secret."""
    return session.scalars(
        sa.select(sa.func.count()).select_from(Assignment).where(Assignment.round_id == round_id)
    ).one()


def is_assigned(session: Session, round_id: UUID, client_id: UUID) -> bool:
    """Say whether the client belongs to the round's cohort."""
    return session.get(Assignment, (round_id, client_id)) is not None


def note_adapter(session: Session, round_: Round, client_id: UUID) -> None:
    """Note that a client of a cohort that is no secret asks for the round's adapter for the first time."""
    if round_.cohort_secret:
        return
    session.execute(
        sa.update(Assignment)
        .where(
            Assignment.round_id == round_.id,
            Assignment.client_id == client_id,
            Assignment.adapter_at.is_(None),
        )
        .values(adapter_at=sa.func.clock_timestamp())
    )


def adapter_at(session: Session, round_id: UUID, client_id: UUID) -> datetime | None:
    """When a client first asked for a round's adapter."""
    return session.scalar(
        sa.select(Assignment.adapter_at).where(
            Assignment.round_id == round_id, Assignment.client_id == client_id
        )
    )


def rank_of(session: Session, round_id: UUID, client_id: UUID) -> int | None:
    """The LoRA rank at which a client of the cohort trains; None is the run's."""
    return session.get_one(Assignment, (round_id, client_id)).rank


def ranks_in(session: Session, round_id: UUID) -> dict[UUID, int]:
    """The LoRA ranks of a round's clients, where they differ from the run's."""
    rows = session.execute(
        sa.select(Assignment.client_id, Assignment.rank).where(
            Assignment.round_id == round_id, Assignment.rank.is_not(None)
        )
    )
    return {client_id: rank for client_id, rank in rows if rank is not None}


def sealed_set(session: Session, round_id: UUID) -> list[list[str | None]]:
    """Client and digest of each update that is part of a round, by client: for the operator alone."""
    rows = session.execute(
        sa.select(UPDATES.c.client_id, UPDATES.c.blob_sha256)
        .where(UPDATES.c.round_id == round_id, UPDATES.c.state == "received")
        .order_by(UPDATES.c.client_id)
    )
    return [[str(client_id), digest] for client_id, digest in rows]


def updates_by_state(session: Session, round_id: UUID) -> dict[str, int]:
    """How many updates of a round are in each state (`receiving`, `received`, `rejected`)."""
    counted = session.execute(
        sa.select(UPDATES.c.state, sa.func.count())
        .where(UPDATES.c.round_id == round_id)
        .group_by(UPDATES.c.state)
    )
    return {row[0]: row[1] for row in counted}
