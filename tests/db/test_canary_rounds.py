"""Canaries with places in a run's own rounds: scored in each, opened at the end, held against the claim."""

from __future__ import annotations

import dataclasses
from pathlib import Path
from typing import Any
from uuid import UUID

import numpy as np
import pytest
import sqlalchemy as sa
from sqlalchemy.exc import DBAPIError
from sqlalchemy.orm import Session
from structlog.testing import capture_logs
from torch import Tensor

from app.budget.models import PrivacyAudit, PrivacyViolation
from app.core.crypto import Vault
from app.core.db import Database
from app.core.ids import new_id
from app.custody.keys import BlobRef
from app.identity.roles import Principal, Role
from app.jobs.models import Job
from app.releases.models import Release
from app.rounds import canaries as kept
from app.rounds import lifecycle, noise_secrets
from app.rounds.models import Round, RoundCanaries
from app.rounds.queries import cohort_of, rounds_of
from app.rounds.states import RoundState
from app.runs import service
from app.runs.canaries import seated
from app.runs.manifest import Manifest
from app.runs.models import Run
from app.runs.queries import lock_run
from app.runs.states import RunState
from engines.privacy import central
from engines.privacy.audit_report import first_contradiction, report_from
from engines.privacy.noise import NoiseStream, integer_gaussian
from tests.builders import HOME
from tests.central import (
    CANARIES,
    CAP,
    CLIENTS,
    EVERYONE,
    PRICE,
    SEATED,
    central_manifest,
    send_and_seal,
    start_central_run,
)
from tests.worker_bench import context_for, round_of, trained, work
from workers.canaries import CanariesDiffer, SeatedCanaries, committed
from workers.central import NoisedRound, Step, noised_step
from workers.context import Context
from workers.handlers import aggregate, audit_privacy, publish, validate
from workers.merging import Began
from workers.tensors import write_tensors

LITTLE: dict[str, Any] = {"noise_multiplier": 4.0, "epsilon": 1.25, "epsilon_by_round": [0.8, 1.25]}
OFTEN: dict[str, Any] = {"cohort": {"kind": "poisson", "rate": 0.9, "cap": 206, "n_max": CLIENTS}}
"""Two rounds of it at z = 4 cost 1.244. Of 150 simulated runs a tenth of the noise gave bounds from 1.88 on,
and right noise up to .5."""


@pytest.fixture
def context(database: Database, tmp_path: Path) -> Context:
    return context_for(database, tmp_path)


@pytest.fixture
def claims_little(monkeypatch: pytest.MonkeyPatch) -> None:
    """Price every run as `OFTEN` costs: what 200 canaries can refute."""
    for name, value in LITTLE.items():
        monkeypatch.setitem(PRICE, name, value)


def started(context: Context, *, rounds: int = 2, **privacy: Any) -> UUID:
    start, _size = write_tensors(
        context.blobs.of(HOME), trained(0.25, central_manifest(**(SEATED | privacy)))
    )
    with context.database.run_tx("test") as session:
        run = start_central_run(
            session,
            context.settings,
            start_adapter_sha256=start,
            rounds=rounds,
            **(SEATED | {"epsilon": None, "noise_multiplier": PRICE["noise_multiplier"]} | privacy),
        )
        return run.id


def sealed(context: Context, run_id: UUID, number: int) -> UUID:
    """Seal a run's round; every client of its cohort has sent the same."""
    with context.database.run_tx("test") as session:
        row = rounds_of(session, run_id)[number - 1]
        update = trained(0.01, session.get_one(Run, run_id).manifest)
        send_and_seal(session, context.blobs, row, [update] * len(cohort_of(session, row.id)))
        return row.id


def validated(context: Context, run_id: UUID, number: int) -> UUID:
    round_id = sealed(context, run_id, number)
    work(context, aggregate.run, "aggregate", round_id)
    work(context, validate.run, "validate", round_id)
    return round_id


def jobs(session: Session, kind: str) -> list[Job]:
    return list(session.scalars(sa.select(Job).where(Job.kind == kind).order_by(Job.id)))


def audit(context: Context, key: UUID | str) -> None:
    """Do the audit that was asked for under this key."""
    with context.database.run_tx("test") as session:
        assert str(key) in [job.key for job in jobs(session, "audit_privacy")]
    work(context, audit_privacy.run, "audit_privacy", key)  # type: ignore[arg-type]  # a job's key is a text


