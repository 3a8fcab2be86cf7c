"""A run's life in the audit log."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

from sqlalchemy.orm import Session

from app.audit.record import Action, record
from app.core.canonical import canonical_sha256
from app.runs.models import Run
from app.runs.queries import client_ids_of
from app.runs.states import RunState

_ACTIONS = {
    RunState.PRICING: Action.RUN_PRICE_ASKED,
    RunState.PRICED: Action.RUN_PRICED,
    RunState.REFUSED: Action.RUN_REFUSED,
    RunState.RUNNING: Action.RUN_RESUMED,
    RunState.PAUSED: Action.RUN_PAUSED,
    RunState.FINISHED: Action.RUN_FINISHED,
    RunState.ABORTED: Action.RUN_ABORTED,
}


def note_plan(session: Session, run: Run, action: Action, *, actor: str) -> None:
    """Note a plan as it is now, and who is to take part in it, by their digests."""
    clients = sorted(str(one) for one in client_ids_of(session, run.id))
    record(
        session,
        action=action,
        actor=actor,
        organisation_id=run.organisation_id,
        subject=f"run:{run.id}",
        details={
            "manifest_sha256": canonical_sha256(run.manifest),
            "clients": len(clients),
            "clients_sha256": canonical_sha256(clients),
            "from_release_id": None if run.from_release_id is None else str(run.from_release_id),
        },
        committed={"name": run.name},
    )


def note_step(session: Session, run: Run, to: RunState, *, actor: str, values: Mapping[str, Any]) -> None:
    """Note a step of a run; `values` are the columns that changed with its state."""
    reason = values.get("reason")
    record(
        session,
        action=Action.RUN_STARTED if "started_at" in values else _ACTIONS[to],
        actor=actor,
        organisation_id=run.organisation_id,
        subject=f"run:{run.id}",
        details={
            "version": run.version,
            "manifest_sha256": run.manifest_sha256,
            "reason_code": values.get("reason_code"),
        },
        committed=None if reason is None else {"reason": reason},
    )
