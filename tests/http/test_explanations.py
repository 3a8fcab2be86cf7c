"""Explanations over HTTP: in the reader's form and language, to whoever may see the run."""

import pytest
from sqlalchemy.orm import Session
from starlette.testclient import TestClient

from app.core.settings import Settings
from app.identity.roles import Role
from tests.federation import NOTHING, OPEN_PRIVACY, Federation
from tests.http.accounts import add_caller, client_headers


@pytest.fixture
def federation(session: Session, settings: Settings) -> Federation:
    return Federation(session, settings)


def test_a_plan_is_explained_with_what_stands_beside_every_epsilon(
    api: TestClient, session: Session, federation: Federation
) -> None:
    run = federation.running()
    viewer = add_caller(session, Role.VIEWER, federation.organisation.id)
    answer = api.get(f"/v1/plans/{run.id}/explanation", headers=viewer.headers)
    shown = answer.json()
    assert (answer.status_code, shown["epsilon"], shown["delta"]) == (200, 3.9, 1e-5)
    assert shown["manifest_sha256"] == run.manifest_sha256
    for beside in ("unit", "relation", "cohort", "examples", "from_whom", "accountant", "trust"):
        assert shown[beside]
    assert answer.headers["Vary"] == "Accept, Accept-Language"


def test_a_browser_gets_a_page_under_a_policy_that_runs_nothing(
    api: TestClient, session: Session, federation: Federation
) -> None:
    run = federation.priced()
    headers = add_caller(session, Role.VIEWER, federation.organisation.id).headers
    page = api.get(f"/v1/plans/{run.id}/explanation", headers=headers | {"Accept": "text/html"})
    assert page.headers["Content-Type"].startswith("text/html")
    assert page.text.startswith("<!doctype html>")
    policy = page.headers["Content-Security-Policy"]
    assert policy.startswith("default-src 'none'; style-src 'sha256-")
    assert "unsafe" not in policy


def test_a_client_of_the_run_may_ask_what_is_protected(api: TestClient, federation: Federation) -> None:
    run = federation.draft()
    own = client_headers(api.app, federation.principal())  # type: ignore[arg-type]  # it is our FastAPI
    shown = api.get(f"/v1/plans/{run.id}/explanation", headers=own).json()
    assert (shown["claimed"], shown["epsilon"]) == (False, None)
    assert [one["code"] for one in shown["warnings"]] == ["not_priced"]


def test_a_run_without_privacy_says_so(api: TestClient, session: Session, federation: Federation) -> None:
    run = federation.priced(NOTHING, privacy=OPEN_PRIVACY)
    viewer = add_caller(session, Role.VIEWER, federation.organisation.id)
    shown = api.get(f"/v1/plans/{run.id}/explanation", headers=viewer.headers).json()
    assert (shown["claimed"], shown["attack"]) == (False, None)
    assert [one["code"] for one in shown["warnings"]] == ["no_privacy"]


def test_another_organisations_plan_is_not_explained(
    api: TestClient, session: Session, federation: Federation
) -> None:
    run = federation.priced()
    stranger = add_caller(session, Role.PRIVACY_OFFICER)
    assert api.get(f"/v1/plans/{run.id}/explanation", headers=stranger.headers).status_code == 404


def test_an_explanation_speaks_the_readers_language(
    api: TestClient, session: Session, federation: Federation
) -> None:
    run = federation.priced()
    headers = add_caller(session, Role.VIEWER, federation.organisation.id).headers
    german = api.get(f"/v1/plans/{run.id}/explanation", headers=headers | {"Accept-Language": "de"})
    assert (german.headers["Content-Language"], german.json()["language"]) == ("de", "de")
