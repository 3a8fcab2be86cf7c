"""Data rules over HTTP: who sets them, what they deny and when, and what the denied are told."""

from inspect import Parameter, signature
from typing import Any

import pytest
import sqlalchemy as sa
from httpx2 import Response
from sqlalchemy.exc import IntegrityError
from sqlalchemy.orm import Session
from starlette.testclient import TestClient

from app.budget.arithmetic import renyi_epsilon
from app.budget.queries import account_of_client
from app.core.settings import Settings
from app.identity.roles import Role
from app.rounds.queries import rounds_of
from app.runs import service
from app.runs.models import Run
from app.runs.queries import lock_run
from app.runs.states import RunState
from tests.audit_log import entries
from tests.builders import build_account, build_client, build_run
from tests.central import CLIENTS, central_manifest
from tests.federation import NOTHING, OPEN_PRIVACY, PRICE, Federation, publish
from tests.http.accounts import Applicant, Caller, add_caller, enrol, invite

USE = {"purpose": "spam-filtering", "data_categories": ["email"]}


class House:
    """A federation whose organisation has a steward and a coordinator."""

    def __init__(self, api: TestClient, federation: Federation) -> None:
        self.api, self.federation, self.session = api, federation, federation.session
        self.organisation_id = federation.organisation.id
        self.steward = add_caller(self.session, Role.DATA_STEWARD, self.organisation_id)
        self.coordinator = add_caller(self.session, Role.COORDINATOR, self.organisation_id)

    @property
    def path(self) -> str:
        return f"/v1/organisations/{self.organisation_id}/data-rules"

    def set(self, caller: Caller | None = None, **rules: Any) -> Response:
        headers = (caller or self.steward).headers
        return self.api.post(self.path, json={"rules": rules}, headers=headers)

    def do(self, verb: str, run: Run, caller: Caller | None = None, **more: str) -> Response:
        headers = (caller or self.coordinator).headers | more
        return self.api.post(f"/v1/runs/{run.id}/{verb}", headers=headers)

    def trial(self, run: Run, **members: Any) -> Response:
        body = {"run_id": str(run.id)} | members
        return self.api.post(f"{self.path}/trials", json=body, headers=self.steward.headers)

    def declare(self, region: str) -> None:
        """Name the gateway's region, as its operator does."""
        state = self.api.app.state  # type: ignore[attr-defined]  # a FastAPI application
        state.settings = state.settings.model_copy(update={"region": region})

    def decisions(self) -> list[dict[str, Any]]:
        found = entries(self.session, self.organisation_id)
        return [one for one in found if one["action"] == "data_rules.decided"]


@pytest.fixture
def house(api: TestClient, session: Session, settings: Settings) -> House:
    return House(api, Federation(session, settings))


def test_of_an_organisations_members_the_steward_alone_sets_its_rules_and_all_read_them(
    house: House,
) -> None:
    assert house.set(smallest_cohort=3).status_code == 201
    for role in (Role.COORDINATOR, Role.PRIVACY_OFFICER, Role.AUDITOR, Role.VIEWER):
        member = add_caller(house.session, role, house.organisation_id)
        refused = house.set(member, smallest_cohort=2)
        assert (refused.status_code, refused.json()["permission"]) == (403, "data_rules:set")
        found = house.api.get(house.path, headers=member.headers).json()["items"]
        assert [(one["version"], one["rules"]["smallest_cohort"]) for one in found] == [(1, 3)]


UNKNOWN: list[dict[str, Any]] = [
    {"smallest_kohort": 2},
    {"smallest_cohort": 0},
    {"purposes": ["Two words"]},
    {"jurisdictions": ["Germany"]},
    {"trusts": ["everybody"]},
    {"epsilon_per_period": {"epsilon": 1.0}},
    {"epsilon_per_period": {"epsilon": -1.0, "days": 1}},
]


def test_a_rule_that_the_server_does_not_know_exactly_is_refused(house: House) -> None:
    assert {house.set(**rules).status_code for rules in UNKNOWN} == {422}
    assert house.api.get(house.path, headers=house.steward.headers).json()["items"] == []


