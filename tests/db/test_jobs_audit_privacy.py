"""The audit of a mechanism: right code is not refuted, noise that is too small is, and the report stays."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest
import sqlalchemy as sa
from sqlalchemy.exc import DBAPIError
from torch import Tensor

from app.budget.models import PrivacyAudit, PrivacyViolation
from app.core.db import Database
from app.jobs import leases
from app.jobs.models import Job
from app.jobs.queue import enqueue
from app.runs.manifest import Manifest
from engines.privacy import central, mechanism
from engines.privacy.audit_report import first_contradiction, report_from
from engines.privacy.noise import NoiseStream, integer_gaussian
from tests.builders import build_run, tiny_manifest
from tests.central import CENTRAL
from tests.worker_bench import LEASE_S, context_for
from workers.handlers import audit_privacy

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
