"""Reading runs: what a caller may see, and what other rooms need to know of a run. Nothing here writes."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any
from uuid import UUID

import sqlalchemy as sa
from sqlalchemy.orm import Session, aliased

from app.budget.queries import accounts_of_clients
from app.core.errors import NotFound
from app.core.i18n import _
from app.custody.keys import BlobRef
from app.identity.permissions import Scope, scope_of
from app.identity.roles import Principal
from app.releases.queries import adapter_state_of
from app.rounds.models import Assignment, Round
from app.rounds.states import RoundState
from app.runs.models import Run, RunClient, RunLog
from app.runs.states import RunState

# The feature of updates lies above this one and cannot be imported: its table is read by name.
UPDATES = sa.table(
    "updates", sa.column("round_id", sa.Uuid), sa.column("client_id", sa.Uuid), sa.column("state", sa.String)
)


def runs(principal: Principal, permission: str = "runs:read") -> sa.Select[Run]:
    """The runs within the caller's scope; a training client sees those it takes part in."""
    statement = sa.select(Run)
    match scope_of(principal, permission):
        case Scope.FEDERATION:
            return statement
        case Scope.ORGANISATION:
            return statement.where(Run.organisation_id == principal.organisation_id)
        case Scope.OWN:
            mine = sa.select(RunClient.run_id).where(RunClient.client_id == principal.id)
            return statement.where(Run.id.in_(mine))


def run_for(session: Session, principal: Principal, run_id: UUID, permission: str = "runs:read") -> Run:
    """One run that the caller may see; raises NotFound."""
    row = session.scalar(runs(principal, permission).where(Run.id == run_id))
    if row is None:
        raise NotFound(_("there is no such run"))
    return row


def lock_run(session: Session, run_id: UUID) -> Run:
    """One run, read afresh and held until the transaction ends; raises NotFound."""
    row = session.scalar(
        sa.select(Run).where(Run.id == run_id).with_for_update().execution_options(populate_existing=True)
    )
    if row is None:
        raise NotFound(_("there is no such run"))
    return row


def client_ids_of(session: Session, run_id: UUID) -> list[UUID]:
    """The run's clients, in the order of their ids."""
    return list(
        session.scalars(
            sa.select(RunClient.client_id).where(RunClient.run_id == run_id).order_by(RunClient.client_id)
        )
    )


def log_of(session: Session, run_id: UUID) -> Sequence[RunLog]:
    """What happened to a run, oldest first."""
    return session.scalars(sa.select(RunLog).where(RunLog.run_id == run_id).order_by(RunLog.id)).all()


@dataclass(frozen=True, slots=True)
class PricingFacts:
    """All that the price job needs to know."""

    run_id: UUID
    version: int
    manifest: dict[str, Any]
    orders: tuple[float, ...]
    """The orders of the Renyi accounts that would pay."""
    organisation_id: UUID
    start_adapter: BlobRef | None
    """Blob of the trained tensors to start from, where the run continues a release; else None."""


def pricing_facts(session: Session, run_id: UUID, version: int) -> PricingFacts | None:
    """What to price, or None when the run has moved on since this job was asked for."""
    run = session.get(Run, run_id)
    if run is None or run.state is not RunState.PRICING or run.version != version:
        return None
    accounts = accounts_of_clients(session, client_ids_of(session, run_id)).values()
    start = adapter_state_of(session, run.from_release_id) if run.from_release_id else None
    return PricingFacts(
        run_id=run.id,
        version=run.version,
        manifest=run.manifest,
        orders=tuple(sorted({account.order for account in accounts if account.order is not None})),
        organisation_id=run.organisation_id,
        start_adapter=start,
    )


@dataclass(frozen=True, slots=True)
class OpenAssignment:
    """A round that waits for a client's update."""

    round: Round
    run: Run
    rank: int | None = None
    """At which the client trains, where the run mixes ranks."""
    counted: int | None = None
    """In a run with control variates, the last round whose release holds an update of the client."""


def senders_of(session: Session, round_id: UUID) -> list[UUID]:
    """Clients whose whole update a round took, in the order of their ids."""
    rows = sa.select(UPDATES.c.client_id).where(UPDATES.c.round_id == round_id, UPDATES.c.state == "received")
    return list(session.scalars(rows.order_by(UPDATES.c.client_id)))


def assignments_of(session: Session, client_id: UUID, *, limit: int = 100) -> list[OpenAssignment]:
    """Open rounds of running runs that wait for this client; one whose upload broke is among them.

    Not of a buffered run for which the client has sent all that it may.
    """
    sent = (
        sa.select(UPDATES.c.round_id)
        .where(
            UPDATES.c.round_id == Round.id,
            UPDATES.c.client_id == client_id,
            UPDATES.c.state != "receiving",
        )
        .exists()
    )
    of_run = aliased(Round)
    broken = (
        sa.select(UPDATES.c.round_id)
        .join(of_run, of_run.id == UPDATES.c.round_id)
        .where(of_run.run_id == Run.id, UPDATES.c.client_id == client_id, UPDATES.c.state == "receiving")
        .exists()
    )
    seat = aliased(RunClient)
    may_send = sa.or_(seat.participation_cap.is_(None), seat.participations < seat.participation_cap, broken)
    rows = session.execute(
        sa.select(Round, Run, Assignment.rank)
        .join(Assignment, Assignment.round_id == Round.id)
        .join(Run, Run.id == Round.run_id)
        .join(seat, sa.and_(seat.run_id == Run.id, seat.client_id == Assignment.client_id))
        .where(Assignment.client_id == client_id, Round.state == RoundState.OPEN, ~sent, may_send)
        .order_by(Round.id)
        .limit(limit)
    )
    return [
        OpenAssignment(round=round_, run=run, rank=rank, counted=_last_counted(session, run, client_id))
        for round_, run, rank in rows
    ]


def _last_counted(session: Session, run: Run, client_id: UUID) -> int | None:
    """Number of the last published round that took an update of the client; None without control variates."""
    if run.manifest["training"].get("control_variates", "none") == "none":
        return None
    return session.scalar(
        sa.select(sa.func.max(Round.number))
        .join(UPDATES, UPDATES.c.round_id == Round.id)
        .where(
            Round.run_id == run.id,
            Round.state == RoundState.PUBLISHED,
            UPDATES.c.client_id == client_id,
            UPDATES.c.state == "received",
        )
    )
