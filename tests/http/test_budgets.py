"""Accounts over HTTP: whose they are, how they are shown, who may grant."""

import pytest
import sqlalchemy as sa
from sqlalchemy.orm import Session
from starlette.testclient import TestClient

from app.budget import ledger
from app.budget.arithmetic import AmountInvalid
from app.budget.models import Account
from app.budget.queries import account_of_client
from app.core.settings import Settings
from app.identity.roles import Role
from app.runs import service
from app.runs.models import RunClient
from tests.builders import build_account, build_client
from tests.federation import PRICE, Federation
from tests.http.accounts import add_caller, client_headers


@pytest.fixture
def federation(session: Session, settings: Settings) -> Federation:
    return Federation(session, settings)


def test_an_account_shows_what_is_spent_rounded_up_and_what_is_left_rounded_down(
    api: TestClient, session: Session, federation: Federation
) -> None:
    officer = add_caller(session, Role.PRIVACY_OFFICER, federation.organisation.id)
    account = account_of_client(session, federation.clients[0].id)
    common = {"delta_amount": 10, "event": {}, "actor": "test"}
    ledger.reserve(session, account.id, ref="run:1", amount=2_000_000_001, **common)
    ledger.spend(
        session,
        account.id,
        ref="round:1",
        reserve_ref="run:1",
        amount=1_000_000_001,
        **common,
    )
    shown = api.get(f"/v1/budgets/{account.id}", headers=officer.headers).json()
    assert shown["amounts"] == {"ceiling": 8.0, "reserved": 1.0, "spent": 1.0001, "left": 5.9999}
    assert shown["epsilon_claimed"] == 2.0001
    for beside in ("delta", "unit", "relation", "basis", "adds_up", "kind"):
        assert shown[beside] is not None


def test_a_renyi_account_is_shown_in_its_own_unit_with_the_epsilon_that_it_implies(
    api: TestClient, session: Session, federation: Federation
) -> None:
    officer = add_caller(session, Role.PRIVACY_OFFICER, federation.organisation.id)
    client = build_client(session, federation.organisation)
    account_id = build_account(session, client, order=8.0)
    ledger.reserve(session, account_id, ref="run:1", amount=10**9, delta_amount=0, event={}, actor="test")
    shown = api.get(f"/v1/budgets/{account_id}", headers=officer.headers).json()
    assert (shown["amounts_in"], shown["order"], shown["delta_amounts"]) == ("renyi_divergence", 8.0, None)
    # By hand: 1 + log1p(-1/8) - log(8e-5)/7 = 1 - 0.1335314 + 1.3476410 = 2.2141096, shown rounded up.
    assert shown["epsilon_claimed"] == 2.2142


def test_another_organisations_account_does_not_exist(
    api: TestClient, session: Session, federation: Federation
) -> None:
    stranger = add_caller(session, Role.PRIVACY_OFFICER)
    account = account_of_client(session, federation.clients[0].id)
    assert api.get("/v1/budgets", headers=stranger.headers).json()["items"] == []
    for path in ("", "/entries", "/chain"):
        assert api.get(f"/v1/budgets/{account.id}{path}", headers=stranger.headers).status_code == 404
    body = {"epsilon": 1.0, "delta": 0.0, "reason": "mine now"}
    refused = api.post(f"/v1/budgets/{account.id}/grants", json=body, headers=stranger.headers)
    assert refused.status_code == 404


def test_an_administrator_sees_every_account(
    api: TestClient, session: Session, federation: Federation
) -> None:
    admin = add_caller(session, Role.ADMIN)
    listed = api.get("/v1/budgets?limit=200", headers=admin.headers).json()["items"]
    assert {str(client.id) for client in federation.clients} <= {item["client_id"] for item in listed}


