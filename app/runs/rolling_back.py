"""Taking a run back to an earlier release: the later ones are marked, and the next round starts from it.

No round is undone: what was spent stays spent, and numbers and the schedule go on as they were priced. Which
noised output training goes on from is post-processing, and every round is the same mechanism from wherever
it starts.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any
from uuid import UUID

from sqlalchemy.orm import Session

from app.audit.record import Action, record
from app.core.errors import Conflict
from app.core.i18n import _
from app.identity.roles import Principal
from app.releases import service as releases
from app.releases.models import Release
from app.releases.queries import later_in_run, release_for, require_not_rolled_back
from app.runs import queries, rounds
from app.runs.models import Run
from app.runs.sending import TWO_TURNS
from app.runs.states import RunState

_AT_REST = frozenset({RunState.PAUSED, RunState.FINISHED})
_KEEPS_AT_CLIENTS = TWO_TURNS | {"fedsa"}


class RollbackRefused(Conflict):
    """A run of whose state something is outside its releases."""

    code, title = "rollback_refused", _("The run cannot be rolled back")
    meaning = _(
        "A release of this run is not all that training goes on from: control variates, factors that clients "
        "keep, the second message of `fedask`, or updates for an older adapter would not fit an earlier one."
    )
    remedy = _("Stop the run, and plan a new one that starts from the release (`from_release_id`).")


class RunNotAtRest(Conflict):
    """A run that may open a round, or has one under way."""

    code, title = "run_not_at_rest", _("The run is not at rest")
    meaning = _("A run is rolled back while it is paused, or after it finished, and no round is under way.")
    remedy = _("Pause the run, and wait for the end of its round or abort it.")


class ReleaseOfOtherRun(Conflict):
    """A release that is not the run's."""

    code, title = "release_of_other_run", _("The release is of another run")
    meaning = _("A run can only be taken back to one of its own releases.")
    remedy = _("Choose from GET /v1/releases with the run's id, or plan a new run from the other release.")


class NothingToRollBack(Conflict):
    """A release after which none holds."""

    code, title = "nothing_to_roll_back", _("There is nothing to roll back")
    meaning = _("No later release of the run holds: training goes on from this one already.")
    remedy = _("Name an earlier release of the run.")


def roll_back(
    session: Session, principal: Principal, run_id: UUID, *, release_id: UUID, reason: str
) -> Sequence[Release]:
    """Mark every release of the run after this one; returns those that were marked, oldest first.

    Raises NotFound, RunNotAtRest, RollbackRefused, ReleaseOfOtherRun, ReleaseRolledBack, NothingToRollBack.
    """
    queries.run_for(session, principal, run_id, "runs:control")
    run = queries.lock_run(session, run_id)  # no round opens, and nobody else marks, until this is committed
    to = release_for(session, principal, release_id)
    if to.run_id != run.id:
        raise ReleaseOfOtherRun(_("release {release_id} is of another run"), release_id=str(to.id))
    _require_at_rest(session, run)
    _require_whole(run.manifest)
    session.refresh(to)
    require_not_rolled_back(to)
    later = later_in_run(session, to)
    if not later:
        raise NothingToRollBack(_("no release of the run after this one holds"), release_id=str(to.id))
    releases.mark_rolled_back(session, later, actor=principal.actor, reason=reason)
    _note(session, run, to, later, actor=principal.actor, reason=reason)
    return later


def _require_at_rest(session: Session, run: Run) -> None:
    if run.state not in _AT_REST:
        raise RunNotAtRest(_("the run is {state}"), state=run.state.value, run_id=str(run.id))
    if rounds.is_under_way(session, run.id):
        raise RunNotAtRest(_("a round of the run is not over"), run_id=str(run.id))


def _require_whole(manifest: dict[str, Any]) -> None:
    """Refuse a run of which clients or server keep more than a release and its optimizer's state.

    What a rule with `memory` keeps is no such state: means of what each client sent are about the clients,
    not about an adapter.
    """
    method = manifest["lora"]["method"]
    if manifest["training"].get("control_variates", "none") != "none":
        raise RollbackRefused(_("control variates are kept beside the releases"))
    if method in _KEEPS_AT_CLIENTS:
        raise RollbackRefused(_("clients of `{method}` keep factors of their last round"), method=method)
    if manifest.get("buffered") is not None:
        raise RollbackRefused(_("updates for a release that was rolled back might still come"))


def _note(
    session: Session, run: Run, to: Release, later: Sequence[Release], *, actor: str, reason: str
) -> None:
    record(
        session,
        action=Action.RUN_ROLLED_BACK,
        actor=actor,
        organisation_id=run.organisation_id,
        subject=f"run:{run.id}",
        details={
            "to_release_id": str(to.id),
            "to_number": to.number,
            "rolled_back": [row.number for row in later],
        },
        committed={"reason": reason},
    )
