"""Runs over HTTP: who sees what, how a plan is refused, and what clients fetch."""

import hashlib
from uuid import UUID, uuid4

import pytest
from httpx2 import Response
from sqlalchemy.orm import Session
from starlette.testclient import TestClient

from app.core.canonical import canonical_sha256
from app.core.settings import Settings
from app.custody.keys import BlobRef
from app.identity.keys import ensure_signing_keys
from app.identity.roles import Role
from app.runs import service
from app.runs.models import Run
from app.runs.states import RunState
from tests.builders import build_client, principal_of, tiny_manifest
from tests.federation import PRICE, Federation
from tests.http.accounts import VAULT, Caller, add_caller, client_headers


@pytest.fixture
def federation(session: Session, settings: Settings) -> Federation:
    ensure_signing_keys(session, VAULT)
    return Federation(session, settings)


@pytest.fixture
def coordinator(session: Session, federation: Federation) -> Caller:
    return add_caller(session, Role.COORDINATOR, federation.organisation.id)


class Planner:
    """A coordinator who plans a run over the federation's clients."""

    def __init__(self, api: TestClient, federation: Federation, caller: Caller) -> None:
        self.api, self.federation, self.caller = api, federation, caller

    def plan(self, **changes: object) -> Response:
        body = plan_of(self.federation, **changes)
        return self.api.post("/v1/runs", json=body, headers=self.caller.headers)


@pytest.fixture
def planner(api: TestClient, federation: Federation, coordinator: Caller) -> Planner:
    return Planner(api, federation, coordinator)


def plan_of(federation: Federation, **changes: object) -> dict[str, object]:
    return {
        "manifest": tiny_manifest(),
        "client_ids": [str(client.id) for client in federation.clients],
    } | changes


def code(answer: Response) -> tuple[int, str]:
    assert answer.headers["content-type"] == "application/problem+json", answer.text
    return answer.status_code, answer.json()["code"]


def test_a_manifest_with_an_unknown_member_is_refused_with_its_place(
    api: TestClient, federation: Federation, coordinator: Caller
) -> None:
    body = plan_of(federation, manifest=tiny_manifest() | {"surprise": 1})
    answer = api.post("/v1/runs", json=body, headers=coordinator.headers)
    assert code(answer) == (422, "invalid")
    assert [fault["pointer"] for fault in answer.json()["errors"]] == ["/body/manifest/surprise"]


@pytest.mark.parametrize(
    ("section", "members", "expected"),
    [
        ("privacy", {"trust": "distributed"}, ("trust_not_available", "local")),
        ("privacy", {"trust": "central"}, ("unit_not_available", "client")),
        ("privacy", {"unit": "client"}, ("unit_not_available", "example")),
        ("privacy", {"unit": "person"}, ("person_incomplete", "person")),
        ("privacy", {"relation": "add_remove"}, ("relation_unsound", "zero_out")),
        ("privacy", {"delta": None}, ("privacy_incomplete", "delta")),
        ("aggregation", {"mode": "secagg"}, ("aggregation_not_available", "plain")),
        ("aggregation", {"rule": "fltrust"}, ("aggregation_not_available", "trimmed_mean")),
        ("aggregation", {"rule": "krum"}, ("rule_needs_more_updates", "trimmed_mean")),
        ("aggregation", {"settings": {"radius": 1.0}}, ("rule_setting_refused", "radius")),
        ("aggregation", {"weights": "sizes"}, ("weights_refused", "uniform")),
        ("lora", {"method": "fedit"}, ("tensors_incoherent", "fedit")),
        ("quorum", {"min_updates": 3, "max_updates": 3}, ("quorum_impossible", "3")),
    ],
)
def test_an_unsound_plan_is_a_problem_document_that_names_the_way_out(
    planner: Planner, section: str, members: dict[str, object], expected: tuple[str, str]
) -> None:
    answer = planner.plan(manifest=tiny_manifest(**{section: members}))
    assert code(answer) == (422, expected[0])
    assert expected[1] in answer.json()["detail"]


