"""Privacy violations: recorded where they are found, kept for ever, counted for who may see them."""

from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

import pytest
import sqlalchemy as sa
import torch
from sqlalchemy.exc import DBAPIError
from sqlalchemy.orm import Session
from starlette.testclient import TestClient

from app.budget import audits, violations
from app.budget.models import PrivacyViolation
from app.budget.violations import ViolationKind
from app.core.db import Database
from app.core.settings import Settings
from app.identity.roles import Role
from app.jobs.models import Job
from app.runs import service
from app.runs.states import RunState
from tests.builders import build_account, build_client, build_organisation, build_run, tiny_manifest
from tests.federation import PRICE, Federation
from tests.http.accounts import Caller, add_caller
from tests.worker_bench import build_sealed, context_for, trained, work
from workers.handlers import aggregate

NONE = dict.fromkeys((kind.value for kind in ViolationKind), 0)


def seen_by(api: TestClient, caller: Caller) -> dict[str, int]:
    answer = api.get("/v1/privacy/violations", headers=caller.headers)
    assert answer.status_code == 200
    counts: dict[str, int] = answer.json()["counts"]
    return counts


@pytest.mark.parametrize("role", [Role.COORDINATOR, Role.PRIVACY_OFFICER, Role.AUDITOR])
def test_an_operator_counts_its_own_organisations_and_an_administrator_all(
    api: TestClient, session: Session, role: Role
) -> None:
    own, other = build_organisation(session), build_organisation(session)
    for organisation, kind in ((own, ViolationKind.SCALED_NOISE), (other, ViolationKind.RESIDENCY)):
        violations.record(session, kind, organisation_id=organisation.id, detail={"why": "a test"})
    assert seen_by(api, add_caller(session, role, own.id)) == NONE | {"scaled_noise": 1}
    assert seen_by(api, add_caller(session)) == NONE | {"scaled_noise": 1, "residency": 1}
    metrics = api.get("/metrics", headers=add_caller(session).headers).text
    assert 'dpfl_privacy_violations{kind="residency"} 1.0' in metrics
    assert 'dpfl_privacy_violations{kind="missing_noise"} 0.0' in metrics


def test_a_viewer_may_not_count_them(api: TestClient, session: Session) -> None:
    headers = add_caller(session, Role.VIEWER).headers
    assert api.get("/v1/privacy/violations", headers=headers).status_code == 403


def test_a_record_is_never_changed_or_removed(session: Session) -> None:
    organisation = build_organisation(session)
    violations.record(session, ViolationKind.NO_CONSENT, organisation_id=organisation.id, detail={})
    for statement in (
        "UPDATE privacy_violations SET kind = 'residency'",
        "DELETE FROM privacy_violations",
        "TRUNCATE privacy_violations",
    ):
        with pytest.raises(DBAPIError), session.begin_nested():
            session.execute(sa.text(statement))


def test_a_plan_that_an_account_does_not_cover_is_a_ceiling_that_was_hit_of_nobody_in_particular(
    session: Session, settings: Settings
) -> None:
    federation = Federation(session, settings, epsilon=5.0)
    first, second = federation.priced(), federation.priced()
    service.start(session, federation.coordinator, first.id, region=None)
    refused = service.start(session, federation.coordinator, second.id, region=None)
    assert refused.state is RunState.REFUSED
    federation.priced(PRICE | {"epsilon": 9.0, "epsilon_by_round": [5.0, 9.0]})
    rows = session.scalars(sa.select(PrivacyViolation).order_by(PrivacyViolation.id)).all()
    assert [(row.kind, row.client_id) for row in rows] == [(ViolationKind.CEILING_HIT, None)] * 2
    assert rows[0].run_id == second.id
    assert rows[1].detail == {"epsilon": 9.0, "delta": 1e-5}


def test_an_update_over_the_declared_clip_is_recorded_with_its_client_where_clients_noise(
    database: Database, tmp_path: Path
) -> None:
    context = context_for(database, tmp_path)
    manifest = tiny_manifest(aggregation={"clip_norm": 2.0})
    round_id = build_sealed(context, [trained(100.0), trained(0.0), trained(torch.nan)], manifest=manifest)
    work(context, aggregate.run, "aggregate", round_id)
    with database.run_tx("test") as session:
        row = session.scalars(sa.select(PrivacyViolation)).one()
    assert (row.kind, row.detail) == (ViolationKind.BOUND_EXCEEDED, {"round": 1, "clip_norm": 2.0})
    assert row.client_id is not None


