"""Updates of buffered runs: from which round's adapter they come, and how old that makes them.

A client trains from the adapter that it has and sends to whichever buffer is open when it is done. For each
adapter it sends one update, ever: the same bytes, if they did not arrive whole, go to a later buffer.
"""

from __future__ import annotations

from uuid import UUID

import sqlalchemy as sa
from sqlalchemy.orm import Session, aliased

from app.core.errors import Conflict, Invalid
from app.core.i18n import _
from app.rounds.models import Round
from app.rounds.queries import rounds_of
from app.rounds.states import RoundState
from app.runs.manifest import Manifest
from app.runs.models import Run, RunClient
from app.updates.models import Update

HEADER = "DPFL-Base-Round"


class BaseInvalid(Invalid):
    """An update that does not say from which adapter it was trained, or names one that it cannot be."""

    code, title = "base_invalid", _("The update's base round does not hold")
    meaning = _(
        "In a buffered run an update names the round whose adapter it was trained from; in any other run it "
        "can be trained from its own round's alone."
    )
    remedy = _("Send the number of the assignment that was trained, in the header DPFL-Base-Round.")


class UpdateTooStale(Conflict):
    """An update from an adapter that is too old."""

    code, title = "update_too_stale", _("The update is too old for this buffer")
    meaning = _(
        "More releases were published since the adapter that it was trained from than the plan allows."
    )
    remedy = _("Train your next assignment. Nothing was charged here.")


class ParticipationsUsed(Conflict):
    """More updates than the run was priced for."""

    code, title = "participations_used", _("The client has sent as many updates as it may")
    meaning = _("The run is priced for so many updates of each client, and this would be one more.")
    remedy = _("Wait for the end of the run; nothing more is asked of this client.")


def base_of(session: Session, run: Run, round_: Round, number: int | None) -> Round | None:
    """Return the round from whose adapter an update was trained; None for its own, in a run without buffers.

    Raises BaseInvalid.
    """
    if run.manifest.get("buffered") is None:
        if number not in {None, round_.number}:
            raise BaseInvalid(_("this run takes updates of a round's own adapter alone"))
        return None
    if number is None:
        raise BaseInvalid(_("the header {header} is missing"), header=HEADER)
    for base in rounds_of(session, run.id):
        if base.number == number <= round_.number:
            return base
    raise BaseInvalid(_("there is no round {number} before this one"), number=number)


def require_fresh(session: Session, run: Run, round_: Round, base: Round | None) -> None:
    """Raise UpdateTooStale where the plan does not take an adapter of that age."""
    buffered = Manifest.model_validate(run.manifest).buffered
    if base is None or buffered is None:
        return
    age = sum(number >= base.number for number in _published_before(session, round_))
    if age > buffered.staleness:
        raise UpdateTooStale(
            _("{age} releases were published since its adapter; at most {most} may be"),
            age=age,
            most=buffered.staleness,
        )


def require_participation(session: Session, run: Run, client_id: UUID) -> None:
    """Raise ParticipationsUsed where the database would refuse one more update of this client."""
    buffered = Manifest.model_validate(run.manifest).buffered
    if buffered is None:
        return
    seat = session.get_one(RunClient, (run.id, client_id), populate_existing=True)
    if seat.participations >= buffered.participations:
        raise ParticipationsUsed(
            _("{most} update(s) of this client were begun"), most=buffered.participations
        )


def ages_of(session: Session, round_: Round) -> dict[UUID, int]:
    """How many releases were published between each update's adapter and its buffer, by client."""
    base = aliased(Round)
    rows = session.execute(
        sa.select(Update.client_id, base.number)
        .join(base, base.id == Update.base_round_id)
        .where(Update.round_id == round_.id)
    )
    published = _published_before(session, round_)
    return {client_id: sum(newer >= number for newer in published) for client_id, number in rows.all()}


def _published_before(session: Session, round_: Round) -> list[int]:
    """Numbers of the run's published rounds before this one: each made a release."""
    return [
        row.number
        for row in rounds_of(session, round_.run_id)
        if row.state is RoundState.PUBLISHED and row.number < round_.number
    ]