def test_a_new_version_replaces_the_former_which_stays_as_it_was(house: House) -> None:
    by = house.steward.principal.actor
    first = house.set(trusts=["local"]).json()
    assert (house.set().json()["version"], first["version"], first["created_by"]) == (2, 1, by)
    listed = house.api.get(house.path, headers=house.steward.headers).json()["items"]
    assert [one["version"] for one in listed] == [2, 1]
    assert house.api.get(f"{house.path}/1", headers=house.steward.headers).json() == first
    assert house.api.get(f"{house.path}/3", headers=house.steward.headers).status_code == 404
    noted = [
        one for one in entries(house.session, house.organisation_id) if one["action"] == "data_rules.set"
    ]
    assert noted[0]["actor"] == by
    assert noted[0]["details"] == {"version": 1, "rules_sha256": first["sha256"]}


def test_the_database_keeps_every_version(house: House) -> None:
    house.set(smallest_cohort=2)
    for change in ("UPDATE data_rules SET version = 9", "DELETE FROM data_rules", "TRUNCATE data_rules"):
        with pytest.raises(IntegrityError, match="append-only"), house.session.begin_nested():
            house.session.execute(sa.text(change))


def test_a_run_that_a_rule_denies_is_refused_for_good_and_reserves_nothing(house: House) -> None:
    rules = house.set(purposes=["research"], smallest_cohort=2).json()
    run = house.federation.priced(use=USE)
    answer = house.do("start", run)
    assert (answer.status_code, answer.json()["code"]) == (403, "data_rule_denied")
    denial = {"rule": "purpose", "asked": ["spam-filtering"], "allowed": ["research"]}
    whose = {"organisation_id": str(house.organisation_id), "version": 1}
    assert answer.json()["denials"] == [whose | denial]
    run = lock_run(house.session, run.id)
    assert (run.state, run.reason_code) == (RunState.REFUSED, "data_rule_denied")
    assert str(house.organisation_id) not in str(run.reason)
    assert account_of_client(house.session, house.federation.clients[0].id).reserved == 0
    [decision] = house.decisions()
    assert (decision["actor"], decision["subject"]) == (house.coordinator.principal.actor, f"run:{run.id}")
    assert decision["details"] == {
        "decision": "deny",
        "version": 1,
        "rules_sha256": rules["sha256"],
        "denied_by": ["purpose"],
        "round": 1,
    }
    assert house.do("start", run).json()["code"] == "illegal_transition"


def test_an_allowed_run_starts_and_the_decision_is_noted(house: House) -> None:
    house.declare("eu-west-1")
    house.set(trusts=["local"], purposes=["spam-filtering"], processing_regions=["eu-west-1"])
    answer = house.do("start", house.federation.priced(use=USE))
    assert (answer.status_code, answer.json()["state"]) == (202, "running")
    [decision] = house.decisions()
    assert (decision["details"]["decision"], decision["details"]["denied_by"]) == ("allow", [])


def test_the_region_that_is_taken_where_an_operator_names_none_is_no_declaration(
    house: House, settings: Settings
) -> None:
    assert settings.region == "eu-west-1"
    session, allowed = house.session, {"processing_regions": ["eu-west-1"]}
    run, paused = house.federation.priced(), house.federation.running()
    service.pause(session, house.federation.coordinator, paused.id)
    publish(session, rounds_of(session, paused.id)[0])
    house.set(**allowed)
    for answer in (house.trial(run, rules=allowed), house.do("start", run), house.do("resume", paused)):
        [denial] = answer.json()["denials"]
        assert (denial["rule"], denial["asked"]) == ("processing_region", [None])


def test_whoever_lets_a_run_go_on_has_to_say_where() -> None:
    for verb in (service.start, service.resume, service.after_publish):
        assert signature(verb).parameters["region"].default is Parameter.empty


def test_where_no_rules_are_nothing_is_denied_or_noted(house: House) -> None:
    assert house.do("start", house.federation.priced()).status_code == 202
    assert house.decisions() == []


