"""Runs over HTTP: plan one, have it priced, start it, follow it."""

from __future__ import annotations

from typing import Annotated
from uuid import UUID

from fastapi import APIRouter, Query, Request, Response
from sqlalchemy.orm import Session

from app.core.canonical import canonical_bytes
from app.core.errors import NotFound
from app.core.i18n import _
from app.http.deps import SessionDep, SettingsDep, requires
from app.http.downloads import UNCHANGED, is_known, unchanged
from app.http.idempotency import IdempotentRoute
from app.http.longpoll import Since, WaitS, read_when
from app.http.pagination import Page, PageDep, page
from app.http.problems import problem
from app.identity.roles import Principal, Role
from app.releases.schemas import ReleaseOut
from app.rounds import queries as rounds
from app.rounds.models import Round
from app.rounds.schemas import RoundOut
from app.runs import projecting, queries, rolling_back, ruling, service
from app.runs.models import Run
from app.runs.schemas import ManifestIn, RollbackIn, RolledBack, RunHistory, RunIn, RunOut, RunStep, StopIn
from app.runs.states import RunState

router = APIRouter(prefix="/runs", tags=["runs"], route_class=IdempotentRoute)

CanReadRuns = Annotated[Principal, requires("runs:read")]
CanCreateRuns = Annotated[Principal, requires("runs:create")]
CanPriceRuns = Annotated[Principal, requires("runs:price")]
CanStartRuns = Annotated[Principal, requires("runs:start")]
CanControlRuns = Annotated[Principal, requires("runs:control")]
CanReadRounds = Annotated[Principal, requires("rounds:read")]


@router.post("", status_code=201)
def create_run(body: RunIn, session: SessionDep, settings: SettingsDep, principal: CanCreateRuns) -> RunOut:
    """Plan a run, as a draft; a plan that cannot be sound is refused with its reason."""
    run = service.create(
        session,
        principal,
        name=body.name,
        manifest=body.manifest,
        client_ids=body.client_ids,
        settings=settings,
        from_release_id=body.from_release_id,
        clone_of_id=body.clone_of_id,
    )
    return _shown(session, principal, run)


@router.get("")
def list_runs(
    session: SessionDep,
    principal: CanReadRuns,
    params: PageDep,
    state: Annotated[RunState | None, Query(description="Only runs in this state.")] = None,
) -> Page[RunOut]:
    """List runs, newest first."""
    statement = queries.runs(principal)
    if state is not None:
        statement = statement.where(Run.state == state)
    rows, cursor = page(session, statement, Run.id, params, newest_first=True)
    return Page(items=[_shown(session, principal, row) for row in rows], next_cursor=cursor)


@router.get("/{run_id}", response_model=RunOut, responses=UNCHANGED)
async def get_run(
    *,
    run_id: UUID,
    request: Request,
    response: Response,
    principal: CanReadRuns,
    wait: WaitS = 0,
    since: Since = None,
) -> RunOut | Response:
    """Show a run; with `wait`, hold the answer until its version is another than `since`.

    Without `since`, what you know is told by If-None-Match; with neither, the version of now counts.
    """
    seen: list[int] = []

    def read(session: Session) -> RunOut:
        return _shown(session, principal, queries.run_for(session, principal, run_id))

    def is_awaited(shown: RunOut) -> bool:
        seen.append(shown.version)
        if since is None and "if-none-match" in request.headers:
            return not is_known(request, str(shown.version))
        return shown.version != (seen[0] if since is None else since)

    shown = await read_when(
        request, read, is_awaited, channel=service.CHANNEL, payload=str(run_id), wait_s=wait
    )
    if is_known(request, str(shown.version)):
        return unchanged(str(shown.version))
    response.headers["ETag"] = f'"{shown.version}"'
    return shown


@router.put("/{run_id}/manifest")
def replace_manifest(
    run_id: UUID, body: ManifestIn, session: SessionDep, settings: SettingsDep, principal: CanCreateRuns
) -> RunOut:
    """Change the manifest of a draft."""
    run = service.update_manifest(session, principal, run_id, manifest=body.manifest, settings=settings)
    return _shown(session, principal, run)


@router.get(
    "/{run_id}/manifest",
    response_class=Response,
    responses={200: {"content": {"application/json": {"schema": {"type": "object"}}}}, **UNCHANGED},
)
def get_manifest(run_id: UUID, request: Request, session: SessionDep, principal: CanReadRuns) -> Response:
    """The fixed manifest of a started run, byte for byte as it was hashed; its ETag is the hash."""
    run = queries.run_for(session, principal, run_id)
    if run.manifest_sha256 is None:
        raise NotFound(_("a manifest is fixed when its run starts; this one has not started"))
    if is_known(request, run.manifest_sha256):
        return unchanged(run.manifest_sha256)
    return Response(
        canonical_bytes(run.manifest),
        media_type="application/json",
        headers={"ETag": f'"{run.manifest_sha256}"'},
    )


