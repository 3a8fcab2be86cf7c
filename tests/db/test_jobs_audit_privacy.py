"""The audit of a mechanism: right code is not refuted, noise that is too small is, and the report stays."""

from __future__ import annotations

from pathlib import Path
from typing import Any
from uuid import UUID

import pytest
import sqlalchemy as sa
from sqlalchemy.exc import DBAPIError
from torch import Tensor

from app.budget import audits
from app.budget.models import PrivacyAudit, PrivacyViolation
from app.core.db import Database
from app.core.ids import new_id
from app.identity.roles import Principal, Role
from app.jobs import leases
from app.jobs.models import Job, JobState
from app.jobs.queue import enqueue
from app.releases.models import Release
from app.releases.statements import audit_of
from app.rounds.queries import rounds_of
from app.rounds.states import RoundState
from app.runs import service
from app.runs.manifest import Manifest
from app.runs.models import Run
from app.runs.rounds import ClaimRefuted, open_next
from app.runs.states import RunState
from engines.privacy import central, mechanism
from engines.privacy.audit_report import first_contradiction, report_from
from engines.privacy.noise import NoiseStream, integer_gaussian
from tests.builders import build_run, tiny_manifest
from tests.central import CENTRAL, send_and_seal
from tests.federation import PRICE, Federation
from tests.worker_bench import LEASE_S, context_for, job_of, round_of, trained, work
from workers.context import Context
from workers.handlers import aggregate, audit_privacy, publish, sweep, validate
from workers.tensors import write_tensors

LOCAL: dict[str, Any] = {"noise_multiplier": 1.0}
SERVER: dict[str, Any] = CENTRAL | {"noise_multiplier": 1.0}


@pytest.fixture
def a_tenth_of_the_noise(monkeypatch: pytest.MonkeyPatch) -> None:
    def too_little(stream: NoiseStream, size: int, *, std_over_grid: float) -> Tensor:
        return integer_gaussian(stream, size, std_over_grid=std_over_grid) // 10

    monkeypatch.setattr(central, "integer_gaussian", too_little)
    monkeypatch.setattr(mechanism, "integer_gaussian", too_little)


def audited(database: Database, folder: Path, privacy: dict[str, Any]) -> tuple[list[Any], list[Any]]:
    """Run the job on a run with this plan; return its audits and violations."""
    context = context_for(database, folder)
    with database.run_tx("test") as session:
        run = build_run(session, clients=0, manifest=tiny_manifest(privacy=privacy))
        run.manifest_sha256 = "f" * 64
        enqueue(session, "audit_privacy", key="asked", payload={"run_id": str(run.id)})
        job_id = session.scalar(sa.select(Job.id).where(Job.kind == "audit_privacy"))
    assert job_id is not None
    claim = leases.claim(database, job_id, ceiling_s=LEASE_S * 10)
    assert claim is not None
    audit_privacy.run(context, claim)
    with database.run_tx("test") as session:
        return list(session.scalars(sa.select(PrivacyAudit))), list(
            session.scalars(sa.select(PrivacyViolation))
        )


def test_right_code_leaves_a_report_that_anybody_can_recompute(database: Database, tmp_path: Path) -> None:
    (audit,), violations = audited(database, tmp_path, SERVER)
    assert first_contradiction(report_from(audit.report)) is None
    assert (audit.report["claimed_delta"], audit.report["canaries"]) == (1e-5, audit_privacy.CANARIES)
    assert len(violations) == int(audit.refuted)
    with pytest.raises(DBAPIError), database.run_tx("test") as session:
        session.execute(sa.delete(PrivacyAudit))


@pytest.mark.usefixtures("a_tenth_of_the_noise")
@pytest.mark.parametrize("privacy", [LOCAL, SERVER])
def test_noise_of_a_tenth_is_a_refuted_claim_and_a_violation(
    database: Database, tmp_path: Path, privacy: dict[str, Any]
) -> None:
    weak = privacy | {"noise_multiplier": 4.0}
    (audit,), (violation,) = audited(database, tmp_path, weak)
    assert audit.refuted
    assert (violation.kind.value, violation.run_id, violation.client_id) == (
        "scaled_noise",
        audit.run_id,
        None,
    )


def test_a_plan_without_noise_has_nothing_to_audit() -> None:
    nothing = {"trust": "none", "clip_norm": None, "epsilon": None, "delta": None, "noise_multiplier": None}
    assert audit_privacy.report_on(Manifest.model_validate(tiny_manifest(privacy=nothing))) is None


ASKED: dict[str, Any] = {"audit": {"canaries": 400}}


def validated(context: Context, run_id: UUID, number: int) -> UUID:
    """Bring a run's round to the end of its validation."""
    with context.database.run_tx("test") as session:
        row = rounds_of(session, run_id)[number - 1]
        send_and_seal(session, context.blobs, row, [trained(0.1)] * 2)
        round_id = row.id
    work(context, aggregate.run, "aggregate", round_id)
    work(context, validate.run, "validate", round_id)
    return round_id


