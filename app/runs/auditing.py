"""Whether a validated round may be released: after the audit that its plan asks for, and never against one.

The audit of a run with canaries in its rounds comes before its last release, since their coins are secret
until then; any other before its first. An audit that refutes the claim blocks every later release of the run.
One that does not refute it shows nothing; it only lets the release go on.
"""

from __future__ import annotations

from uuid import UUID

from sqlalchemy.orm import Session

from app.audit.record import Action, record
from app.budget import audits
from app.core.errors import Conflict
from app.core.i18n import _
from app.core.ids import new_id
from app.jobs.queue import enqueue
from app.rounds import lifecycle
from app.rounds.queries import get_round
from app.runs.canaries import seated
from app.runs.models import Run
from app.runs.rounds import ask_for_run_audit, is_last_round
from app.runs.service import after_abort
from app.runs.states import RunState

CLAIM_REFUTED = (
    "claim_refuted",
    _("An audit refuted what is claimed for the run's mechanism: nothing more of it is released."),
)
NOT_AUDITED = (
    "audit_failed",
    _("The plan asks for an audit, and its mechanism has no price that an audit could be held against."),
)


class RunNotStarted(Conflict):
    """An audit of a plan that can still be changed."""

    code, title = "run_not_started", _("The run was not started yet")
    meaning = _("An audit counts for one frozen manifest, and a run's is frozen when it starts.")
    remedy = _("Start the run, then ask for the audit.")


def ask_by_hand(session: Session, run: Run, *, actor: str) -> None:
    """Have the mechanism of a started run audited; raises RunNotStarted."""
    if run.manifest_sha256 is None:
        raise RunNotStarted(_("the run is {state}"), state=str(run.state))
    enqueue(session, "audit_privacy", key=f"asked:{new_id()}", payload={"run_id": str(run.id)})
    record(
        session,
        action=Action.PRIVACY_AUDIT_ASKED,
        actor=actor,
        organisation_id=run.organisation_id,
        subject=f"run:{run.id}",
    )


def is_audited(run: Run) -> bool:
    """Say whether the run's plan asks for an audit."""
    return run.manifest["privacy"].get("audit") is not None


def release_or_audit(session: Session, run: Run, round_id: UUID, *, actor: str) -> None:
    """Ask for the publication of a validated round, or for the audit that has to come before it."""
    if audits.is_refuted(session, run.id, run.manifest_sha256):
        block(session, run, round_id, why=CLAIM_REFUTED, actor=actor)
    elif seated(run.manifest):
        _release_or_open(session, run, round_id)
    elif is_audited(run) and audits.first_of(session, run.id, run.manifest_sha256, of=audits.SUM) is None:
        payload = {"run_id": str(run.id), "round_id": str(round_id)}
        enqueue(session, "audit_privacy", key=str(round_id), payload=payload)
    else:
        lifecycle.ask_for_publication(session, round_id)


def _release_or_open(session: Session, run: Run, round_id: UUID) -> None:
    """Ask for the publication of a round with canaries, or for their coins, if none can come after it."""
    is_last = is_last_round(run, get_round(session, round_id)) or run.state is RunState.ABORTED
    if is_last and audits.first_of(session, run.id, run.manifest_sha256, of=audits.RUN) is None:
        ask_for_run_audit(session, run.id, key=str(round_id), round_id=round_id)
    else:
        lifecycle.ask_for_publication(session, round_id)


def block(session: Session, run: Run, round_id: UUID, *, why: tuple[str, str], actor: str) -> None:
    """End a round without a release, for a reason in the run's claim; what was spent stays spent."""
    code, reason = why
    lifecycle.abort(session, round_id, code=code, reason=reason, actor=actor)
    after_abort(session, run.id, code=code, reason=reason, actor=actor)
