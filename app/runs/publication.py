"""Turning a validated round into a release: collects what its certificate rests on, then has it recorded."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any
from uuid import UUID

import sqlalchemy as sa
from sqlalchemy.orm import Session

from app.budget import audits
from app.budget.queries import accounts_reserving, clients_on_same_data, paid_beside
from app.core.canonical import canonical_sha256
from app.core.clock import now
from app.core.errors import Conflict
from app.core.i18n import _
from app.core.ids import new_id
from app.releases import service as releases
from app.releases.certificate import Ancestor, Facts, Sign
from app.releases.models import Release
from app.releases.queries import latest_of_run, release_of_round, rolled_back_rounds
from app.rounds.models import Round
from app.rounds.queries import get_round, rounds_of
from app.rounds.states import RoundState
from app.runs.auditing import is_audited
from app.runs.canaries import seated
from app.runs.charges import run_ref
from app.runs.manifest import Manifest
from app.runs.models import Run, RunClient
from app.runs.queries import client_ids_of
from app.runs.rounds import goes_on_from, is_last_round, seals_at_deadline

_DEEPEST_LINEAGE = 1000


def release_round(
    session: Session,
    round_id: UUID,
    *,
    adapter_sha256: str,
    tensors: Sequence[Mapping[str, Any]],
    size_bytes: int,
    adapter_config: Mapping[str, Any],
    sign: Sign,
    issuer: str,
) -> Release:
    """Record the release of a round, with its signed certificate; called by the publish job.

    The caller moves the round to `published` in the same transaction. A second call returns the first's
    release. `adapter_sha256` names the blob of the whole adapter file, `tensors` has what is in it by digest.
    """
    if (known := release_of_round(session, round_id)) is not None:
        return known
    round_ = get_round(session, round_id)
    run = session.get_one(Run, round_.run_id)
    former = latest_of_run(session, run.id)  # certificates follow each other as they were issued
    return releases.keep(
        session,
        facts=_facts(
            session,
            run,
            round_,
            adapter_sha256=adapter_sha256,
            tensors=tensors,
            adapter_config_sha256=canonical_sha256(dict(adapter_config)),
            previous=None if former is None else canonical_sha256(former.certificate),
            issuer=issuer,
        ),
        organisation_id=run.organisation_id,
        size_bytes=size_bytes,
        optimizer_sha256=round_.optimizer_sha256,
        adapter_config=adapter_config,
        parent_id=_parent_id(session, run),
        sign=sign,
    )


def _parent_id(session: Session, run: Run) -> UUID | None:
    """The release that training went on from."""
    last = goes_on_from(session, run.id)
    release = None if last is None else release_of_round(session, last.id)
    return run.from_release_id if release is None else release.id


def _facts(
    session: Session,
    run: Run,
    round_: Round,
    *,
    adapter_sha256: str,
    tensors: Sequence[Mapping[str, Any]],
    adapter_config_sha256: str,
    previous: str | None,
    issuer: str,
) -> Facts:
    """Collect what the certificate of a round's release rests on."""
    if run.manifest_sha256 is None:
        raise Conflict(_("the run was never started"))
    client_ids = client_ids_of(session, run.id)
    same_data = clients_on_same_data(session, client_ids)
    return Facts(
        release_id=new_id(),
        run_id=run.id,
        round_id=round_.id,
        number=round_.number,
        adapter_sha256=adapter_sha256,
        tensors=tensors,
        adapter_config_sha256=adapter_config_sha256,
        previous=previous,
        **_planned(run.manifest),
        manifest=run.manifest,
        manifest_sha256=run.manifest_sha256,
        price=run.price or {},
        rounds_aggregated=_aggregated(session, run.id, up_to=round_.number),
        clients=len(client_ids),
        accounts=accounts_reserving(session, run_ref(run.id)),
        paid=paid_beside(session, run_ref(run.id)),
        ancestors=_ancestors(session, run, same_data),
        unclaimed_runs=_unclaimed_runs(session, same_data),
        audit=_audit(session, run, round_),
        issuer=issuer,
        issued_at=now(),
    )


def _planned(manifest: dict[str, Any]) -> dict[str, Any]:
    """What a frozen manifest means for the claim."""
    return {
        "steps": Manifest.model_validate(manifest).steps,
        "canaries": seated(manifest),
        "seals_at_deadline": seals_at_deadline(manifest),
    }


def _audit(session: Session, run: Run, round_: Round) -> dict[str, Any] | None:
    """The audit that the run's plan asks for; raises Conflict where it forbids a release or is missing.

    That of canaries in the run's rounds is missing only from the last: their coins are opened there.
    """
    if audits.is_refuted(session, run.id, run.manifest_sha256):
        raise Conflict(_("an audit refuted the run's claim"))
    if not is_audited(run):
        return None
    in_rounds = seated(run.manifest) > 0
    kind = audits.RUN if in_rounds else audits.SUM
    found = audits.first_of(session, run.id, run.manifest_sha256, of=kind)
    if found is None:
        if in_rounds and not is_last_round(run, round_):
            return None
        raise Conflict(_("the run was not audited yet"))
    return {
        "report": found.report,
        "audited_at": found.at.isoformat(timespec="seconds"),
        "audits": found.audits,
    }


def _aggregated(session: Session, run_id: UUID, *, up_to: int) -> list[int]:
    """Numbers of the rounds whose updates are in the adapter; one that was aborted or rolled back is not."""
    gone = rolled_back_rounds(session, run_id)
    return [
        round_.number
        for round_ in rounds_of(session, run_id)
        if round_.number <= up_to
        and round_.id not in gone
        and (round_.state is RoundState.PUBLISHED or round_.number == up_to)
    ]


def _ancestors(session: Session, run: Run, same_data: set[UUID]) -> list[Ancestor]:
    """The releases that this run, and the runs before it, started from; nearest first."""
    found: list[Ancestor] = []
    release_id = run.from_release_id
    while release_id is not None and len(found) < _DEEPEST_LINEAGE:
        release = session.get_one(Release, release_id)
        former = session.get_one(Run, release.run_id)
        price = former.price or {}
        found.append(
            Ancestor(
                release_id=release.id,
                run_id=former.id,
                trust=former.manifest["privacy"]["trust"],
                epsilon=price.get("epsilon"),
                delta=price.get("delta"),
                refuted=audits.is_refuted(session, former.id, former.manifest_sha256),
                shares_clients=not same_data.isdisjoint(client_ids_of(session, former.id)),
            )
        )
        release_id = former.from_release_id
    return found


def _unclaimed_runs(session: Session, same_data: set[UUID]) -> int:
    """Started runs with trust `none`, or that an audit refuted, in which one of these clients took part."""
    statement = (
        sa.select(sa.func.count(sa.distinct(Run.id)))
        .join(RunClient, RunClient.run_id == Run.id)
        .where(
            RunClient.client_id.in_(same_data),
            Run.started_at.is_not(None),
            sa.or_(
                Run.manifest["privacy"]["trust"].as_string() == "none",
                sa.tuple_(Run.id, Run.manifest_sha256).in_(audits.refuted_claims()),
            ),
        )
    )
    return session.scalar(statement) or 0