def started(context: Context, **privacy: Any) -> UUID:
    """A run under `local`, where the audit is of one sum."""
    with context.database.run_tx("test") as session:
        federation = Federation(session, context.settings)
        start, _size = write_tensors(context.blobs.of(federation.organisation.id), trained(0.25))
        run = federation.draft(privacy=privacy)
        service.price(session, federation.coordinator, run.id)
        service.accept_price(
            session,
            run.id,
            version=run.version,
            price=PRICE | {"noise_multiplier": 1.5},
            start_adapter_sha256=start,
            actor="job",
        )
        return service.start(session, federation.coordinator, run.id, region=None).id


def jobs(context: Context, kind: str) -> int:
    with context.database.run_tx("test") as session:
        return session.scalar(sa.select(sa.func.count()).select_from(Job).where(Job.kind == kind)) or 0


def audit(context: Context, round_id: UUID) -> None:
    """Run the audit that a round waits for, under a lease that is long enough."""
    with context.database.run_tx("test") as session:
        job = job_of(session, "audit_privacy", round_id)
        assert job is not None
    claim = leases.claim(context.database, job.id, ceiling_s=LEASE_S * 10)
    assert claim is not None
    audit_privacy.run(context, claim)


def test_a_run_that_asks_is_audited_once_before_its_first_release_and_its_certificates_tell(
    database: Database, tmp_path: Path
) -> None:
    context = context_for(database, tmp_path)
    run_id = started(context, **ASKED)
    first = validated(context, run_id, 1)
    assert (jobs(context, "audit_privacy"), jobs(context, "publish")) == (1, 0)
    audit(context, first)
    assert jobs(context, "publish") == 1
    work(context, publish.run, "publish", first)
    second = validated(context, run_id, 2)
    assert (jobs(context, "audit_privacy"), jobs(context, "publish")) == (1, 2)
    work(context, publish.run, "publish", second)
    with database.run_tx("test") as session:
        found = session.scalars(sa.select(PrivacyAudit)).one()
        releases = session.scalars(sa.select(Release).order_by(Release.number)).all()
    assert len(releases) == 2
    for release in releases:
        told = release.certificate["privacy"]["audit"]
        assert (told["report"], told["audits"]) == (found.report, 1)
        assert told["report"]["canaries"] == 400
        assert {"method", "estimate", "lower_bound", "confidence"} <= set(told["report"])
        assert "One noised sum" in told["covers"]
        assert any("composition" in line for line in told["does_not_cover"])
        assert release.certificate["privacy"]["this_run"]["epsilon"] == 3.9


@pytest.mark.usefixtures("a_tenth_of_the_noise")
def test_an_audit_that_refutes_the_claim_blocks_this_release_and_every_later_one(
    database: Database, tmp_path: Path
) -> None:
    context = context_for(database, tmp_path)
    run_id = started(context, **ASKED)
    round_id = validated(context, run_id, 1)
    audit(context, round_id)
    row = round_of(database, round_id)
    assert (row.state, row.abort_code) == (RoundState.ABORTED, "claim_refuted")
    assert jobs(context, "publish") == 0
    with database.run_tx("test") as session:
        run = session.get_one(Run, run_id)
        assert (run.state, run.reason_code) == (RunState.PAUSED, "claim_refuted")
        assert session.scalars(sa.select(PrivacyViolation.kind)).all() == ["scaled_noise"]
    with database.run_tx("test") as session:
        assert session.scalars(sa.select(Release)).all() == []


@pytest.mark.usefixtures("a_tenth_of_the_noise")
def test_a_refuted_run_opens_no_further_round_to_charge(database: Database, tmp_path: Path) -> None:
    context = context_for(database, tmp_path)
    run_id = started(context, **ASKED)
    audit(context, validated(context, run_id, 1))
    with database.run_tx("test") as session:
        run = session.get_one(Run, run_id)
        coordinator = Principal(new_id(), run.organisation_id, Role.COORDINATOR)
    with pytest.raises(ClaimRefuted), database.run_tx("test") as session:
        service.resume(session, coordinator, run_id, region=None)
    with pytest.raises(ClaimRefuted), database.run_tx("test") as session:
        open_next(session, run, actor="test")
    with database.run_tx("test") as session:
        run = session.get_one(Run, run_id)
        assert (run.state, len(rounds_of(session, run_id))) == (RunState.PAUSED, 1)
        service.stop(session, coordinator, run_id, reason="refuted")


