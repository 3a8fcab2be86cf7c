"""A round's time is over: it is sealed with what it has, or aborted for want of a quorum.

A round that asks nobody is over at once, unless its run keeps every round open to its deadline.
"""

from __future__ import annotations

from uuid import UUID

import sqlalchemy as sa
from sqlalchemy.orm import Session

from app.core.crypto import Vault
from app.core.i18n import _
from app.jobs import leases
from app.jobs.leases import Claim
from app.rounds import lifecycle
from app.rounds.models import Round
from app.rounds.queries import cohort_size, get_round, lock_round
from app.rounds.states import RoundState
from app.runs.queries import lock_run
from app.runs.rounds import seals_at_deadline
from app.runs.service import after_abort
from workers.context import ACTOR, Context

DEADLINE = "deadline"
QUORUM_MISSING = (
    "quorum_missing",
    _("The deadline passed before enough updates had arrived."),
)


def run(context: Context, claim: Claim) -> None:
    """Close one round that is overdue by the database's clock, or asks nobody; others are left alone."""
    round_id = UUID(claim.payload["round_id"])
    with context.database.run_tx("deadline") as session:
        leases.finish(session, claim)
        run_row = lock_run(session, get_round(session, round_id).run_id)  # always the run before its round
        row = lock_round(session, round_id)
        if row.state is not RoundState.OPEN:
            return
        asks_nobody = not seals_at_deadline(run_row.manifest) and not cohort_size(session, round_id)
        if asks_nobody and lifecycle.seal_if_complete(session, round_id, actor=DEADLINE, vault=context.vault):
            return  # as complete as any other whose cohort has sent, and told alike
        if asks_nobody or _has_passed(session, row):
            _close(session, row, context.vault)


def _has_passed(session: Session, row: Round) -> bool:
    return bool(session.scalar(sa.select(sa.func.now() >= row.deadline)))


def _close(session: Session, row: Round, vault: Vault) -> None:
    try:
        lifecycle.seal(session, row.id, actor=DEADLINE, vault=vault)
    except lifecycle.QuorumMissing:
        code, reason = QUORUM_MISSING
        lifecycle.abort(session, row.id, code=code, reason=reason, actor=DEADLINE)
        after_abort(session, row.run_id, code=code, reason=reason, actor=ACTOR)
