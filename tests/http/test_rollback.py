"""Rolling a run's releases back: when it is refused, from where the run goes on, and that the mark stays."""

from __future__ import annotations

from datetime import datetime
from typing import Any
from uuid import UUID

import pytest
import sqlalchemy as sa
from httpx2 import Response
from sqlalchemy.exc import DBAPIError
from sqlalchemy.orm import Session
from starlette.testclient import TestClient

from app.core.ids import new_id
from app.core.settings import Settings
from app.identity.keys import ensure_signing_keys
from app.identity.roles import Role
from app.releases.models import Release
from app.rounds.queries import rounds_of
from app.runs import service
from app.runs.models import Run
from app.runs.rounds import optimizer_state
from tests.audit_log import entries, opened
from tests.builders import tiny_manifest
from tests.federation import Federation
from tests.http.accounts import VAULT, Caller, add_caller
from tests.http.test_releases import Publisher

REASON = "since round 2 it calls every newsletter spam"
OPTIMIZER = {"server_optimizer": {"kind": "fedadam", "rate": 0.1}}


class Study(Publisher):
    """A run of four rounds, paused when its third release is out, and its coordinator."""

    def __init__(self, api: TestClient, session: Session, settings: Settings) -> None:
        super().__init__(api, Federation(session, settings, epsilon=20.0, delta=1e-4))
        self.coordinator: Caller = add_caller(session, Role.COORDINATOR, self.federation.organisation.id)
        self.run: Run = self.federation.running(rounds=4, aggregation=OPTIMIZER)
        self.releases: list[Release] = [self.next(1), self.next(2)]
        service.pause(session, self.federation.coordinator, self.run.id)

    def next(self, number: int) -> Release:
        return self.publish(self.run, number, candidate=str(number) * 64, optimizer="abcd"[number - 1] * 64)

    def rest(self) -> None:
        """The round that was open when the run was paused is published as well."""
        self.releases.append(self.next(3))

    def roll_back(
        self, to: Release | None = None, *, caller: Caller | None = None, run: Run | None = None
    ) -> Response:
        body = {"release_id": str((to or self.releases[0]).id), "reason": REASON}
        headers = (caller or self.coordinator).headers
        return self.api.post(f"/v1/runs/{(run or self.run).id}/rollback", json=body, headers=headers)

    def resume(self) -> None:
        service.resume(self.session, self.federation.coordinator, self.run.id, region=None)

    def changed(self, **sections: dict[str, Any]) -> None:
        """The run as if it had been planned with these; written beside the guard of frozen manifests."""
        self.session.execute(sa.text("ALTER TABLE runs DISABLE TRIGGER runs_manifest_guard"))
        self.run.manifest = {
            **self.run.manifest,
            **{name: {**(self.run.manifest.get(name) or {}), **values} for name, values in sections.items()},
        }
        self.session.flush()
        self.session.execute(sa.text("ALTER TABLE runs ENABLE TRIGGER runs_manifest_guard"))

    def shown(self, release: Release, part: str = "") -> Response:
        return self.api.get(f"/v1/releases/{release.id}{part}", headers=self.coordinator.headers)


@pytest.fixture
def study(api: TestClient, session: Session, settings: Settings) -> Study:
    ensure_signing_keys(session, VAULT)
    return Study(api, session, settings)


def code(answer: Response) -> tuple[int, str]:
    return answer.status_code, answer.json()["code"]


def test_a_run_with_a_round_under_way_is_not_rolled_back_paused_or_running(study: Study) -> None:
    assert code(study.roll_back()) == (409, "run_not_at_rest")
    study.rest()
    study.resume()
    assert code(study.roll_back()) == (409, "run_not_at_rest")


@pytest.mark.parametrize(
    "sections",
    [
        {"training": {"control_variates": "scaffold"}},
        {"lora": {"method": "fedask"}},
        {"lora": {"method": "fedsa"}},
        {"buffered": {"participations": 4, "staleness": 1}},
    ],
)
def test_a_run_with_state_outside_its_releases_is_not_rolled_back(
    study: Study, sections: dict[str, dict[str, Any]]
) -> None:
    study.rest()
    study.changed(**sections)
    assert code(study.roll_back()) == (409, "rollback_refused")


def test_a_run_is_not_rolled_back_to_another_runs_release(study: Study) -> None:
    study.rest()
    other = study.publish(study.federation.running())
    assert code(study.roll_back(other)) == (409, "release_of_other_run")


def test_a_run_is_not_rolled_back_twice_nor_to_what_was_rolled_back_nor_to_its_last_release(
    study: Study,
) -> None:
    study.rest()
    first, second, third = study.releases
    assert code(study.roll_back(third)) == (409, "nothing_to_roll_back")
    assert study.roll_back(first).status_code == 200
    assert code(study.roll_back(first)) == (409, "nothing_to_roll_back")
    assert code(study.roll_back(second)) == (409, "release_rolled_back")


def test_another_organisations_run_and_release_are_not_found(study: Study, session: Session) -> None:
    study.rest()
    stranger = add_caller(session, Role.COORDINATOR)
    assert code(study.roll_back(caller=stranger)) == (404, "not_found")
    absent = Release(id=new_id())
    assert code(study.roll_back(absent)) == (404, "not_found")