ASKING: dict[str, dict[str, Any]] = {
    "purpose": {"purposes": ["spam-filtering"]},
    "data_category": {"data_categories": ["email"]},
    "jurisdiction": {"jurisdictions": ["DE"]},
    "processing_region": {"processing_regions": ["eu-central-1"]},
    "trust": {"trusts": ["central"]},
    "epsilon_per_period": {"epsilon_per_period": {"epsilon": 3.8, "days": 1}},
    "smallest_cohort": {"smallest_cohort": 3},
}


def test_each_rule_denies_a_run_that_declares_nothing(house: House) -> None:
    run = house.federation.priced()
    for denied_by, rules in ASKING.items():
        assert [one["rule"] for one in house.trial(run, rules=rules).json()["denials"]] == [denied_by]
    house.set(**{name: value for rules in ASKING.values() for name, value in rules.items()})
    assert [one["rule"] for one in house.do("start", run).json()["denials"]] == list(ASKING)


def test_a_run_without_a_claim_has_no_epsilon_that_a_rule_could_allow(house: House) -> None:
    house.set(epsilon_per_period={"epsilon": 1000.0, "days": 1})
    run = house.federation.priced(price=NOTHING, privacy=OPEN_PRIVACY)
    [denial] = house.do("start", run).json()["denials"]
    assert (denial["rule"], denial["asked"]) == ("epsilon_per_period", None)


def test_the_price_of_earlier_runs_in_the_period_counts(house: House) -> None:
    house.set(epsilon_per_period={"epsilon": 5.0, "days": 30})
    runs = [house.federation.priced(), house.federation.priced()]
    assert house.do("start", runs[0]).status_code == 202
    [denial] = house.do("start", runs[1]).json()["denials"]
    assert (denial["asked"], denial["allowed"]) == (2 * PRICE["epsilon"], 5.0)


def test_a_renyi_account_is_judged_by_the_epsilon_that_its_divergence_implies(house: House) -> None:
    house.federation.clients = [build_client(house.session, house.federation.organisation) for _n in range(2)]
    for client in house.federation.clients:
        build_account(house.session, client, order=8.0)
    implied = float(renyi_epsilon(1_250_000_000, 1e-5, order=8.0))
    house.set(epsilon_per_period={"epsilon": 2.0, "days": 30})
    [denial] = house.do("start", house.federation.priced()).json()["denials"]
    assert denial["asked"] == implied > PRICE["rdp"]["8.0"]


def test_of_a_secret_cohort_the_mean_is_held_against_the_smallest(house: House) -> None:
    organisation = house.federation.organisation
    run = build_run(
        house.session,
        organisation=organisation,
        clients=CLIENTS,
        state=RunState.DRAFT,
        manifest=central_manifest(),
    )
    [denial] = house.trial(run, rules={"smallest_cohort": 4}).json()["denials"]
    assert denial["asked"] == CLIENTS // 2  # each is drawn with probability one half
    assert house.trial(run, rules={"smallest_cohort": 3}).json()["decision"] == "allow"


def test_the_mean_of_a_secret_cohort_is_that_of_the_rate_as_it_is_written(house: House) -> None:
    cohort = {"kind": "poisson", "rate": 0.29, "cap": CLIENTS, "n_max": 100}  # in floats: 28.999999999999996
    manifest = central_manifest(cohort=cohort)
    run = build_run(
        house.session, organisation=house.federation.organisation, state=RunState.DRAFT, manifest=manifest
    )
    assert house.trial(run, rules={"smallest_cohort": 29}).json()["decision"] == "allow"
    assert house.trial(run, rules={"smallest_cohort": 30}).json()["denials"][0]["asked"] == 29