def test_a_privacy_officer_limits_its_own_organisations_grants_and_no_others(
    api: TestClient, session: Session
) -> None:
    own, other = build_organisation(session), build_organisation(session)
    officer = add_caller(session, Role.PRIVACY_OFFICER, own.id)
    body = {"epsilon_ceiling": 4.0}
    answer = api.put(f"/v1/organisations/{own.id}/ceiling", json=body, headers=officer.headers)
    assert (answer.status_code, answer.json()["epsilon_ceiling"]) == (200, 4.0)
    foreign = api.put(f"/v1/organisations/{other.id}/ceiling", json=body, headers=officer.headers)
    assert foreign.status_code == 404
    account_id = build_account(session, build_client(session, own), epsilon=3.0)
    grant = {"epsilon": 1.5, "delta": 0.0, "reason": "a second study"}
    refused = api.post(f"/v1/budgets/{account_id}/grants", json=grant, headers=officer.headers)
    assert (refused.status_code, refused.json()["code"]) == (409, "ceiling_over_organisation")
    lifted = api.put(
        f"/v1/organisations/{own.id}/ceiling", json={"epsilon_ceiling": None}, headers=officer.headers
    )
    assert lifted.json()["epsilon_ceiling"] is None
    assert api.post(f"/v1/budgets/{account_id}/grants", json=grant, headers=officer.headers).is_success


def test_only_an_administrator_has_the_ledger_checked_now(api: TestClient, session: Session) -> None:
    officer = add_caller(session, Role.PRIVACY_OFFICER)
    assert api.post("/v1/privacy/recheck", headers=officer.headers).status_code == 403
    admin = add_caller(session)
    assert api.post("/v1/privacy/recheck", headers=admin.headers).status_code == 202
    assert session.scalar(sa.select(sa.func.count()).select_from(Job).where(Job.kind == "recheck")) == 1


def test_audits_are_asked_for_by_administrators_and_seen_by_their_own_organisation(
    api: TestClient, session: Session, settings: Settings
) -> None:
    run = Federation(session, settings).running()
    body = {"run_id": str(run.id)}
    officer = add_caller(session, Role.PRIVACY_OFFICER, run.organisation_id)
    assert api.post("/v1/privacy/audits", json=body, headers=officer.headers).status_code == 403
    assert api.post("/v1/privacy/audits", json=body, headers=add_caller(session).headers).status_code == 202
    assert session.scalar(sa.select(Job.payload).where(Job.kind == "audit_privacy")) == body
    assert run.manifest_sha256 is not None
    audits.record(
        session,
        organisation_id=run.organisation_id,
        run_id=run.id,
        manifest_sha256=run.manifest_sha256,
        report={"refuted": False},
    )
    (seen,) = api.get("/v1/privacy/audits", headers=officer.headers).json()["items"]
    assert (seen["run_id"], seen["refuted"], seen["report"]) == (str(run.id), False, {"refuted": False})
    assert seen["manifest_sha256"] == run.manifest_sha256
    stranger = add_caller(session, Role.PRIVACY_OFFICER)
    assert api.get("/v1/privacy/audits", headers=stranger.headers).json()["items"] == []


def test_a_run_that_was_not_started_is_not_audited_since_its_noise_may_still_change(
    api: TestClient, session: Session, settings: Settings
) -> None:
    federation = Federation(session, settings)
    admin = add_caller(session)
    for run in (federation.draft(), federation.priced()):
        answer = api.post("/v1/privacy/audits", json={"run_id": str(run.id)}, headers=admin.headers)
        assert (answer.status_code, answer.json()["code"]) == (409, "run_not_started")
    assert session.scalar(sa.select(sa.func.count()).select_from(Job).where(Job.kind == "audit_privacy")) == 0


def test_a_violation_that_is_caused_by_16_at_once_is_one_record(database: Database) -> None:
    with database.run_tx("set up") as session:
        client, run = build_client(session), build_run(session)
        known = {"organisation_id": run.organisation_id, "run_id": run.id, "client_id": client.id}

    def attempt(number: int) -> bool:
        with database.run_tx("note") as session:
            kind = ViolationKind.SCALED_NOISE
            detail = {"declared": number}
            return violations.record_first(session, kind, once="a round", detail=detail, **known)

    with ThreadPoolExecutor(16) as pool:
        assert sorted(pool.map(attempt, range(16))) == [False] * 15 + [True]
    with database.run_tx("check") as session:
        assert session.scalar(sa.select(sa.func.count()).select_from(PrivacyViolation)) == 1
        assert violations.record_first(
            session, ViolationKind.MISSING_NOISE, once="a round", detail={}, **known
        )
