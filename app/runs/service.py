"""The life of a run: the only writer of its state. Each verb checks its precondition and commits nothing."""

from __future__ import annotations

import math
from collections.abc import Sequence
from typing import Any
from uuid import UUID

import sqlalchemy as sa
from sqlalchemy.orm import Session

from app.audit.record import Action
from app.budget.arithmetic import AmountInvalid
from app.budget.periods import hold_accounts
from app.budget.queries import accounts_of_clients
from app.core.canonical import canonical_sha256
from app.core.db import act_as, notify
from app.core.errors import Conflict, IllegalTransition, Invalid, NotFound
from app.core.i18n import _
from app.core.settings import Settings
from app.identity import queries as identity
from app.identity.models import Client, ClientState
from app.identity.roles import Principal
from app.jobs.queue import enqueue
from app.releases.models import Release
from app.releases.queries import release_for, require_not_rolled_back
from app.runs import queries, rounds, ruling
from app.runs.charges import is_charged, require_covered, reservation
from app.runs.manifest import Manifest
from app.runs.models import Run, RunClient
from app.runs.noting import note_plan, note_step
from app.runs.plan import check_plan
from app.runs.reserving import note_ceiling_hit, reserve_for_all
from app.runs.states import RunState, sources_of

CHANNEL = "dpfl_runs"


class ClientUnfit(Invalid):
    """A client that cannot take part."""

    code, title = "client_unfit", _("A client cannot take part")
    meaning = _("A client of the plan is suspended, or its data set has no privacy account.")
    remedy = _("Leave it out, reinstate it, or enrol it with a budget.")


class LineageMismatch(Invalid):
    """A release that this plan cannot continue."""

    code, title = "lineage_mismatch", _("The plan does not continue this release")
    meaning = _("A run can start from a release only with the same base model, adapter shape and seed.")
    remedy = _("Copy base_model, lora and tensors from the manifest of the release's run.")


class NotDraft(Conflict):
    """The manifest of a run that was priced."""

    code, title = "not_draft", _("The run is no draft any more")
    meaning = _("A manifest can be changed until the run is priced.")
    remedy = _("Clone the run and change the clone.")


def advance(session: Session, run_id: UUID, to: RunState, *, actor: str, **values: Any) -> int:
    """Move a run to `to` if its current state allows it; returns the new version.

    Compare-and-set: of any number of racing callers exactly one succeeds, the others get
    IllegalTransition. `values` are further columns that change with the state.
    """
    act_as(session, actor)
    run = session.scalar(
        sa.update(Run)
        .where(Run.id == run_id, Run.state.in_(sources_of(to)))
        .values(state=to, version=Run.version + 1, **values)
        .returning(Run)
        .execution_options(populate_existing=True)
    )
    if run is None:
        raise IllegalTransition(_("the run cannot become {to}"), to=str(to), run_id=str(run_id))
    note_step(session, run, to, actor=actor, values=values)
    notify(session, CHANNEL, str(run_id))
    return run.version


def create(
    session: Session,
    principal: Principal,
    *,
    name: str | None,
    manifest: Manifest,
    client_ids: Sequence[UUID],
    settings: Settings,
    from_release_id: UUID | None = None,
    clone_of_id: UUID | None = None,
) -> Run:
    """Plan a run, as a draft. Structural faults of the plan are refused here (see app.runs.plan)."""
    check_plan(
        manifest,
        clients=len(set(client_ids)),
        trusts=settings.trusts,
        max_update_bytes=settings.max_update_bytes,
    )
    clients = _fit_clients(session, principal, client_ids, manifest=manifest.as_json())
    if from_release_id is not None:
        _check_lineage(session, principal, from_release_id, manifest)
    if clone_of_id is not None:
        queries.run_for(session, principal, clone_of_id)
    act_as(session, principal.actor)
    run = Run(
        organisation_id=principal.organisation_id,
        name=name or f"{manifest.base_model.name} {manifest.lora.method} r{manifest.lora.rank}",
        manifest=manifest.as_json(),
        from_release_id=from_release_id,
        clone_of_id=clone_of_id,
        created_by=principal.actor,
    )
    session.add(run)
    session.flush()
    session.add_all(RunClient(run_id=run.id, client_id=client.id) for client in clients)
    session.flush()
    note_plan(session, run, Action.RUN_CREATED, actor=principal.actor)
    return run