def test_a_training_client_sees_its_own_account_and_grants_nothing(
    api: TestClient, session: Session, federation: Federation
) -> None:
    add_caller(session)
    own = client_headers(api.app, federation.principal())
    (shown,) = api.get("/v1/budgets", headers=own).json()["items"]
    assert shown["client_id"] == str(federation.clients[0].id)
    other = account_of_client(session, federation.clients[1].id)
    assert api.get(f"/v1/budgets/{other.id}", headers=own).status_code == 404
    body = {"epsilon": 1.0, "delta": 0.0, "reason": "more for me"}
    assert api.post(f"/v1/budgets/{shown['id']}/grants", json=body, headers=own).status_code == 403


def test_a_privacy_officer_lifts_the_ceiling_and_the_entry_says_why(
    api: TestClient, session: Session, federation: Federation
) -> None:
    officer = add_caller(session, Role.PRIVACY_OFFICER, federation.organisation.id)
    account = account_of_client(session, federation.clients[0].id)
    body = {"epsilon": 2.0, "delta": 1e-6, "reason": "second study"}
    granted = api.post(f"/v1/budgets/{account.id}/grants", json=body, headers=officer.headers)
    assert (granted.status_code, granted.json()["amounts"]["ceiling"]) == (201, 10.0)
    entries = api.get(f"/v1/budgets/{account.id}/entries", headers=officer.headers).json()["items"]
    assert [entry["kind"] for entry in entries] == ["grant", "grant"]
    assert entries[1]["event"]["reason"] == "second study"
    assert entries[1]["prev_hash"] == entries[0]["hash"]
    chain = api.get(f"/v1/budgets/{account.id}/chain", headers=officer.headers).json()
    assert chain == {"holds": True, "entries": 2, "broken_seq": None, "fault": None}


@pytest.mark.parametrize("role", [Role.COORDINATOR, Role.AUDITOR, Role.VIEWER])
def test_only_privacy_officers_and_administrators_grant(
    api: TestClient, session: Session, federation: Federation, role: Role
) -> None:
    caller = add_caller(session, role, federation.organisation.id)
    account = account_of_client(session, federation.clients[0].id)
    body = {"epsilon": 1.0, "delta": 0.0, "reason": "please"}
    assert api.post(f"/v1/budgets/{account.id}/grants", json=body, headers=caller.headers).status_code == 403


@pytest.mark.parametrize(
    "change",
    [{"epsilon": -1.0}, {"epsilon": 0.0}, {"epsilon": 1e9}, {"delta": 1.0}, {"epsilon": "1"}, {"reason": ""}],
)
def test_a_grant_of_nothing_or_of_nonsense_is_refused(
    api: TestClient, session: Session, federation: Federation, change: dict[str, object]
) -> None:
    officer = add_caller(session, Role.PRIVACY_OFFICER, federation.organisation.id)
    account = account_of_client(session, federation.clients[0].id)
    body = {"epsilon": 1.0, "delta": 0.0, "reason": "more"} | change
    answer = api.post(f"/v1/budgets/{account.id}/grants", json=body, headers=officer.headers)
    assert answer.status_code == 422


def test_grants_whose_deltas_would_add_up_to_one_are_refused(
    api: TestClient, session: Session, federation: Federation
) -> None:
    officer = add_caller(session, Role.PRIVACY_OFFICER, federation.organisation.id)
    account = account_of_client(session, federation.clients[0].id)
    body = {"epsilon": 0.0, "delta": 0.6, "reason": "far too much"}
    answers = [
        api.post(f"/v1/budgets/{account.id}/grants", json=body, headers=officer.headers) for _time in range(2)
    ]
    assert [answer.status_code for answer in answers] == [201, 422]
    assert answers[1].json()["code"] == "amount_invalid"


def test_a_ceiling_beyond_the_ledgers_integers_is_refused(session: Session, federation: Federation) -> None:
    account = account_of_client(session, federation.clients[0].id)
    with pytest.raises(AmountInvalid):
        ledger.grant(session, account.id, ref="g", epsilon=9.22337203e9, delta=0.0, reason="r", actor="test")