def test_stricter_rules_stop_a_running_run_before_its_next_round_until_they_allow_it(house: House) -> None:
    session, run = house.session, house.federation.running()
    house.declare("eu-west-1")
    house.set(smallest_cohort=3)
    publish(session, rounds_of(session, run.id)[0])
    service.after_publish(session, run.id, actor="job", region="eu-west-1")
    run = lock_run(session, run.id)
    assert (run.state, run.reason_code) == (RunState.PAUSED, "data_rule_denied")
    once = {"Idempotency-Key": "k1"}
    answer = house.do("resume", run, **once)
    assert (answer.status_code, answer.json()["denials"][0]["rule"]) == (403, "smallest_cohort")
    assert lock_run(session, run.id).state is RunState.PAUSED
    assert len(rounds_of(session, run.id)) == 1
    price = PRICE["epsilon"]  # what the run has reserved itself is not added to its price
    period = {"epsilon": price, "days": 30}
    house.set(smallest_cohort=2, epsilon_per_period=period, processing_regions=["eu-west-1"])
    assert house.do("resume", run, **once).json()["state"] == "running"  # what was refused freed its key
    assert house.do("resume", run, **once).headers["idempotency-replayed"] == "true"
    assert len(rounds_of(session, run.id)) == 2
    told = [(one["details"]["decision"], one["details"]["version"]) for one in house.decisions()]
    assert told == [("deny", 1), ("deny", 1), ("allow", 2)]
    assert {one["details"]["round"] for one in house.decisions()} == {2}


def test_a_rule_of_an_organisation_that_the_caller_may_not_see_is_not_told(
    house: House, settings: Settings
) -> None:
    """Administrators plan over several organisations; the coordinator of their own starts the run."""
    session, operator = house.session, add_caller(house.session)
    house.set(trusts=["central"])
    house.federation.coordinator = operator.principal
    run, again = house.federation.priced(), house.federation.priced()
    starter = add_caller(session, Role.COORDINATOR, operator.organisation_id)
    answer = house.do("start", run, starter)
    assert (answer.status_code, answer.json()["denials"]) == (403, [])
    assert str(house.organisation_id) not in answer.text
    assert [one["details"]["decision"] for one in house.decisions()] == ["deny"]
    assert [one["rule"] for one in house.do("start", again, operator).json()["denials"]] == ["trust"]


def test_rules_are_tried_out_on_a_run_before_they_are_in_force(house: House) -> None:
    draft = house.federation.draft(use=USE)
    before = len(entries(house.session))
    assert house.trial(draft).json()["decision"] == "allow"
    proposed = {"purposes": ["research"], "epsilon_per_period": {"epsilon": 3.9, "days": 7}}
    tried = house.trial(draft, rules=proposed).json()
    assert (tried["decision"], tried["version"]) == ("deny", None)
    assert [(one["rule"], one["asked"]) for one in tried["denials"]] == [
        ("purpose", ["spam-filtering"]),
        ("epsilon_per_period", 4.0),  # what the plan may cost at most, before it is priced
    ]
    assert len(entries(house.session)) == before
    house.set(**proposed)
    assert (house.trial(draft).json()["version"], house.trial(draft, rules={}).json()["decision"]) == (
        1,
        "allow",
    )


def test_rules_are_tried_on_another_organisations_run_only_if_own_clients_are_in_it(house: House) -> None:
    operator = add_caller(house.session)
    house.federation.coordinator = operator.principal
    assert house.trial(house.federation.draft(), rules={"smallest_cohort": 3}).json()["decision"] == "deny"
    elsewhere = build_run(house.session, state=RunState.DRAFT)
    answer = house.trial(elsewhere)
    assert (answer.status_code, answer.json()["code"]) == (404, "not_found")


def test_a_jurisdiction_comes_from_the_invitation(api: TestClient, session: Session) -> None:
    admin = add_caller(session)
    token = invite(api, admin, jurisdiction="US-CA")
    made = api.post("/v1/clients", json=Applicant().body(token)).json()["client_id"]
    shown = api.get(f"/v1/clients/{made}", headers=admin.headers).json()
    assert (shown["jurisdiction"], shown["region"]) == ("US-CA", "eu-west-1")
    _applicant, without = enrol(api, admin)
    assert api.get(f"/v1/clients/{without}", headers=admin.headers).json()["jurisdiction"] is None