def refute(context: Context, run_id: UUID) -> Principal:
    """Keep a report that refutes a run's claim; returns a coordinator of the run's organisation."""
    report = {
        "refuted": True,
        "claimed_epsilon": 1.0,
        "claimed_delta": 1e-5,
        "lower_bound": 2.0,
        "method": "m",
    }
    with context.database.run_tx("test") as session:
        run = session.get_one(Run, run_id)
        assert run.manifest_sha256 is not None
        audits.record(
            session,
            organisation_id=run.organisation_id,
            run_id=run_id,
            manifest_sha256=run.manifest_sha256,
            report=report,
        )
        return Principal(new_id(), run.organisation_id, Role.COORDINATOR)


def test_an_audit_by_hand_that_refutes_stops_a_release_that_was_on_its_way(
    database: Database, tmp_path: Path
) -> None:
    context = context_for(database, tmp_path)
    run_id = started(context)
    round_id = validated(context, run_id, 1)
    refute(context, run_id)
    work(context, publish.run, "publish", round_id)
    assert round_of(database, round_id).abort_code == "claim_refuted"


def test_a_refuted_run_is_not_resumed_while_a_round_is_under_way(database: Database, tmp_path: Path) -> None:
    context = context_for(database, tmp_path)
    run_id = started(context)
    coordinator = refute(context, run_id)
    with database.run_tx("test") as session:
        service.pause(session, coordinator, run_id)
    with pytest.raises(ClaimRefuted), database.run_tx("test") as session:
        service.resume(session, coordinator, run_id, region=None)


def test_an_audit_of_another_manifest_neither_frees_nor_blocks_a_run(
    database: Database, tmp_path: Path
) -> None:
    context = context_for(database, tmp_path)
    run_id = started(context, **ASKED)
    with database.run_tx("test") as session:
        run = session.get_one(Run, run_id)
        report = dict.fromkeys(("claimed_epsilon", "claimed_delta", "lower_bound", "method"), 1.0)
        for refuted in (True, False):
            audits.record(
                session,
                organisation_id=run.organisation_id,
                run_id=run_id,
                manifest_sha256="0" * 64,
                report=report | {"refuted": refuted},
            )
    round_id = validated(context, run_id, 1)
    assert round_of(database, round_id).state is RoundState.VALIDATING
    assert (jobs(context, "audit_privacy"), jobs(context, "publish")) == (1, 0)


def test_a_plan_that_is_not_frozen_is_not_audited_by_a_job_that_was_asked_for(
    database: Database, tmp_path: Path
) -> None:
    context = context_for(database, tmp_path)
    with database.run_tx("test") as session:
        run = build_run(session, clients=0, state=RunState.DRAFT, manifest=tiny_manifest(privacy=LOCAL))
        enqueue(session, "audit_privacy", key="asked", payload={"run_id": str(run.id)})
        job_id = session.scalar(sa.select(Job.id).where(Job.kind == "audit_privacy"))
    assert job_id is not None
    claim = leases.claim(database, job_id, ceiling_s=LEASE_S * 10)
    assert claim is not None
    audit_privacy.run(context, claim)
    with database.run_tx("test") as session:
        assert session.scalars(sa.select(PrivacyAudit)).all() == []
        assert session.get_one(Job, job_id).state is JobState.DONE


def test_a_certificate_says_whether_its_audit_could_have_refuted(database: Database, tmp_path: Path) -> None:
    context = context_for(database, tmp_path)
    run_id = started(context, audit={"canaries": 100})
    round_id = validated(context, run_id, 1)
    audit(context, round_id)
    work(context, publish.run, "publish", round_id)
    with database.run_tx("test") as session:
        told = session.scalars(sa.select(Release)).one().certificate["privacy"]["audit"]
    assert told["can_refute"] is True
    assert told["report"]["largest_reachable"] > told["report"]["claimed_epsilon"]
    assert "which is over `claimed_epsilon`" in told["reach"]
    assert "could not have refuted" in audit_of("local", can_refute=False)["reach"]


def test_a_round_whose_audit_is_dead_is_ended_and_an_audit_by_hand_keeps_none(
    database: Database, tmp_path: Path
) -> None:
    context = context_for(database, tmp_path)
    run_id = started(context, **ASKED)
    round_id = validated(context, run_id, 1)
    with database.run_tx("test") as session:
        enqueue(session, "audit_privacy", key="asked:1", payload={"run_id": str(run_id)})
        session.execute(
            sa.update(Job)
            .where(Job.kind == "audit_privacy")
            .values(state=JobState.DEAD, finished_at=sa.func.now() - 2 * sweep.GRACE)
        )
        ((kind, payload),) = sweep._dead(session)
        sweep._end(session, kind, payload)
    assert round_of(database, round_id).abort_code == "job_failed"


def test_a_mechanism_that_no_audit_can_be_held_against_is_not_released(
    database: Database, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    context = context_for(database, tmp_path)
    run_id = started(context, **ASKED)
    round_id = validated(context, run_id, 1)
    monkeypatch.setattr(audit_privacy, "report_on", lambda _manifest: None)
    audit(context, round_id)
    assert round_of(database, round_id).abort_code == "audit_failed"