@pytest.mark.parametrize("rule", ["median", "krum", "geometric_median", "bulyan"])
def test_a_rule_that_central_noise_cannot_cover_is_refused_with_the_one_that_it_can(
    planner: Planner, rule: str
) -> None:
    protected = {"trust": "central", "unit": "client", "cohort": {"kind": "everyone"}}
    answer = planner.plan(
        manifest=tiny_manifest(privacy=protected, aggregation={"rule": rule}, quorum={"min_updates": 0})
    )
    assert code(answer) == (422, "rule_refused")
    assert "trimmed_mean" in answer.json()["detail"]


def test_a_plan_keeps_the_robust_rule_that_it_names(planner: Planner) -> None:
    aggregation = {"rule": "median", "server_optimizer": {"kind": "fedadam", "rate": 0.1}}
    answer = planner.plan(manifest=tiny_manifest(aggregation=aggregation))
    assert answer.status_code == 201
    run_id = answer.json()["id"]
    stored = planner.federation.session.get_one(Run, UUID(run_id)).manifest["aggregation"]
    assert stored["mixing"] == "none"
    assert stored["server_optimizer"] == {
        "kind": "fedadam",
        "rate": 0.1,
        "momentum": 0.9,
        "decay": 0.99,
        "adaptivity": 1e-3,
    }


@pytest.mark.parametrize("ids", [[], ["not an id"], [str(uuid4())] * 10_001])
def test_a_list_of_clients_outside_its_limits_is_refused(
    api: TestClient, federation: Federation, coordinator: Caller, ids: list[str]
) -> None:
    body = plan_of(federation, client_ids=ids)
    assert code(api.post("/v1/runs", json=body, headers=coordinator.headers)) == (422, "invalid")


def test_a_client_of_another_organisation_is_not_found(
    api: TestClient, session: Session, federation: Federation, coordinator: Caller
) -> None:
    foreign = build_client(session)
    body = plan_of(federation, client_ids=[str(foreign.id), str(federation.clients[0].id)])
    assert code(api.post("/v1/runs", json=body, headers=coordinator.headers)) == (404, "not_found")


@pytest.mark.parametrize("role", [Role.PRIVACY_OFFICER, Role.AUDITOR, Role.VIEWER])
def test_only_coordinators_and_administrators_plan_runs(
    api: TestClient, session: Session, federation: Federation, role: Role
) -> None:
    caller = add_caller(session, role, federation.organisation.id)
    assert api.post("/v1/runs", json=plan_of(federation), headers=caller.headers).status_code == 403


def test_a_plan_becomes_a_draft_that_can_be_changed_priced_and_stopped(
    api: TestClient, session: Session, federation: Federation, coordinator: Caller
) -> None:
    made = api.post("/v1/runs", json=plan_of(federation), headers=coordinator.headers)
    assert (made.status_code, made.json()["state"]) == (201, "draft")
    path = f"/v1/runs/{made.json()['id']}"
    changed = api.put(
        f"{path}/manifest", json={"manifest": tiny_manifest(rounds=1)}, headers=coordinator.headers
    )
    assert changed.json()["manifest"]["rounds"] == 1
    priced = api.post(f"{path}/price", headers=coordinator.headers)
    assert (priced.status_code, priced.json()["state"]) == (202, "pricing")
    again = api.put(
        f"{path}/manifest", json={"manifest": tiny_manifest(rounds=1)}, headers=coordinator.headers
    )
    assert code(again) == (409, "not_draft")
    assert code(api.post(f"{path}/start", headers=coordinator.headers)) == (409, "illegal_transition")


def test_a_clone_names_the_run_that_it_was_copied_from_if_the_caller_may_see_it(planner: Planner) -> None:
    first = planner.plan().json()["id"]
    assert planner.plan(clone_of_id=first).json()["clone_of_id"] == first
    assert code(planner.plan(clone_of_id=str(uuid4()))) == (404, "not_found")
    assert code(planner.plan(from_release_id=str(uuid4()))) == (404, "not_found")