def whole_run(context: Context) -> UUID:
    """A run of two rounds up to the audit that its last release waits for."""
    run_id = started(context, **OFTEN)
    work(context, publish.run, "publish", validated(context, run_id, 1))
    audit(context, validated(context, run_id, 2))
    return run_id


def audits_of(context: Context) -> list[PrivacyAudit]:
    with context.database.run_tx("test") as session:
        return list(session.scalars(sa.select(PrivacyAudit)))


def coordinator_of(context: Context, run_id: UUID) -> Principal:
    with context.database.run_tx("test") as session:
        return Principal(new_id(), session.get_one(Run, run_id).organisation_id, Role.COORDINATOR)


def test_a_run_keeps_its_coins_to_the_end_and_its_last_certificate_opens_them(context: Context) -> None:
    run_id = started(context)
    first = validated(context, run_id, 1)
    with context.database.run_tx("test") as session:
        assert jobs(session, "audit_privacy") == []
        manifest = session.get_one(Run, run_id).manifest
    with capture_logs() as logged:
        work(context, publish.run, "publish", first)
        second = validated(context, run_id, 2)
    assert logged == []
    with context.database.run_tx("test") as session:
        assert [job.key for job in jobs(session, "publish")] == [str(first)]
        assert len(kept.scores_of(session, context.vault, run_id)) == 2
    audit(context, second)
    work(context, publish.run, "publish", second)
    (found,) = audits_of(context)
    with context.database.run_tx("test") as session:
        releases = session.scalars(sa.select(Release).order_by(Release.number)).all()
        early, late = (release.certificate["privacy"] for release in releases)
        assert session.scalars(sa.select(RoundCanaries)).all() == []
        assert session.get_one(Run, run_id).state is RunState.FINISHED
        assert len(jobs(session, "audit_privacy")) == 1
    commitment = manifest["privacy"]["audit"]["commitment"]
    assert early["canaries"] == late["canaries"] == CANARIES
    assert early["canaries_commitment"] == late["canaries_commitment"] == commitment
    assert "audit" not in early
    assert late["audit"]["report"] == found.report
    report = report_from(found.report)
    assert first_contradiction(report) is None
    assert (report.statistic, report.commitment, report.claimed_epsilon) == ("sum_of_rounds", commitment, 3.9)
    assert (report.canaries, report.refuted) == (CANARIES, False)
    assert "composition of all its rounds" in late["audit"]["covers"]


@pytest.mark.usefixtures("claims_little")
def test_a_tenth_of_the_noise_in_a_runs_rounds_refutes_its_claim_and_blocks_the_last_release(
    context: Context, monkeypatch: pytest.MonkeyPatch
) -> None:
    def too_little(stream: NoiseStream, size: int, *, std_over_grid: float) -> Tensor:
        return integer_gaussian(stream, size, std_over_grid=std_over_grid) // 10

    monkeypatch.setattr(central, "integer_gaussian", too_little)
    run_id = whole_run(context)
    (found,) = audits_of(context)
    assert found.refuted
    with context.database.run_tx("test") as session:
        first, second = rounds_of(session, run_id)
        assert (first.state, second.state) == (RoundState.PUBLISHED, RoundState.ABORTED)
        assert second.abort_code == "claim_refuted"
        run = session.get_one(Run, run_id)
        assert (run.state, run.reason_code) == (RunState.PAUSED, "claim_refuted")
        assert session.scalars(sa.select(PrivacyViolation.kind)).all() == ["scaled_noise"]