def test_a_grant_with_the_same_idempotency_key_is_granted_once(
    api: TestClient, session: Session, federation: Federation
) -> None:
    officer = add_caller(session, Role.PRIVACY_OFFICER, federation.organisation.id)
    account = account_of_client(session, federation.clients[0].id)
    body = {"epsilon": 1.0, "delta": 0.0, "reason": "once"}
    headers = officer.headers | {"Idempotency-Key": "grant-1"}
    for _attempt in range(2):
        api.post(f"/v1/budgets/{account.id}/grants", json=body, headers=headers)
    assert account_of_client(session, federation.clients[0].id).ceiling == 9 * 10**9


def test_the_spending_of_an_account_is_listed_run_by_run(
    api: TestClient, session: Session, federation: Federation
) -> None:
    run = federation.running()
    account = account_of_client(session, federation.clients[0].id)
    ledger.spend_next(
        session,
        account.id,
        ref="round:1",
        reserve_ref=f"run:{run.id}",
        parts=[(2_500_000_000, 10**13), (1_400_000_000, 0)],
        event={},
        actor="test",
    )
    own = client_headers(api.app, federation.principal())
    (line,) = api.get(f"/v1/budgets/{account.id}/spending", headers=own).json()["items"]
    assert (line["run_id"], line["spent"], line["reserved"]) == (str(run.id), 2.5, 1.4)
    assert (line["charges"], line["given_back"], line["delta"]) == (1, False, 1e-5)
    for beside in ("unit", "relation", "trust", "cohort", "examples", "accountant"):
        assert line[beside] is not None


def test_what_was_given_back_is_no_longer_reserved(
    api: TestClient, session: Session, federation: Federation
) -> None:
    run = federation.running()
    account = account_of_client(session, federation.clients[0].id)
    ledger.void(session, account.id, ref="v", reserve_ref=f"run:{run.id}", event={}, actor="test")
    officer = add_caller(session, Role.PRIVACY_OFFICER, federation.organisation.id)
    (line,) = api.get(f"/v1/budgets/{account.id}/spending", headers=officer.headers).json()["items"]
    assert (line["spent"], line["reserved"], line["given_back"]) == (0.0, 0.0, True)


def test_a_projection_counts_the_runs_own_rounds_first_and_says_how_many_are_covered(
    api: TestClient, session: Session, federation: Federation
) -> None:
    run = federation.running()
    account = account_of_client(session, federation.clients[0].id)
    session.execute(sa.update(Account).where(Account.id == account.id).values(delta_ceiling=10**15))
    path = f"/v1/budgets/{account.id}/projections/{run.id}"
    own = client_headers(api.app, federation.principal())
    two = api.get(f"{path}?rounds=2", headers=own).json()
    assert (two["rounds_reserved"], two["asked"], two["covered"]) == (2, 0.0, True)
    assert (two["epsilon_now"], two["epsilon_after"], two["epsilon_spent_after"]) == (3.9, 3.9, 3.9)
    assert two["rounds_affordable"] == 4
    five = api.get(f"{path}?rounds=5", headers=own).json()
    assert (five["asked"], five["covered"], five["left"], five["ceiling"]) == (6.4, False, 4.1, 8.0)
    assert (five["epsilon_after"], five["delta_after"]) == (10.3, 3e-5)


def test_a_stopped_run_has_no_rounds_to_come(
    api: TestClient, session: Session, federation: Federation
) -> None:
    run = federation.running()
    service.stop(session, federation.coordinator, run.id, reason="enough")
    account = account_of_client(session, federation.clients[0].id)
    own = client_headers(api.app, federation.principal())
    found = api.get(f"/v1/budgets/{account.id}/projections/{run.id}", headers=own).json()
    assert (found["rounds_reserved"], found["asked"], found["epsilon_now"]) == (0, 2.5, 3.9)