def _fit_clients(
    session: Session, principal: Principal, client_ids: Sequence[UUID], *, manifest: dict[str, Any]
) -> list[Client]:
    if len(set(client_ids)) != len(client_ids):
        raise Invalid(_("a client is listed twice"))
    rows = session.scalars(
        identity.clients(principal, "clients:read").where(Client.id.in_(client_ids)).order_by(Client.id)
    ).all()
    if len(rows) != len(client_ids):
        raise NotFound(_("there is no such client"))
    for row in rows:
        if row.state is not ClientState.ACTIVE:
            raise ClientUnfit(
                _("client {client_id} is {state}"), client_id=str(row.id), state=row.state.value
            )
    if is_charged(manifest):
        with_account = accounts_of_clients(session, list(client_ids))
        for row in rows:
            if row.id not in with_account:
                raise ClientUnfit(_("client {client_id} has no privacy account"), client_id=str(row.id))
            require_covered(manifest, with_account[row.id], client_id=str(row.id))
    return list(rows)


def _check_lineage(session: Session, principal: Principal, release_id: UUID, manifest: Manifest) -> None:
    release = release_for(session, principal, release_id)
    require_not_rolled_back(release)
    former = Manifest.model_validate(session.get_one(Run, release.run_id).manifest).as_json()  # may be older
    own = manifest.as_json()
    for member in ("base_model", "lora", "tensors"):
        if own[member] != former[member]:
            raise LineageMismatch(_("`{member}` differs from that of the release"), member=member)


def update_manifest(
    session: Session, principal: Principal, run_id: UUID, *, manifest: Manifest, settings: Settings
) -> Run:
    """Replace the manifest of a draft; raises NotDraft."""
    queries.run_for(session, principal, run_id, "runs:create")
    run = queries.lock_run(session, run_id)
    if run.state is not RunState.DRAFT:
        raise NotDraft(_("the run is {state}"), state=str(run.state))
    client_ids = queries.client_ids_of(session, run_id)
    check_plan(
        manifest,
        clients=len(client_ids),
        trusts=settings.trusts,
        max_update_bytes=settings.max_update_bytes,
    )
    _fit_clients(session, principal, client_ids, manifest=manifest.as_json())
    if run.from_release_id is not None:
        _check_lineage(session, principal, run.from_release_id, manifest)
    run.manifest = manifest.as_json()
    run.version += 1
    session.flush()
    note_plan(session, run, Action.RUN_CHANGED, actor=principal.actor)
    notify(session, CHANNEL, str(run_id))
    return run


def price(session: Session, principal: Principal, run_id: UUID) -> Run:
    """Ask for the plan's noise and cost; the price job answers with `accept_price` or `refuse`."""
    queries.run_for(session, principal, run_id, "runs:price")
    version = advance(session, run_id, RunState.PRICING, actor=principal.actor)
    payload = {"run_id": str(run_id), "version": version}
    enqueue(session, "price", key=f"{run_id}:{version}", payload=payload)
    return queries.lock_run(session, run_id)