@pytest.mark.usefixtures("claims_little")
def test_clipping_that_is_off_in_a_runs_rounds_refutes_its_claim(
    context: Context, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(central, "safe_scale", lambda norm, *, size, max_norm: 1.0)
    whole_run(context)
    (found,) = audits_of(context)
    assert found.refuted


@pytest.mark.usefixtures("claims_little")
def test_right_rounds_do_not_refute_a_little_claim(context: Context) -> None:
    whole_run(context)
    (found,) = audits_of(context)
    assert not found.refuted
    assert found.report["claimed_epsilon"] == 1.25


def noised_again(context: Context, round_id: UUID, **changes: Any) -> Step:
    """What the round's secret, sealed updates and canaries give."""
    with context.database.run_tx("test") as session:
        row = session.get_one(Round, round_id)
        run = session.get_one(Run, row.run_id)
        found = committed(run, context.vault)
        assert found is not None
        noised = NoisedRound(
            round_id=round_id,
            clip_norm=row.clip_norm or 0.0,
            clients=CLIENTS,
            secret=noise_secrets.unseal(session, context.vault, round_id),
            canaries=SeatedCanaries(found, kept.drawn_for(session, round_id)),
        )
        manifest = Manifest.model_validate(run.manifest)
    return noised_step(
        context.blobs,
        manifest,
        dataclasses.replace(noised, **changes),
        (),
        began=Began(round_id=new_id(), number=1, adapter=BlobRef(HOME, "0" * 64), ranks={}),
    )


def test_the_same_sealed_round_and_canaries_give_the_same_bytes_and_scores(
    context: Context, monkeypatch: pytest.MonkeyPatch
) -> None:
    class Died(BaseException):
        pass

    def die(point: str) -> None:
        if point == "aggregate.after_blob":
            raise Died

    run_id = started(context)
    with context.database.run_tx("test") as session:
        round_id = rounds_of(session, run_id)[0].id
        send_and_seal(session, context.blobs, session.get_one(Round, round_id), [])
    step = noised_again(context, round_id)
    monkeypatch.setattr(aggregate, "reach", die)
    with pytest.raises(Died):
        work(context, aggregate.run, "aggregate", round_id)
    monkeypatch.undo()
    work(context, aggregate.run, "aggregate", round_id)
    assert noised_again(context, round_id).scores == step.scores
    with context.database.run_tx("test") as session:
        assert kept.scores_of(session, context.vault, run_id) == [step.scores]
        start = session.get_one(Round, round_id).adapter_sha256
    added = {name: 0.25 + tensor for name, tensor in step.update.items()}
    assert (
        write_tensors(context.blobs.of(HOME), added)[0]
        == round_of(context.database, round_id).candidate_sha256
    )
    assert start != round_of(context.database, round_id).candidate_sha256


def test_rounds_with_other_canaries_in_them_never_share_their_noise(context: Context) -> None:
    """Neither canary adds anything, so equal noise would make equal rounds."""
    round_id = sealed(context, started(context), 1)
    with context.database.run_tx("test") as session:
        found = committed(session.scalars(sa.select(Run)).one(), context.vault)
    assert found is not None
    out = [int(number) for number in np.flatnonzero(~found.coins())[:2]]
    steps = [noised_again(context, round_id, canaries=SeatedCanaries(found, (number,))) for number in out]
    first, second = (step.update["base_model.model.classifier.weight"] for step in steps)
    assert bool((first != second).any())


def test_more_canaries_and_updates_than_the_cap_are_not_noised(context: Context) -> None:
    round_id = sealed(context, started(context), 1)
    with context.database.run_tx("test") as session:
        found = committed(session.scalars(sa.select(Run)).one(), context.vault)
    assert found is not None
    with pytest.raises(ValueError, match="cohort is full"):
        noised_again(context, round_id, canaries=SeatedCanaries(found, tuple(range(CAP + 1))))


def test_canaries_are_drawn_anew_for_every_round_and_all_of_them_where_everyone_is(context: Context) -> None:
    run_id = started(context)
    work(context, publish.run, "publish", validated(context, run_id, 1))
    with context.database.run_tx("test") as session:
        first, second = (kept.drawn_for(session, row.id) for row in rounds_of(session, run_id))
        assert first != second
        assert 50 < len(first) < 150
    whole = started(context, **EVERYONE)
    round_id = validated(context, whole, 1)
    with context.database.run_tx("test") as session:
        assert kept.drawn_for(session, round_id) == tuple(range(CANARIES))
        assert len(kept.scores_of(session, context.vault, whole)) == 1


def test_a_rounds_canaries_are_drawn_and_scored_once_and_scores_are_encrypted(context: Context) -> None:
    round_id = sealed(context, started(context), 1)
    work(context, aggregate.run, "aggregate", round_id)
    with context.database.run_tx("test") as session:
        row = session.get_one(RoundCanaries, round_id)
        (plain,) = kept.scores_of(session, context.vault, session.get_one(Round, round_id).run_id)
        assert len(plain) == 8 * CANARIES
        assert row.scores is not None
        assert plain[:16] not in row.scores
        for change in ({"drawn": []}, {"scores": b"x"}, {"scores": None}):
            with pytest.raises(DBAPIError), session.begin_nested():
                session.execute(sa.update(RoundCanaries).values(change))


def test_a_run_that_is_stopped_is_audited_once_no_round_is_under_way(context: Context) -> None:
    """The last sealed round is finished first, and its release waits for the coins."""
    run_id = started(context, rounds=5)
    work(context, publish.run, "publish", validated(context, run_id, 1))
    round_id = sealed(context, run_id, 2)
    coordinator = coordinator_of(context, run_id)
    with context.database.run_tx("test") as session:
        service.stop(session, coordinator, run_id, reason="enough")
        assert jobs(session, "audit_privacy") == []
    work(context, aggregate.run, "aggregate", round_id)
    work(context, validate.run, "validate", round_id)
    audit(context, round_id)
    work(context, publish.run, "publish", round_id)
    with context.database.run_tx("test") as session:
        assert [job.key for job in jobs(session, "audit_privacy")] == [str(round_id)]
        late = session.scalars(sa.select(Release).order_by(Release.number.desc())).first()
        assert late is not None
        assert late.certificate["privacy"]["audit"]["report"]["statistic"] == "sum_of_rounds"


def test_a_run_that_is_stopped_between_rounds_is_audited_at_once(context: Context) -> None:
    run_id = started(context, rounds=5)
    work(context, publish.run, "publish", validated(context, run_id, 1))
    coordinator = coordinator_of(context, run_id)
    with context.database.run_tx("test") as session:
        service.stop(session, coordinator, run_id, reason="enough")
    audit(context, f"over:{run_id}")
    (found,) = audits_of(context)
    assert found.report["statistic"] == "sum_of_rounds"
    with context.database.run_tx("test") as session:
        assert session.scalars(sa.select(RoundCanaries)).all() == []


def test_a_run_whose_last_round_is_aborted_is_audited_when_it_is_finished(context: Context) -> None:
    run_id = started(context, rounds=1)
    round_id = sealed(context, run_id, 1)
    work(context, aggregate.run, "aggregate", round_id)
    coordinator = coordinator_of(context, run_id)
    with context.database.run_tx("test") as session:
        lock_run(session, run_id)
        lifecycle.abort(session, round_id, code="by_hand", reason="why", actor="test")
        service.after_abort(session, run_id, code="by_hand", reason="why", actor="test")
        assert jobs(session, "audit_privacy") == []
        service.resume(session, coordinator, run_id, region=None)
    audit(context, f"over:{run_id}")
    assert len(audits_of(context)) == 1


def test_a_run_of_which_nothing_was_noised_has_nothing_to_open(context: Context) -> None:
    run_id = started(context)
    coordinator = coordinator_of(context, run_id)
    with context.database.run_tx("test") as session:
        service.stop(session, coordinator, run_id, reason="at once")
    audit(context, f"over:{run_id}")
    assert audits_of(context) == []


def test_under_another_master_key_no_round_is_noised_with_other_canaries(context: Context) -> None:
    run_id = started(context)
    with context.database.run_tx("test") as session, pytest.raises(CanariesDiffer):
        committed(session.get_one(Run, run_id), Vault(b"another master key, of 32 bytes!"))


def test_a_manifest_that_was_frozen_without_a_commitment_has_no_canaries_in_its_rounds(
    context: Context, monkeypatch: pytest.MonkeyPatch
) -> None:
    """The audit of an older run stays what it was priced and started with: of one sum, before the first."""
    monkeypatch.setitem(PRICE, "canaries_commitment", None)
    run_id = started(context)
    with context.database.run_tx("test") as session:
        assert seated(session.get_one(Run, run_id).manifest) == 0
        assert session.scalars(sa.select(RoundCanaries)).all() == []
    round_id = validated(context, run_id, 1)
    audit(context, round_id)
    work(context, publish.run, "publish", round_id)
    with context.database.run_tx("test") as session:
        told = session.scalars(sa.select(Release)).one().certificate["privacy"]
        assert told["audit"]["report"]["statistic"] == "final_iterate"
        assert "canaries" not in told
        assert kept.drawn_for(session, rounds_of(session, run_id)[1].id) == ()
