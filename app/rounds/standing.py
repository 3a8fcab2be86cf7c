"""Evidence about updates, and where clients stand: the only writer of both. Commits nothing.

What a step follows from is computed by the aggregate job; here it is kept. A client is told nothing of it but
its own finite and norm result.
"""

from __future__ import annotations

from collections.abc import Collection, Iterable
from dataclasses import dataclass
from uuid import UUID

import sqlalchemy as sa
from sqlalchemy.dialects.postgresql import distinct_on
from sqlalchemy.orm import Session

from app.audit.record import Action, record
from app.core.errors import Conflict
from app.core.i18n import _
from app.identity import queries as identity
from app.identity.models import Client
from app.identity.permissions import Scope, scope_of
from app.identity.roles import Principal
from app.rounds.models import Evidence, Round, Standing
from app.rounds.states import LADDER, Step
from app.security import events
from app.security.models import Severity

_LOCK = "SELECT pg_advisory_xact_lock(hashtext('dpfl.standings'))"
"""Standings are read, followed and written one transaction after another: no step is lost in a race."""


class NothingToReverse(Conflict):
    """The client stands where it is to be put, or lower than it can be put up to by hand."""

    code, title = "nothing_to_reverse", _("The client cannot be put on this step")
    meaning = _(
        "A step is taken back to a lower one. By hand, the only step up is to `quarantine`; every other "
        "follows from evidence."
    )
    remedy = _(
        "Read where the client stands, and name a step below that, or `quarantine`. A client itself is "
        "suspended among the clients, not on the ladder."
    )


@dataclass(frozen=True, slots=True)
class Stand:
    """A client's step and suspicion."""

    step: Step = Step.OBSERVE
    suspicion: float = 0.0


def hold(session: Session) -> None:
    """Let nobody else write standings until this transaction ends."""
    session.execute(sa.text(_LOCK))


def stands_of(session: Session, client_ids: Collection[UUID]) -> dict[UUID, Stand]:
    """Where clients stand; those of whom nothing odd was ever found are missing."""
    rows = session.scalars(
        sa.select(Standing)
        .where(Standing.client_id.in_(client_ids))
        .ext(distinct_on(Standing.client_id))
        .order_by(Standing.client_id, Standing.id.desc())
    )
    return {row.client_id: Stand(row.step, row.suspicion) for row in rows}


def without_suspended(session: Session, client_ids: list[UUID]) -> list[UUID]:
    """The clients that may be invited, in the order that was given."""
    stands = stands_of(session, client_ids)
    return [one for one in client_ids if stands.get(one, Stand()).step is not Step.SUSPEND]


def unsuspected(session: Session, client_ids: list[UUID]) -> list[UUID]:
    """The clients whose updates count whole by their standing, in the order that was given."""
    stands = stands_of(session, client_ids)
    return [one for one in client_ids if stands.get(one, Stand()).step is Step.OBSERVE]


def keep(session: Session, rows: Iterable[Evidence]) -> None:
    """Keep a round's evidence."""
    session.add_all(rows)
    session.flush()


def step_after_round(
    session: Session, client_id: UUID, round_id: UUID, *, odd: bool, stand: Stand, actor: str
) -> None:
    """Note where a client stands after a judged round; the caller holds the standings."""
    session.add(
        Standing(
            client_id=client_id,
            round_id=round_id,
            odd=odd,
            step=stand.step,
            suspicion=stand.suspicion,
            actor=actor,
        )
    )
    session.flush()
    if stand.step in {Step.QUARANTINE, Step.SUSPEND}:
        events.note(
            session,
            kind=f"client_at_{stand.step.value}",
            subject=f"client:{client_id}",
            organisation_id=session.scalar(sa.select(Client.organisation_id).where(Client.id == client_id)),
            severity=Severity.WARNING,
            evidence={},
        )


def put(session: Session, principal: Principal, client_id: UUID, *, to: Step, reason: str) -> Standing:
    """Take a client back to a lower step, or put it in quarantine by hand; its count starts anew.

    Raises NotFound, NothingToReverse.
    """
    client = identity.client(session, principal, client_id, "standings:reverse")
    hold(session)
    stand = stands_of(session, [client_id]).get(client_id, Stand())
    is_raised = LADDER.index(to) > LADDER.index(stand.step)
    if to is stand.step or (is_raised and to is not Step.QUARANTINE):
        raise NothingToReverse(_("the client is at `{step}`"), step=str(stand.step))
    row = Standing(client_id=client_id, step=to, suspicion=0.0, reason=reason, actor=principal.actor)
    session.add(row)
    session.flush()
    record(
        session,
        action=Action.STANDING_QUARANTINED if is_raised else Action.STANDING_REVERSED,
        actor=principal.actor,
        organisation_id=client.organisation_id,
        subject=f"client:{client_id}",
        details={"from": str(stand.step), "to": str(to)},
        committed={"reason": reason},
    )
    return row


def history_of(session: Session, principal: Principal, client_id: UUID) -> sa.Select[Standing]:
    """Every step of a client that the caller may see; raises NotFound."""
    identity.client(session, principal, client_id, "standings:read")
    return sa.select(Standing).where(Standing.client_id == client_id)


def evidence_of(round_: Round, principal: Principal) -> sa.Select[Evidence]:
    """A round's evidence as far as the caller may see it: a training client, its own row."""
    statement = sa.select(Evidence).where(Evidence.round_id == round_.id)
    if scope_of(principal, "evidence:read") is Scope.OWN:
        return statement.where(Evidence.client_id == principal.id)
    return statement