def test_the_same_idempotency_key_makes_one_run(
    api: TestClient, federation: Federation, coordinator: Caller
) -> None:
    headers = coordinator.headers | {"Idempotency-Key": "plan-1"}
    first = api.post("/v1/runs", json=plan_of(federation), headers=headers)
    again = api.post("/v1/runs", json=plan_of(federation), headers=headers)
    assert first.json()["id"] == again.json()["id"]
    assert len(api.get("/v1/runs", headers=coordinator.headers).json()["items"]) == 1


def test_another_organisations_runs_do_not_exist(
    api: TestClient, session: Session, federation: Federation
) -> None:
    run = federation.running()
    stranger = add_caller(session, Role.COORDINATOR)
    assert api.get("/v1/runs", headers=stranger.headers).json()["items"] == []
    for method, path in [
        ("GET", ""),
        ("GET", "/manifest"),
        ("GET", "/rounds"),
        ("GET", "/log"),
        ("POST", "/price"),
        ("POST", "/start"),
        ("POST", "/pause"),
        ("POST", "/resume"),
    ]:
        answer = api.request(method, f"/v1/runs/{run.id}{path}", headers=stranger.headers)
        assert code(answer) == (404, "not_found"), path
    stopped = api.post(f"/v1/runs/{run.id}/stop", json={"reason": "mine"}, headers=stranger.headers)
    assert code(stopped) == (404, "not_found")


def test_a_training_client_sees_its_runs_and_none_of_the_other_clients(
    api: TestClient, session: Session, federation: Federation, coordinator: Caller
) -> None:
    run = federation.running()
    own = client_headers(api.app, federation.principal())
    shown = api.get(f"/v1/runs/{run.id}", headers=own)
    assert shown.json()["client_ids"] == [str(federation.clients[0].id)]
    assert str(federation.clients[1].id) not in shown.text
    outsider = build_client(session, federation.organisation)
    hidden = api.get(f"/v1/runs/{run.id}", headers=client_headers(api.app, principal_of(outsider)))
    assert code(hidden) == (404, "not_found")


def test_the_manifest_is_served_as_it_was_hashed_and_not_before_the_start(
    api: TestClient, federation: Federation
) -> None:
    own = client_headers(api.app, federation.principal())
    early = federation.priced()
    assert code(api.get(f"/v1/runs/{early.id}/manifest", headers=own)) == (404, "not_found")
    run = federation.running()
    answer = api.get(f"/v1/runs/{run.id}/manifest", headers=own)
    digest = hashlib.sha256(answer.content).hexdigest()
    assert answer.headers["etag"] == f'"{digest}"' == f'"{run.manifest_sha256}"'
    assert canonical_sha256(answer.json()) == digest
    assert answer.json()["privacy"]["noise_multiplier"] == PRICE["noise_multiplier"]
    known = api.get(f"/v1/runs/{run.id}/manifest", headers=own | {"If-None-Match": f'"{digest}"'})
    assert (known.status_code, known.content) == (304, b"")


def test_an_assignment_tells_what_to_fetch_and_disappears_with_the_round(
    api: TestClient, federation: Federation, coordinator: Caller
) -> None:
    run = federation.running()
    own = client_headers(api.app, federation.principal())
    (found,) = api.get("/v1/assignments", headers=own).json()["items"]
    assert found == {
        "round_id": str(federation.round_of(run).id),
        "run_id": str(run.id),
        "number": 1,
        "rounds": 2,
        "deadline": found["deadline"],
        "manifest_sha256": run.manifest_sha256,
        "adapter_sha256": "a" * 64,
        "rank": None,
        "counted": None,
    }
    api.post(f"/v1/runs/{run.id}/stop", json={"reason": "enough"}, headers=coordinator.headers)
    assert api.get("/v1/assignments", headers=own).json()["items"] == []