def test_a_run_without_a_price_cannot_be_projected(
    api: TestClient, session: Session, federation: Federation
) -> None:
    run = federation.draft()
    account = account_of_client(session, federation.clients[0].id)
    own = client_headers(api.app, federation.principal())
    refused = api.get(f"/v1/budgets/{account.id}/projections/{run.id}", headers=own)
    assert (refused.status_code, refused.json()["code"]) == (409, "price_missing")


def test_a_start_that_is_not_covered_answers_409_with_asked_left_and_ceiling(
    api: TestClient, session: Session, federation: Federation
) -> None:
    run = federation.priced()
    account = account_of_client(session, federation.clients[0].id)
    ledger.reserve(session, account.id, ref="run:1", amount=5 * 10**9, delta_amount=0, event={}, actor="test")
    coordinator = add_caller(session, Role.COORDINATOR, federation.organisation.id)
    refused = api.post(f"/v1/runs/{run.id}/start", headers=coordinator.headers)
    told = refused.json()
    assert (refused.status_code, told["code"]) == (409, "budget_exceeded")
    assert (told["asked"], told["left"], told["ceiling"]) == (3.9, 3.0, 8.0)
    assert told["account_id"] == str(account.id)
    shown = api.get(f"/v1/runs/{run.id}", headers=coordinator.headers).json()
    assert (shown["state"], shown["reason_code"]) == ("refused", "budget_exceeded")


def test_where_the_delta_runs_out_start_and_price_name_the_delta(
    api: TestClient, session: Session, federation: Federation
) -> None:
    run, later = federation.priced(), federation.draft()
    account = account_of_client(session, federation.clients[0].id)
    ledger.reserve(session, account.id, ref="run:1", amount=1, delta_amount=10**12, event={}, actor="test")
    coordinator = add_caller(session, Role.COORDINATOR, federation.organisation.id)
    refused = api.post(f"/v1/runs/{run.id}/start", headers=coordinator.headers)
    told = refused.json()
    assert (refused.status_code, told["code"], told["amounts_in"]) == (409, "budget_exceeded", "delta")
    assert (told["asked"], told["left"], told["ceiling"]) == (1e-5, 9e-6, 1e-5)
    assert "too little delta" in told["detail"]
    service.price(session, federation.coordinator, later.id)
    service.accept_price(
        session, later.id, version=later.version, price=PRICE, start_adapter_sha256="a" * 64, actor="job"
    )
    shown = api.get(f"/v1/runs/{later.id}", headers=coordinator.headers).json()
    assert (shown["state"], shown["reason_code"]) == ("refused", "budget_exceeded")
    assert "epsilon or delta" in shown["reason"]
    assert shown["shortfall"] == {
        "account_id": str(account.id),
        "population": account.population,
        "amounts_in": "delta",
        "asked": 1e-5,
        "left": 9e-6,
        "ceiling": 1e-5,
    }
    other = client_headers(api.app, federation.principal(1))
    assert api.get(f"/v1/runs/{later.id}", headers=other).json()["shortfall"] is None


def test_a_refusal_for_an_account_of_another_organisation_has_no_numbers(
    api: TestClient, session: Session, federation: Federation
) -> None:
    run = federation.priced()
    stranger = build_client(session)
    build_account(session, stranger, epsilon=1.0)
    session.add(RunClient(run_id=run.id, client_id=stranger.id))
    session.flush()
    coordinator = add_caller(session, Role.COORDINATOR, federation.organisation.id)
    told = api.post(f"/v1/runs/{run.id}/start", headers=coordinator.headers).json()
    assert told["code"] == "budget_exceeded"
    assert told.keys().isdisjoint({"asked", "left", "ceiling", "account_id", "population"})
    assert api.get(f"/v1/runs/{run.id}", headers=coordinator.headers).json()["shortfall"] is None
