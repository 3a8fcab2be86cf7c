"""A run's rounds: which comes next, from which adapter, and whether one is under way."""

from __future__ import annotations

from collections.abc import Sequence
from datetime import timedelta
from typing import Any
from uuid import UUID

from sqlalchemy.orm import Session

from app.budget import audits
from app.core.clock import now
from app.core.errors import Conflict
from app.core.i18n import _
from app.custody.keys import BlobRef
from app.identity.queries import capabilities_of
from app.jobs.queue import enqueue
from app.releases.models import Release
from app.releases.queries import rolled_back_rounds
from app.rounds import lifecycle, standing
from app.rounds.models import Round
from app.rounds.queries import lock_round, rounds_of
from app.rounds.selection import Cohort, draw_cohort
from app.rounds.states import FINAL, RoundState
from app.runs.canaries import seated
from app.runs.manifest import Manifest, PoissonCohort
from app.runs.methods import rank_for
from app.runs.models import Run
from app.runs.queries import client_ids_of, senders_of
from app.runs.sending import TWO_TURNS
from app.runs.states import RunState


class ClaimRefuted(Conflict):
    """A run whose mechanism was shown not to keep its claim."""

    code, title = "claim_refuted", _("An audit refuted the run's claim")
    meaning = _("A further round would be charged to its clients and could never be released.")
    remedy = _("Stop the run, and plan a new one once it is known what was wrong.")


def require_not_refuted(session: Session, run: Run) -> None:
    """Let no round open that only costs; raises ClaimRefuted."""
    if audits.is_refuted(session, run.id, run.manifest_sha256):
        raise ClaimRefuted(_("nothing more of this run is released"), run_id=str(run.id))


def seals_at_deadline(manifest: dict[str, Any]) -> bool:
    """Say whether a round of the run stays open until its deadline, whoever has sent.

    Only then the time of its seal says nothing of who was drawn. A plan without a word on it is taken so
    where its cohort is secret.
    """
    seal, privacy = manifest["quorum"].get("seal"), manifest["privacy"]
    if seal is None:
        return bool(privacy["trust"] == "central" and privacy["cohort"]["kind"] == "poisson")
    return bool(seal == "deadline")


def goes_on_from(session: Session, run_id: UUID) -> Round | None:
    """Round whose release the next one starts from, with the optimizer's state: the last that holds.

    One that was rolled back does not. None before the first.
    """
    gone = rolled_back_rounds(session, run_id)
    published = [row for row in rounds_of(session, run_id) if row.state is RoundState.PUBLISHED]
    return next((row for row in reversed(published) if row.id not in gone), None)


def optimizer_state(session: Session, run: Run) -> BlobRef | None:
    """Blob of the state that the run's next step goes on from; None where its optimizer starts anew.

    That of the round that the run goes on from; before the first, that of the release that the run starts
    from, if it was made by the same optimizer with the same constants. A clone starts anew, like its adapter.
    """
    last = goes_on_from(session, run.id)
    if last is not None:
        return _ref(run.organisation_id, last.optimizer_sha256)
    if run.from_release_id is None:
        return None
    release = session.get_one(Release, run.from_release_id)
    former = session.get_one(Run, release.run_id).manifest["aggregation"].get("server_optimizer")
    own = run.manifest["aggregation"].get("server_optimizer")
    goes_on = own is not None and own == former
    return _ref(release.organisation_id, release.optimizer_sha256) if goes_on else None


def _ref(tenant: UUID, sha256: str | None) -> BlobRef | None:
    return None if sha256 is None else BlobRef(tenant, sha256)


def is_under_way(session: Session, run_id: UUID) -> bool:
    """Say whether a round of the run is not over yet."""
    return any(round_.state not in FINAL for round_ in rounds_of(session, run_id))


def has_further(session: Session, run: Run) -> bool:
    """Say whether the manifest has a round left that was not opened yet."""
    return len(rounds_of(session, run.id)) < int(run.manifest["rounds"])


def is_last_round(run: Run, round_: Round) -> bool:
    """Say whether the manifest plans no round after this one."""
    return round_.number >= int(run.manifest["rounds"])


def audit_when_over(session: Session, run: Run) -> None:
    """Have a run with canaries in its rounds audited once it is over, unless its last release had to be.

    Called wherever a run or its last round may have ended. Until then nobody is shown the canaries' coins.
    """
    over = run.state in {RunState.FINISHED, RunState.ABORTED} and not is_under_way(session, run.id)
    if not over or not seated(run.manifest):
        return
    if audits.first_of(session, run.id, run.manifest_sha256, of=audits.RUN) is None:
        ask_for_run_audit(session, run.id, key=f"over:{run.id}")


def ask_for_run_audit(session: Session, run_id: UUID, *, key: str, round_id: UUID | None = None) -> None:
    """Have the canaries of a run's rounds opened; `round_id` is the round whose release waits for it."""
    payload = {"run_id": str(run_id), "of": audits.RUN}
    if round_id is not None:
        payload["round_id"] = str(round_id)
    enqueue(session, "audit_privacy", key=key, payload=payload)


NOTHING_TO_FINISH = (
    "nothing_to_finish",
    _("The round before it, whose training this round would have finished, was aborted."),
)