def accept_price(
    session: Session,
    run_id: UUID,
    *,
    version: int,
    price: dict[str, Any],
    start_adapter_sha256: str,
    actor: str,
) -> bool:
    """Keep what the price job computed; the run becomes `priced`, or `refused` when an account cannot pay.

    `price` is what workers/handlers/price.py makes, all null or empty with trust `none`. False, and nothing
    happens, when the run has moved on.
    """
    run = queries.lock_run(session, run_id)
    if run.state is not RunState.PRICING or run.version != version:
        return False
    run.price = price
    session.flush()
    if not is_charged(run.manifest) or _all_can_pay(session, run):
        advance(session, run_id, RunState.PRICED, actor=actor, start_adapter_sha256=start_adapter_sha256)
        return True
    code, reason = OVER_BUDGET
    note_ceiling_hit(session, run)
    advance(session, run_id, RunState.REFUSED, actor=actor, reason_code=code, reason=reason)
    return True


OVER_BUDGET = (
    "budget_exceeded",
    _("The plan costs more epsilon or delta than the account of at least one of its clients has left."),
)
"""Says nothing of whose account it is, nor of what is left on it: clients may be another organisation's."""


def _all_can_pay(session: Session, run: Run) -> bool:
    client_ids = queries.client_ids_of(session, run.id)
    accounts = accounts_of_clients(session, client_ids)
    try:
        charges = [(account, reservation(run, account)) for account in accounts.values()]
    except AmountInvalid:  # more than any ledger holds
        return False
    return len(charges) == len(client_ids) and all(
        charge.amount <= account.left and charge.delta_amount <= account.delta_left
        for account, charge in charges
    )


def refuse(session: Session, run_id: UUID, *, version: int, code: str, reason: str, actor: str) -> bool:
    """The price job found the plan impossible. False when the run has moved on."""
    run = queries.lock_run(session, run_id)
    if run.state is not RunState.PRICING or run.version != version:
        return False
    advance(session, run_id, RunState.REFUSED, actor=actor, reason_code=code, reason=reason)
    return True


def start(session: Session, principal: Principal, run_id: UUID, *, region: str | None) -> Run:
    """Freeze and hash the manifest, reserve the whole schedule for every client, open the first round.

    When a data rule denies it, or an account no longer covers it, nothing is reserved and the run becomes
    `refused`. `region` is what this process's operator declared, which data rules may ask for.
    """
    queries.run_for(session, principal, run_id, "runs:start")
    run = queries.lock_run(session, run_id)
    if run.state is not RunState.PRICED:
        raise IllegalTransition(_("the run cannot become {to}"), to="running", run_id=str(run_id))
    if run.from_release_id is not None:
        require_not_rolled_back(session.get_one(Release, run.from_release_id, populate_existing=True))
    manifest = dict(run.manifest)
    if is_charged(manifest):
        manifest["privacy"] = _fixed(manifest["privacy"], run.price or {})
    run.manifest = manifest
    run.manifest_sha256 = canonical_sha256(manifest)
    session.flush()
    hold_accounts(session, queries.client_ids_of(session, run_id))
    refused = None
    if ruling.decide(session, run, region=region, actor=principal.actor):
        refused = ruling.DENIED
    elif is_charged(manifest) and not reserve_for_all(session, run, actor=principal.actor):
        note_ceiling_hit(session, run)
        refused = OVER_BUDGET
    if refused is not None:
        code, reason = refused
        advance(session, run_id, RunState.REFUSED, actor=principal.actor, reason_code=code, reason=reason)
    else:
        advance(session, run_id, RunState.RUNNING, actor=principal.actor, started_at=sa.func.now())
        rounds.open_next(session, queries.lock_run(session, run_id), actor=principal.actor)
    return queries.lock_run(session, run_id)


def _fixed(privacy: dict[str, Any], price: dict[str, Any]) -> dict[str, Any]:
    """The plan with noise and epsilon, and the commitment to its canaries.

    One that names its noise alone gets its cost, rounded up.
    """
    epsilon = privacy["epsilon"]
    if epsilon is None:
        epsilon = math.ceil(price["epsilon"] * 1e6) / 1e6
    fixed = privacy | {"noise_multiplier": price["noise_multiplier"], "epsilon": epsilon}
    if privacy.get("audit") is not None:
        fixed["audit"] = privacy["audit"] | {"commitment": price.get("canaries_commitment")}
    return fixed