def test_the_rounds_adapter_is_streamed_with_its_digest_as_etag(
    api: TestClient, session: Session, federation: Federation
) -> None:
    run = federation.priced()
    content = bytes(range(256)) * 2000
    blobs = api.app.state.blobs
    digest = blobs.of(run.organisation_id).put(content)
    session.get_one(Run, run.id).start_adapter_sha256 = digest
    session.flush()
    own = client_headers(api.app, federation.principal())
    service.start(session, federation.coordinator, run.id, region=None)
    path = f"/v1/rounds/{federation.round_of(run).id}/adapter"
    answer = api.get(path, headers=own)
    assert (answer.status_code, answer.content, answer.headers["etag"]) == (200, content, f'"{digest}"')
    assert answer.headers["content-type"] == "application/octet-stream"
    assert api.get(path, headers=own | {"If-None-Match": f'W/"{digest}"'}).status_code == 304
    (located,) = blobs.locate([BlobRef(run.organisation_id, digest)], session=session)
    blobs.store.path(located.place.object_id.hex).unlink()
    assert code(api.get(path, headers=own)) == (503, "unavailable")
    outsider = client_headers(api.app, principal_of(build_client(session)))
    assert code(api.get(path, headers=outsider)) == (404, "not_found")


def test_a_run_that_has_not_changed_answers_304_to_who_knows_its_version(
    api: TestClient, federation: Federation, coordinator: Caller
) -> None:
    run = federation.running()
    first = api.get(f"/v1/runs/{run.id}", headers=coordinator.headers)
    known = coordinator.headers | {"If-None-Match": first.headers["etag"]}
    assert api.get(f"/v1/runs/{run.id}", headers=known).status_code == 304
    api.post(f"/v1/runs/{run.id}/pause", headers=coordinator.headers)
    paused = api.get(f"/v1/runs/{run.id}", headers=known)
    assert (paused.status_code, paused.json()["reason_code"]) == (200, "paused_by_hand")


@pytest.mark.parametrize("query", ["wait=-1", "wait=31", "wait=nan", "since=-1", f"since={2**70}"])
def test_a_wait_outside_its_limits_is_refused(
    api: TestClient, federation: Federation, coordinator: Caller, query: str
) -> None:
    run = federation.draft()
    assert code(api.get(f"/v1/runs/{run.id}?{query}", headers=coordinator.headers)) == (422, "invalid")


def test_runs_are_listed_newest_first_by_state(
    api: TestClient, federation: Federation, coordinator: Caller
) -> None:
    draft, running = federation.draft(), federation.running()
    ids = [run["id"] for run in api.get("/v1/runs", headers=coordinator.headers).json()["items"]]
    assert ids == [str(running.id), str(draft.id)]
    only = api.get(f"/v1/runs?state={RunState.DRAFT}", headers=coordinator.headers).json()["items"]
    assert [run["id"] for run in only] == [str(draft.id)]


def test_the_documented_example_of_a_plan_is_a_valid_one(
    api: TestClient, federation: Federation, coordinator: Caller
) -> None:
    (documented,) = api.app.openapi()["components"]["schemas"]["RunIn"]["examples"]
    assert len(documented["client_ids"]) == documented["manifest"]["quorum"]["max_updates"] == 2
    body = documented | {"client_ids": [str(client.id) for client in federation.clients]}
    assert api.post("/v1/runs", json=body, headers=coordinator.headers).status_code == 201


def test_the_rounds_and_the_history_of_a_run_are_shown(
    api: TestClient, federation: Federation, coordinator: Caller
) -> None:
    run = federation.running()
    (round_,) = api.get(f"/v1/runs/{run.id}/rounds", headers=coordinator.headers).json()["items"]
    assert (round_["number"], round_["state"]) == (1, "open")
    steps = api.get(f"/v1/runs/{run.id}/log", headers=coordinator.headers).json()["items"]
    assert [step["dst"] for step in steps] == ["draft", "pricing", "priced", "running"]