@pytest.mark.parametrize("role", [Role.PRIVACY_OFFICER, Role.AUDITOR, Role.DATA_STEWARD, Role.VIEWER])
def test_only_who_controls_runs_rolls_them_back(study: Study, session: Session, role: Role) -> None:
    study.rest()
    caller = add_caller(session, role, study.federation.organisation.id)
    assert study.roll_back(caller=caller).json()["permission"] == "runs:control"


def test_the_next_round_starts_from_the_release_and_the_optimizers_state_of_then(study: Study) -> None:
    study.rest()
    first, second, third = study.releases
    before = accounts(study)
    answer = study.roll_back(first)
    assert (answer.status_code, answer.json()["goes_on_from"]) == (200, str(first.id))
    marked = [(one["id"], one["rollback_reason"]) for one in answer.json()["rolled_back"]]
    assert marked == [(str(second.id), REASON), (str(third.id), REASON)]
    assert accounts(study) == before
    study.resume()
    following = study.federation.round_of(study.run, 4)
    assert (following.number, following.adapter_sha256) == (4, "1" * 64)
    state = optimizer_state(study.session, study.run)
    assert state is not None
    assert state.sha256 == "a" * 64
    last = study.next(4)
    assert last.parent_id == first.id
    assert last.certificate["release"]["rounds_aggregated"] == [1, 4]
    assert last.certificate["privacy"]["this_run"] == first.certificate["privacy"]["this_run"]


def accounts(study: Study) -> list[dict[str, Any]]:
    listed = study.api.get("/v1/budgets", headers=study.coordinator.headers).json()
    found: list[dict[str, Any]] = listed["items"]
    return found


def test_a_finished_run_is_only_marked(study: Study) -> None:
    study.rest()
    study.resume()
    study.releases.append(study.next(4))
    assert study.run.state == "finished"
    assert study.roll_back().status_code == 200
    assert (study.run.state, len(rounds_of(study.session, study.run.id))) == ("finished", 4)


def test_whoever_reads_a_rolled_back_release_is_told_and_its_parts_are_served(study: Study) -> None:
    study.rest()
    study.roll_back()
    first, second, _third = study.releases
    assert study.shown(first).json()["rolled_back_at"] is None
    told = study.shown(second).json()
    assert told["rollback_reason"] == REASON
    for part in ("/adapter", "/config", "/certificate"):
        answer = study.shown(second, part)
        assert answer.status_code == 200
        marked_at = datetime.fromisoformat(answer.headers["rolled-back"])
        assert marked_at == datetime.fromisoformat(told["rolled_back_at"])
        again = study.api.get(
            f"/v1/releases/{second.id}{part}",
            headers=study.coordinator.headers | {"If-None-Match": answer.headers["etag"]},
        )
        assert (again.status_code, "rolled-back" in again.headers) == (304, True)
        assert "rolled-back" not in study.shown(first, part).headers
    listed = study.api.get(f"/v1/releases?run_id={study.run.id}", headers=study.coordinator.headers).json()
    assert [one["rolled_back_at"] is None for one in listed["items"]] == [False, False, True]


def test_no_run_is_planned_or_started_from_a_rolled_back_release(study: Study) -> None:
    study.rest()
    second = study.releases[1]
    federation = study.federation
    body = {
        "manifest": tiny_manifest(rounds=1),
        "client_ids": [str(client.id) for client in federation.clients],
        "from_release_id": str(second.id),
    }
    headers = study.coordinator.headers
    planned = study.api.post("/v1/runs", json=body, headers=headers).json()["id"]
    run = study.session.get_one(Run, UUID(planned))
    service.price(study.session, federation.coordinator, run.id)
    price = study.run.price
    assert price is not None
    service.accept_price(
        study.session, run.id, version=run.version, price=price, start_adapter_sha256="2" * 64, actor="job"
    )
    assert study.roll_back().status_code == 200
    assert code(study.api.post(f"/v1/runs/{planned}/start", headers=headers)) == (409, "release_rolled_back")
    assert code(study.api.post("/v1/runs", json=body, headers=headers)) == (409, "release_rolled_back")


@pytest.mark.parametrize(
    "change",
    [
        "rolled_back_at = NULL, rolled_back_by = NULL, rollback_reason = NULL",
        "rolled_back_at = now() + interval '1 day'",
        "rolled_back_by = 'somebody else'",
        "rollback_reason = 'another'",
    ],
)
def test_the_database_lets_nobody_take_the_mark_away_or_change_it(study: Study, change: str) -> None:
    study.rest()
    study.roll_back()
    statement = f"UPDATE releases SET {change} WHERE id = :id"  # noqa: S608  the four above
    with pytest.raises(DBAPIError, match="stays rolled back"):
        study.session.execute(sa.text(statement), {"id": study.releases[1].id})


def test_a_roll_back_is_one_entry_with_its_reason_committed_to(study: Study) -> None:
    study.rest()
    study.roll_back()
    (entry,) = [one for one in entries(study.session) if one["action"] == "run.rolled_back"]
    assert entry["actor"] == study.coordinator.principal.actor
    assert entry["details"] == {
        "to_release_id": str(study.releases[0].id),
        "to_number": 1,
        "rolled_back": [2, 3],
    }
    assert opened(study.session, entry, "reason") == REASON