@router.get("/{run_id}/rounds")
def list_rounds(
    run_id: UUID, session: SessionDep, principal: CanReadRounds, params: PageDep
) -> Page[RoundOut]:
    """List a run's rounds in order."""
    queries.run_for(session, principal, run_id, "rounds:read")
    statement = rounds.rounds(principal).where(Round.run_id == run_id)
    rows, cursor = page(session, statement, Round.id, params)
    return Page(items=[rounds.show(session, row) for row in rows], next_cursor=cursor)


@router.get("/{run_id}/log")
def get_run_log(run_id: UUID, session: SessionDep, principal: CanReadRuns) -> RunHistory:
    """Show every step of a run with its time and who took it."""
    run = queries.run_for(session, principal, run_id)
    return RunHistory(items=[RunStep.of(step) for step in queries.log_of(session, run.id)])


@router.post("/{run_id}/price", status_code=202)
def price_run(run_id: UUID, session: SessionDep, principal: CanPriceRuns) -> RunOut:
    """Have the plan's noise and cost computed; the run becomes `priced`, or `refused` with its reason."""
    return _shown(session, principal, service.price(session, principal, run_id))


@router.post("/{run_id}/start", status_code=202, response_model=RunOut)
def start_run(
    run_id: UUID, request: Request, session: SessionDep, settings: SettingsDep, principal: CanStartRuns
) -> RunOut | Response:
    """Fix the manifest, reserve the whole schedule on every client's account, and open the first round.

    When an account does not cover it, nothing is reserved, the run becomes `refused`, and the answer is 409
    `budget_exceeded`: with what was asked, what is left and the ceiling, where you may see that account. When
    a data rule denies it, the run becomes `refused` as well, and the answer is 403 `data_rule_denied`.
    """
    run = service.start(session, principal, run_id, region=settings.declared_region)
    if run.reason_code == ruling.DENIED[0]:
        return problem(request, ruling.refusal(session, principal, run, region=settings.declared_region))
    if run.state is RunState.REFUSED:  # returned and not raised: the run's new state is to be committed
        return problem(request, projecting.refusal(session, principal, run))
    return _shown(session, principal, run)


@router.post("/{run_id}/pause", status_code=202)
def pause_run(run_id: UUID, session: SessionDep, principal: CanControlRuns) -> RunOut:
    """Open no further round until the run is resumed; the round under way goes on."""
    return _shown(session, principal, service.pause(session, principal, run_id))


@router.post("/{run_id}/resume", status_code=202, response_model=RunOut)
def resume_run(
    run_id: UUID, request: Request, session: SessionDep, settings: SettingsDep, principal: CanControlRuns
) -> RunOut | Response:
    """Go on with the next round. A round that was aborted is not repeated: it has used its number.

    When a data rule denies the round, the run stays paused, and the answer is 403 `data_rule_denied`.
    """
    run = service.resume(session, principal, run_id, region=settings.declared_region)
    if run.reason_code == ruling.DENIED[0]:  # returned and not raised: the decision is to be committed
        return problem(request, ruling.refusal(session, principal, run, region=settings.declared_region))
    return _shown(session, principal, run)


@router.post("/{run_id}/rollback")
def roll_back_run(
    run_id: UUID, body: RollbackIn, session: SessionDep, principal: CanControlRuns
) -> RolledBack:
    """Take a paused or finished run back to one of its releases: every later one is marked, for good.

    The next round starts from that release's adapter, with its server optimizer's state. What was spent stays
    spent, and rounds go on by their numbers. Later releases can still be downloaded, with the mark.
    """
    marked = rolling_back.roll_back(
        session, principal, run_id, release_id=body.release_id, reason=body.reason
    )
    return RolledBack(goes_on_from=body.release_id, rolled_back=[ReleaseOut.of(row) for row in marked])


@router.post("/{run_id}/stop", status_code=202)
def stop_run(run_id: UUID, body: StopIn, session: SessionDep, principal: CanControlRuns) -> RunOut:
    """End the run for good. What was reserved and not spent stays reserved."""
    return _shown(session, principal, service.stop(session, principal, run_id, reason=body.reason))


def _shown(session: Session, principal: Principal, run: Run) -> RunOut:
    client_ids = queries.client_ids_of(session, run.id)
    if principal.role is Role.CLIENT:
        client_ids = [principal.id]
    return RunOut.of(run, client_ids, projecting.shortfall(session, principal, run))
