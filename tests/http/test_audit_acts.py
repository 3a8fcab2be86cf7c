"""Every act that is named in the table leaves its entry: by whom, on what, and for whose eyes."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any
from uuid import UUID

import pytest
import sqlalchemy as sa
import torch
from sqlalchemy.orm import Session
from starlette.testclient import TestClient

from app.audit.models import AuditEntry, AuditPersonal
from app.budget import violations
from app.budget.queries import account_of_client
from app.budget.violations import ViolationKind
from app.core.canonical import canonical_sha256
from app.core.db import Database
from app.core.settings import Settings
from app.identity.keys import ensure_signing_keys, rotate_signing_keys
from app.identity.models import Organisation
from app.identity.roles import Role
from app.jobs.models import Job, JobState
from app.releases.models import Release
from app.rounds import lifecycle
from app.rounds.queries import sealed_set
from app.runs import service
from app.runs.models import Run
from app.updates.models import Update
from tests.audit_log import entries, opened, seen
from tests.builders import build_client, build_round
from tests.central import set_cohort
from tests.cohort_walk import walking
from tests.federation import OPEN_PRIVACY, Federation
from tests.http.accounts import VAULT, Caller, add_caller, enrol, invite
from tests.http.test_evidence import QUARANTINE, REVERSAL, Judged
from tests.http.test_releases import Publisher
from tests.http.test_updates import Seat, disclaim
from tests.worker_bench import build_sealed, context_for, trained, work
from workers.handlers import aggregate


@pytest.fixture
def admin(session: Session) -> Caller:
    return add_caller(session)


@pytest.fixture
def federation(session: Session, settings: Settings) -> Federation:
    return Federation(session, settings)


def test_organisations_and_members_without_their_names(
    api: TestClient, session: Session, admin: Caller
) -> None:
    body = {"name": "Charité", "region": "eu-central-1"}
    organisation = api.post("/v1/organisations", json=body, headers=admin.headers).json()["id"]
    ceiling = {"epsilon_ceiling": 4.0}
    api.put(f"/v1/organisations/{organisation}/ceiling", json=ceiling, headers=admin.headers)
    member = {"organisation_id": organisation, "name": "Ada Lovelace", "role": "auditor"}
    member_id = api.post("/v1/members", json=member, headers=admin.headers).json()["id"]
    by = admin.principal.actor
    assert seen(session, organisation) == [
        ("organisation.created", by, f"organisation:{organisation}"),
        ("organisation.limited", by, f"organisation:{organisation}"),
        ("member.created", by, f"member:{member_id}"),
    ]
    created, limited, added = entries(session, organisation)
    assert created["details"] == {"region": "eu-central-1"}
    assert limited["details"] == {"epsilon_ceiling": "4.0"}
    assert added["details"] == {"role": "auditor", "kind": "person"}
    assert opened(session, created, "name") == "Charité"
    assert opened(session, added, "name") == "Ada Lovelace"
    leaves = b"".join(session.scalars(sa.select(AuditEntry.canonical)))
    assert "Charité".encode() not in leaves
    assert b"Lovelace" not in leaves


def test_a_refused_act_leaves_no_entry(api: TestClient, session: Session) -> None:
    viewer = add_caller(session, Role.VIEWER)
    before = len(entries(session))
    body = {"name": "another", "region": "eu-central-1"}
    assert api.post("/v1/organisations", json=body, headers=viewer.headers).status_code == 403
    assert len(entries(session)) == before


def test_keys_made_and_revoked_once(api: TestClient, session: Session, admin: Caller) -> None:
    before = len(seen(session, admin.organisation_id))
    made = api.post("/v1/api-keys", json={"label": "my laptop"}, headers=admin.headers).json()
    for _again in range(2):
        assert api.delete(f"/v1/api-keys/{made['id']}", headers=admin.headers).status_code == 204
    by, subject = admin.principal.actor, f"api_key:{made['id']}"
    assert seen(session, admin.organisation_id)[before:] == [
        ("api_key.created", by, subject),
        ("api_key.revoked", by, subject),
    ]
    assert made["api_key"].encode() not in b"".join(session.scalars(sa.select(AuditEntry.canonical)))
    rotate_signing_keys(session, VAULT)
    assert seen(session)[-1][:2] == ("signing_keys.rotated", "operator")


def test_clients_invited_enrolled_suspended_and_reinstated(
    api: TestClient, session: Session, admin: Caller
) -> None:
    before = len(seen(session, admin.organisation_id))
    token = invite(api, admin)
    applicant, client_id = enrol(api, admin)
    for verb in ("suspend", "suspend", "reinstate"):
        assert api.post(f"/v1/clients/{client_id}/{verb}", headers=admin.headers).status_code == 200
    found = seen(session, admin.organisation_id)[before:]
    by, itself = admin.principal.actor, f"client:{client_id}"
    assert [(action, actor) for action, actor, _subject in found] == [
        ("enrolment.created", by),
        ("enrolment.created", by),
        ("client.enrolled", itself),
        ("budget.opened", itself),
        ("client.suspended", by),
        ("client.reinstated", by),
    ]
    enrolled = entries(session, admin.organisation_id)[before + 2]
    assert enrolled["details"]["public_key"] == applicant.raw.hex()
    assert opened(session, enrolled, "name") == "mailbox-1"
    assert token.encode() not in b"".join(session.scalars(sa.select(AuditEntry.canonical)))


def test_an_enrolment_that_is_sent_again_is_one_entry(
    api: TestClient, session: Session, admin: Caller
) -> None:
    ensure_signing_keys(session, VAULT)
    applicant, _client_id = enrol(api, admin)
    token = invite(api, admin)
    body = applicant.body(token)
    before = len(entries(session))
    assert api.post("/v1/clients", json=body).status_code == 409  # its key is taken
    assert len(entries(session)) == before


def test_grants_with_the_hash_of_their_ledger_entry(
    api: TestClient, session: Session, federation: Federation
) -> None:
    officer = add_caller(session, Role.PRIVACY_OFFICER, federation.organisation.id)
    account = account_of_client(session, federation.clients[0].id)
    body = {"epsilon": 1.0, "delta": 0.0, "reason": "asked by Dr. Weber"}
    assert api.post(f"/v1/budgets/{account.id}/grants", json=body, headers=officer.headers).status_code == 201
    granted = entries(session, federation.organisation.id)[-1]
    assert (granted["action"], granted["actor"]) == ("budget.granted", officer.principal.actor)
    chain = api.get(f"/v1/budgets/{account.id}/entries", headers=officer.headers).json()["items"]
    assert granted["details"]["amount"] == "1000000000"
    assert granted["details"]["seq"] == len(chain)
    assert opened(session, granted, "reason") == "asked by Dr. Weber"


def test_a_runs_whole_life(federation: Federation) -> None:
    session, by = federation.session, federation.coordinator.actor
    run = federation.running()
    before = run.manifest_sha256
    service.pause(session, federation.coordinator, run.id, reason="Ada is on holiday")
    service.resume(session, federation.coordinator, run.id, region=None)
    service.stop(session, federation.coordinator, run.id, reason="enough")
    found = [one for one in seen(session, federation.organisation.id) if one[2] == f"run:{run.id}"]
    assert [(action, actor) for action, actor, _subject in found] == [
        ("run.created", by),
        ("run.price_asked", by),
        ("run.priced", "job"),
        ("run.started", by),
        ("run.paused", by),
        ("run.resumed", by),
        ("run.aborted", by),
    ]
    acts = {one["action"]: one for one in entries(session, federation.organisation.id)}
    assert acts["run.started"]["details"]["manifest_sha256"] == before
    assert acts["run.paused"]["details"]["reason_code"] == "paused_by_hand"
    assert opened(session, acts["run.paused"], "reason") == "Ada is on holiday"
    assert acts["round.aborted"]["details"]["code"] == "run_stopped"


def test_a_changed_and_a_refused_plan(federation: Federation) -> None:
    session = federation.session
    run = federation.draft()
    manifest = service.Manifest.model_validate(run.manifest | {"rounds": 1})
    service.update_manifest(
        session, federation.coordinator, run.id, manifest=manifest, settings=federation.settings
    )
    service.price(session, federation.coordinator, run.id)
    service.refuse(session, run.id, version=run.version, code="impossible", reason="no noise", actor="job")
    found = [one for one in entries(session, federation.organisation.id) if one["subject"] == f"run:{run.id}"]
    assert [one["action"] for one in found] == [
        "run.created",
        "run.changed",
        "run.price_asked",
        "run.refused",
    ]
    session.refresh(run)
    assert found[1]["details"]["manifest_sha256"] == canonical_sha256(run.manifest)
    assert found[3]["details"]["reason_code"] == "impossible"


def test_a_round_from_its_seal_to_its_release(
    api: TestClient, session: Session, federation: Federation
) -> None:
    publisher = Publisher(api, federation)
    run = federation.running(rounds=1)
    add_caller(session)  # signing keys
    release: Release = publisher.publish(run)
    round_id = federation.round_of(run).id
    acts = {one["action"]: one for one in entries(session, federation.organisation.id)}
    assert acts["round.sealed"]["subject"] == acts["round.published"]["subject"] == f"round:{round_id}"
    published = acts["release.published"]
    assert published["subject"] == f"release:{release.id}"
    assert published["details"]["certificate_sha256"] == canonical_sha256(release.certificate)
    assert published["details"]["adapter_sha256"] == release.adapter_sha256
    assert acts["run.finished"]["actor"] == "test"
    # What was sealed is committed to, and opened by nobody but the operator.
    opening = session.get_one(AuditPersonal, (UUID(acts["round.sealed"]["id"]), "sealed_set_sha256"))
    assert opening.concealed
    assert json.loads(opening.clear) == canonical_sha256(sealed_set(session, round_id))


def test_an_abort_by_a_person_with_its_reason(api: TestClient, session: Session, admin: Caller) -> None:
    row = build_round(session)
    body = {"reason": "the wrong data"}
    assert api.post(f"/v1/rounds/{row.id}/abort", json=body, headers=admin.headers).status_code == 202
    aborted, paused = entries(session, row.organisation_id)[-2:]
    assert (aborted["action"], aborted["actor"]) == ("round.aborted", admin.principal.actor)
    assert aborted["details"]["code"] == "aborted_by_hand"
    assert opened(session, aborted, "reason") == "the wrong data"
    assert paused["action"] == "run.paused"


def test_a_local_update_with_its_digest_once(
    api: TestClient, session: Session, federation: Federation
) -> None:
    seat = Seat(api, federation)
    assert [seat.put().status_code for _again in range(2)] == [201, 200]
    found = [
        one for one in entries(session, federation.organisation.id) if one["action"] == "update.accepted"
    ]
    assert [(one["actor"], one["subject"]) for one in found] == [
        (federation.principal(0).actor, f"update:{seat.update_id}")
    ]
    row = session.get_one(Update, seat.update_id)
    assert found[0]["details"] == {
        "round_id": str(seat.round.id),
        "size_bytes": row.size_bytes,
        "sha256": row.blob_sha256,
    }


def test_the_digest_of_what_is_not_noised_is_committed_to_only(
    api: TestClient, session: Session, federation: Federation
) -> None:
    seat = Seat(api, federation, privacy=OPEN_PRIVACY)
    assert seat.put().status_code == 201
    accepted = next(
        one for one in entries(session, federation.organisation.id) if one["action"] == "update.accepted"
    )
    digest = session.get_one(Update, seat.update_id).blob_sha256
    assert set(accepted["details"]) == {"round_id", "size_bytes"}
    assert set(accepted["commitments"]) == {"sha256"}
    assert digest is not None
    assert digest.encode() not in b"".join(session.scalars(sa.select(AuditEntry.canonical)))


def test_of_a_secret_cohort_the_log_is_the_same_whoever_sends(
    api: TestClient, session: Session, settings: Settings
) -> None:
    walk = walking(api, session, settings, seal=None)
    set_cohort(session, walk.round.id, walk.client_ids[:3])
    before = entries(session)
    for number in range(3):
        assert walk.put(number).status_code == 201
    assert entries(session) == before
    lifecycle.seal(session, walk.round.id, actor="deadline", vault=VAULT)
    (sealed,) = entries(session)[len(before) :]
    assert sealed["details"] == {"run_id": str(walk.run.id), "number": 1, "code": None}
    assert set(sealed["commitments"]) == {"sealed_set_sha256"}
    text = b"".join(session.scalars(sa.select(AuditEntry.canonical)))
    for update_id, digest in walk.sent:
        assert update_id.encode() not in text
        assert digest.encode() not in text


def test_a_rejected_update(database: Database, tmp_path: Path) -> None:
    context = context_for(database, tmp_path)
    broken = trained(1.0)
    next(iter(broken.values())).view(-1)[-1] = torch.nan
    round_id = build_sealed(context, [trained(1.0), broken, trained(3.0)])
    work(context, aggregate.run, "aggregate", round_id)
    with database.run_tx("test") as session:
        (rejected,) = [one for one in entries(session) if one["action"] == "update.rejected"]
        assert rejected["details"]["code"] == "non_finite"
        row = session.scalars(sa.select(Update).where(Update.reject_code == "non_finite")).one()
        assert rejected["subject"] == f"update:{row.id}"


def test_a_disclaimer_once(api: TestClient, session: Session, federation: Federation) -> None:
    seat = Seat(api, federation)
    service.stop(session, federation.coordinator, seat.run.id, reason="over")
    assert [disclaim(seat).status_code for _again in range(2)] == [201, 201]
    acts = [one for one in seen(session, federation.organisation.id) if one[0] == "update.disclaimed"]
    assert acts == [("update.disclaimed", federation.principal(0).actor, f"run:{seat.run.id}")]


def test_steps_of_the_ladder_by_hand(api: TestClient, session: Session, admin: Caller) -> None:
    judged = Judged(session)
    assert api.post(judged.standing(0), json=QUARANTINE, headers=admin.headers).status_code == 201
    put = entries(session, judged.round.organisation_id)[-1]
    assert (put["action"], put["details"]) == (
        "standing.quarantined",
        {"from": "observe", "to": "quarantine"},
    )
    assert opened(session, put, "reason") == QUARANTINE["reason"]
    assert api.post(judged.standing(), json=REVERSAL, headers=admin.headers).status_code == 201
    reversed_ = entries(session, judged.round.organisation_id)[-1]
    assert reversed_["action"] == "standing.reversed"
    assert reversed_["details"] == {"from": "quarantine", "to": "observe"}
    assert opened(session, reversed_, "reason") == REVERSAL["reason"]


def test_what_an_operator_asks_for(api: TestClient, session: Session, admin: Caller) -> None:
    job = Job(kind="sweep", key="x", payload={}, state=JobState.DEAD)
    session.add(job)
    session.flush()
    assert api.post(f"/v1/admin/jobs/{job.id}/retry", headers=admin.headers).status_code == 202
    assert api.post("/v1/privacy/recheck", headers=admin.headers).status_code == 202
    organisation = session.get_one(Organisation, admin.organisation_id)
    run = build_round(session).run_id
    session.get_one(Run, run).manifest_sha256 = "f" * 64
    session.flush()
    assert api.post("/v1/privacy/audits", json={"run_id": str(run)}, headers=admin.headers).status_code == 202
    by = admin.principal.actor
    found = [(action, actor) for action, actor, _subject in seen(session)]
    assert found[-3:] == [
        ("job.retried", by),
        ("budget.recheck_asked", by),
        ("privacy_audit.asked", by),
    ]
    assert organisation is not None


def test_a_violation_that_is_found(session: Session) -> None:
    client = build_client(session)
    detail: dict[str, Any] = {"epsilon": 3.5, "delta": 1e-5}
    terms = {"organisation_id": client.organisation_id, "detail": detail}
    violations.record(session, ViolationKind.CEILING_HIT, **terms)
    assert not violations.record_once(session, ViolationKind.CEILING_HIT, **terms)
    (found,) = [one for one in entries(session, client.organisation_id) if one["action"] == "violation.found"]
    assert found["details"] == {"kind": "ceiling_hit", "run_id": None, "client_id": None}
    assert opened(session, found, "detail") == detail