def pass_over(session: Session, run: Run, *, actor: str) -> None:
    """Let an even round of `fedask` pass whose odd one was aborted: there is nothing for its second message.

    It keeps its number, since clients train by that and are charged by it.
    """
    former = rounds_of(session, run.id)
    is_half = len(former) % 2 == 1 and former[-1].state is RoundState.ABORTED
    if run.manifest["lora"]["method"] not in TWO_TURNS or not is_half or not has_further(session, run):
        return
    round_ = lifecycle.plan(
        session,
        run_id=run.id,
        organisation_id=run.organisation_id,
        number=len(former) + 1,
        min_updates=former[-1].min_updates,
        max_updates=former[-1].max_updates,
        deadline=now(),
        adapter_sha256=former[-1].adapter_sha256,
        client_ids=[],
        actor=actor,
    )
    code, reason = NOTHING_TO_FINISH
    lifecycle.abort(session, round_.id, code=code, reason=reason, actor=actor)


def open_next(session: Session, run: Run, *, actor: str) -> Round:
    """Plan and open the next round, from the adapter of the last release that holds, with its cohort.

    Raises ClaimRefuted where an audit forbids every further release.
    """
    require_not_refuted(session, run)
    former = rounds_of(session, run.id)
    last = goes_on_from(session, run.id)
    adapter = run.start_adapter_sha256 if last is None else last.candidate_sha256
    if adapter is None:
        raise Conflict(_("the run has no adapter to start from"))
    manifest = Manifest.model_validate(run.manifest)
    drawn = _drawn(session, run, manifest)
    client_ids = _invited(session, manifest, former, drawn=drawn.clients)
    given = ranks_of(session, manifest, client_ids)
    round_ = lifecycle.plan(
        session,
        run_id=run.id,
        organisation_id=run.organisation_id,
        number=len(former) + 1,
        min_updates=manifest.quorum.min_updates,
        max_updates=manifest.quorum.max_updates,
        deadline=now() + timedelta(seconds=manifest.round_deadline_s),
        adapter_sha256=adapter,
        client_ids=client_ids,
        actor=actor,
        ranks=given,
        clip_norm=_clip_norm(manifest, former),
        cohort_secret=manifest.privacy.has_secret_cohort,
        drawn_canaries=drawn.canaries if seated(run.manifest) else None,
    )
    lifecycle.open_round(session, round_.id, actor=actor)
    return round_


def _invited(
    session: Session, manifest: Manifest, former: Sequence[Round], *, drawn: list[UUID]
) -> list[UUID]:
    """Of those who were drawn, who can take part and may."""
    if manifest.lora.method in TWO_TURNS and len(former) % 2 == 1:
        drawn = senders_of(session, former[-1].id)  # nobody else has a second message
    if manifest.privacy.trust == "central":  # there, who takes part may not hang on what was sent
        return drawn
    if manifest.training.control_variates != "none":
        return standing.unsuspected(session, drawn)  # there, who takes part counts whole
    return standing.without_suspended(session, drawn)


def _drawn(session: Session, run: Run, manifest: Manifest) -> Cohort:
    """Who is in the next round, of the run's clients and canaries."""
    cohort, client_ids = manifest.privacy.cohort, client_ids_of(session, run.id)
    canaries = seated(run.manifest)
    if not isinstance(cohort, PoissonCohort):
        return Cohort(clients=client_ids, canaries=list(range(canaries)))
    if len(client_ids) > cohort.n_max:
        raise Conflict(_("the run has more clients than its price holds for"))
    return draw_cohort(
        client_ids, rate=cohort.rate, cap=cohort.cap, population=cohort.n_max, canaries=canaries
    )


def ranks_of(session: Session, manifest: Manifest, client_ids: Sequence[UUID]) -> dict[UUID, int]:
    """At which rank each client trains, by what it declared of itself; nothing where the run has one rank.

    Hardware is no data. A client that not even the smallest rank fits gets that one.
    """
    if not manifest.lora.has_mixed_ranks or manifest.lora.ranks is None:
        return {}
    plan, smallest = manifest.as_json(), manifest.lora.ranks[0]
    declared = capabilities_of(session, client_ids)
    return {client_id: rank_for(plan, declared[client_id]) or smallest for client_id in client_ids}


def _clip_norm(manifest: Manifest, former: Sequence[Round]) -> float | None:
    """C of the next round where the server clips: the manifest's, or what the last noised bits gave."""
    if manifest.privacy.trust != "central":
        return None
    found = [round_.next_clip_norm for round_ in former if round_.next_clip_norm is not None]
    return found[-1] if found else manifest.privacy.clip_norm


def abort_unsealed(session: Session, run_id: UUID, *, reason: str, actor: str) -> None:
    """Abort the round that still waits for updates, if there is one."""
    for round_ in rounds_of(session, run_id):
        # Locked and read again: a racing last upload may have sealed it, and a sealed round is finished.
        if lock_round(session, round_.id).state in {RoundState.PLANNED, RoundState.OPEN}:
            lifecycle.abort(session, round_.id, code="run_stopped", reason=reason, actor=actor)