def pause(session: Session, principal: Principal, run_id: UUID, *, reason: str | None = None) -> Run:
    """Open no further round until `resume`; the round under way goes on."""
    queries.run_for(session, principal, run_id, "runs:control")
    advance(
        session, run_id, RunState.PAUSED, actor=principal.actor, reason_code="paused_by_hand", reason=reason
    )
    return queries.lock_run(session, run_id)


def resume(session: Session, principal: Principal, run_id: UUID, *, region: str | None) -> Run:
    """Go on: open the next round unless one is under way; a run without further rounds is finished.

    Paused again, with the reason, where a data rule denies the next round.

    A round that was aborted has used its number, and stays charged to those who sent for it. Raises
    ClaimRefuted for a run of which nothing can be released any more.
    """
    queries.run_for(session, principal, run_id, "runs:control")
    advance(session, run_id, RunState.RUNNING, actor=principal.actor, reason_code=None, reason=None)
    rounds.require_not_refuted(session, queries.lock_run(session, run_id))
    _go_on(session, run_id, actor=principal.actor, region=region)
    return queries.lock_run(session, run_id)


def stop(session: Session, principal: Principal, run_id: UUID, *, reason: str) -> Run:
    """End a run for good. A round that is not sealed yet is aborted; a sealed one is finished.

    What was reserved and not spent stays reserved: an early stop may depend on what was released.
    """
    queries.run_for(session, principal, run_id, "runs:control")
    advance(
        session,
        run_id,
        RunState.ABORTED,
        actor=principal.actor,
        reason_code="stopped",
        reason=reason,
        finished_at=sa.func.now(),
    )
    rounds.abort_unsealed(session, run_id, reason=reason, actor=principal.actor)
    run = queries.lock_run(session, run_id)
    rounds.audit_when_over(session, run)
    return run


def after_publish(session: Session, run_id: UUID, *, actor: str, region: str | None) -> None:
    """Called by the publish job in its transaction: open the next round, or finish the run.

    Or pause it, where a data rule denies the next round.
    """
    run = queries.lock_run(session, run_id)
    if run.state is RunState.RUNNING:
        _go_on(session, run_id, actor=actor, region=region)
    elif run.state is RunState.PAUSED and not rounds.has_further(session, run):
        _finish(session, run_id, actor=actor)
    else:
        rounds.audit_when_over(session, run)
        notify(session, CHANNEL, str(run_id))


def after_abort(session: Session, run_id: UUID, *, code: str, reason: str, actor: str) -> None:
    """Called by whoever aborted the run's round, in its transaction: the run pauses and says why."""
    run = queries.lock_run(session, run_id)
    if run.state is RunState.RUNNING:
        advance(session, run_id, RunState.PAUSED, actor=actor, reason_code=code, reason=reason)
    else:
        rounds.audit_when_over(session, run)


def _go_on(session: Session, run_id: UUID, *, actor: str, region: str | None) -> None:
    run = queries.lock_run(session, run_id)
    if rounds.is_under_way(session, run_id):
        return
    rounds.pass_over(session, run, actor=actor)
    if not rounds.has_further(session, run):
        _finish(session, run_id, actor=actor)
    elif ruling.decide(session, run, region=region, actor=actor):
        code, reason = ruling.DENIED
        advance(session, run_id, RunState.PAUSED, actor=actor, reason_code=code, reason=reason)
    else:
        rounds.open_next(session, run, actor=actor)
        notify(session, CHANNEL, str(run_id))


def _finish(session: Session, run_id: UUID, *, actor: str) -> None:
    values = {"finished_at": sa.func.now(), "reason_code": None, "reason": None}
    advance(session, run_id, RunState.FINISHED, actor=actor, **values)
    rounds.audit_when_over(session, queries.lock_run(session, run_id))
