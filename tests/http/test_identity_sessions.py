"""Signing in, refreshing, signing out; and what ends sessions in passing."""

import hashlib
from concurrent.futures import ThreadPoolExecutor
from datetime import timedelta
from pathlib import Path
from typing import Any

import jwt
import pytest
import sqlalchemy as sa
from sqlalchemy.orm import Session
from starlette.testclient import TestClient

from app.core import clock
from app.core.db import Database
from app.core.settings import Environment
from app.identity.models import ApiKey, Member, MemberSession, RefreshToken, SessionEnd
from app.identity.roles import Role
from app.main import build_app, install_state
from tests.database import settings_for
from tests.http.accounts import add_caller, add_organisation
from tests.http.members import add_person, bearer, refusal


def test_a_sign_in_gives_an_access_token_that_works_and_says_what_it_must(
    api: TestClient, session: Session
) -> None:
    person = add_person(session)
    tokens = person.sign_in(api)
    assert api.get("/v1/runs", headers=bearer(tokens["access_token"])).status_code == 200
    account = api.get("/v1/account", headers=bearer(tokens["access_token"])).json()
    assert (account["email"], account["needs_second_factor"]) == (person.email, False)
    header = jwt.get_unverified_header(tokens["access_token"])
    claims = jwt.decode(tokens["access_token"], options={"verify_signature": False})
    assert (header["typ"], header["alg"], "kid" in header) == ("at+jwt", "EdDSA", True)
    assert claims["exp"] - claims["iat"] == tokens["expires_in"] == 600
    assert {"iss", "aud", "sub", "jti", "nbf", "sid", "epoch"} <= claims.keys()


@pytest.mark.parametrize(
    "change", [{"email": "nobody@riverside.example"}, {"password": "wrong horse"}], ids=str
)
def test_a_wrong_password_and_an_unknown_address_get_the_same_answer(
    api: TestClient, session: Session, change: dict[str, str]
) -> None:
    person = add_person(session)
    answer = api.post("/v1/sessions", json=person.body(**change))
    assert refusal(answer) == (401, "sign_in_refused")
    assert person.email not in answer.text


def test_no_secret_of_a_sign_in_is_kept_in_the_clear(api: TestClient, session: Session) -> None:
    person = add_person(session)
    tokens = person.sign_in(api)
    member = session.get_one(Member, person.member.id)
    assert person.email.encode() not in (member.email_sealed or b"")
    assert member.email_hash != hashlib.sha256(person.email.encode()).digest()
    assert str(member.password_hash).startswith("$argon2id$v=19$m=19456,t=2,p=1$")
    hmac = session.scalars(sa.select(RefreshToken.token_hmac)).one()
    assert len(hmac) == 32
    assert tokens["refresh_token"].encode() not in hmac


def test_an_address_is_found_in_any_case(api: TestClient, session: Session) -> None:
    person = add_person(session)
    person.sign_in(api, email=person.email.upper())


def test_a_refresh_token_works_once_and_gives_the_next(api: TestClient, session: Session) -> None:
    first = add_person(session).sign_in(api)
    second = api.post("/v1/sessions/refresh", json={"refresh_token": first["refresh_token"]}).json()
    assert second["session_id"] == first["session_id"]
    assert second["refresh_token"] != first["refresh_token"]
    assert api.get("/v1/runs", headers=bearer(second["access_token"])).status_code == 200


def test_a_refresh_token_that_comes_twice_ends_its_family_and_leaves_a_trace(
    api: TestClient, session: Session
) -> None:
    person = add_person(session)
    first, other = person.sign_in(api), person.sign_in(api)
    second = api.post("/v1/sessions/refresh", json={"refresh_token": first["refresh_token"]}).json()
    again = api.post("/v1/sessions/refresh", json={"refresh_token": first["refresh_token"]})
    assert refusal(again) == (401, "refresh_reused")
    for token in (first, second):  # the thief's and the owner's alike
        late = api.post("/v1/sessions/refresh", json={"refresh_token": token["refresh_token"]})
        assert refusal(late) == (401, "session_over")
        api.app.state.authenticator.suspensions.announce()  # type: ignore[attr-defined]  # as the hub does
        assert refusal(api.get("/v1/runs", headers=bearer(token["access_token"]))) == (401, "unauthorized")
    row = session.get_one(MemberSession, first["session_id"], populate_existing=True)
    assert row.ended_why is SessionEnd.REUSE
    assert api.get("/v1/runs", headers=bearer(other["access_token"])).status_code == 200


def test_of_racing_uses_of_one_refresh_token_one_gets_tokens_and_the_family_ends(
    database: Database, tmp_path: Path
) -> None:
    settings = settings_for("postgresql+psycopg://unused", tmp_path)
    app = build_app(settings)
    install_state(app, settings, database)
    with database.run_tx("test") as session:
        person = add_person(session)
    api = TestClient(app, base_url="http://127.0.0.1:8000")
    tokens = person.sign_in(api)

    def use(_index: int) -> str:
        answer = api.post("/v1/sessions/refresh", json={"refresh_token": tokens["refresh_token"]})
        return "won" if answer.status_code == 200 else str(answer.json()["code"])

    with ThreadPoolExecutor(6) as pool:
        found = sorted(pool.map(use, range(6)))
    assert found.count("won") == found.count("refresh_reused") == 1
    assert found.count("session_over") == 4
    with database.run_tx("test") as session:
        assert session.scalars(sa.select(MemberSession.ended_why)).one() is SessionEnd.REUSE


@pytest.mark.parametrize("token", ["x", "dpfl_refresh_" + "A" * 49])
def test_a_refresh_token_that_was_never_issued_is_refused(
    api: TestClient, session: Session, token: str
) -> None:
    add_caller(session)
    assert refusal(api.post("/v1/sessions/refresh", json={"refresh_token": token})) == (401, "session_over")


def test_refreshing_does_not_prolong_a_session(api: TestClient, session: Session) -> None:
    tokens = add_person(session).sign_in(api)
    with clock.shifted(timedelta(hours=11)):
        tokens = api.post("/v1/sessions/refresh", json={"refresh_token": tokens["refresh_token"]}).json()
    with clock.shifted(timedelta(hours=12, seconds=1)):
        late = api.post("/v1/sessions/refresh", json={"refresh_token": tokens["refresh_token"]})
        assert refusal(late) == (401, "session_over")


def test_no_setting_lets_a_session_last_longer_than_two_days(tmp_path: Path) -> None:
    with pytest.raises(ValueError, match="session_s"):
        settings_for("postgresql+psycopg://unused", tmp_path, session_s=48 * 3600 + 1)


def stopped(api: TestClient, tokens: dict[str, Any]) -> bool:
    """Whether neither the access token nor the refresh token of a sign-in works."""
    api.app.state.authenticator.suspensions.announce()  # type: ignore[attr-defined]  # as the hub does
    used = api.get("/v1/account", headers=bearer(tokens["access_token"])).status_code
    renewed = api.post("/v1/sessions/refresh", json={"refresh_token": tokens["refresh_token"]}).status_code
    return {used, renewed} <= {401, 403}


def test_signing_out_ends_one_session_and_everywhere_ends_all(api: TestClient, session: Session) -> None:
    person = add_person(session)
    first, second, third = (person.sign_in(api) for _index in range(3))
    headers = bearer(second["access_token"])
    assert api.delete(f"/v1/sessions/{first['session_id']}", headers=headers).status_code == 204
    assert stopped(api, first)
    assert not stopped(api, second)
    headers = bearer(third["access_token"])
    assert api.delete("/v1/sessions", headers=headers).status_code == 204
    assert stopped(api, second)
    assert stopped(api, third)
    person.sign_in(api)


def test_the_sessions_of_others_are_absent(api: TestClient, session: Session) -> None:
    one, other = add_person(session), add_person(session)
    mine, theirs = one.sign_in(api), other.sign_in(api)
    headers = bearer(mine["access_token"])
    assert refusal(api.delete(f"/v1/sessions/{theirs['session_id']}", headers=headers)) == (404, "not_found")
    listed = api.get("/v1/sessions", headers=headers).json()["items"]
    assert [item["id"] for item in listed] == [mine["session_id"]]


@pytest.mark.parametrize("act", ["role", "suspend", "move", "sessions", "password"])
def test_what_changes_a_members_standing_ends_every_session(
    api: TestClient, session: Session, act: str
) -> None:
    admin, person = add_caller(session), add_person(session)
    tokens = [person.sign_in(api) for _index in range(2)]
    path = f"/v1/members/{person.member.id}"
    match act:
        case "role":
            answer = api.put(f"{path}/role", json={"role": "auditor"}, headers=admin.headers)
        case "suspend":
            answer = api.post(f"{path}/suspend", headers=admin.headers)
        case "move":
            body = {"organisation_id": str(add_organisation(session).id)}
            answer = api.post(f"{path}/move", json=body, headers=admin.headers)
        case "sessions":
            answer = api.delete(f"{path}/sessions", headers=admin.headers)
        case _:
            body = {"password": person.password, "new_password": "nine quiet lighthouses"}
            headers = bearer(tokens[0]["access_token"])
            answer = api.post("/v1/account/password", json=body, headers=headers)
    assert answer.status_code in {200, 204}, answer.text
    assert all(stopped(api, one) for one in tokens)


def test_after_a_change_of_password_the_old_one_is_of_no_use(api: TestClient, session: Session) -> None:
    person = add_person(session)
    headers = bearer(person.sign_in(api)["access_token"])
    body = {"password": person.password, "new_password": "nine quiet lighthouses"}
    assert api.post("/v1/account/password", json=body, headers=headers).status_code == 204
    assert refusal(api.post("/v1/sessions", json=person.body())) == (401, "sign_in_refused")
    person.sign_in(api, password="nine quiet lighthouses")


@pytest.mark.parametrize("weak", ["aaaaaaaaaaaa", "ada ada ada ada ada", "{email} and more"])
def test_a_password_that_is_guessed_early_is_refused(api: TestClient, session: Session, weak: str) -> None:
    person = add_person(session)
    headers = bearer(person.sign_in(api)["access_token"])
    body = {"password": person.password, "new_password": weak.format(email=person.email)}
    answer = api.post("/v1/account/password", json=body, headers=headers)
    assert refusal(answer) == (422, "password_too_weak")


def test_moving_drops_role_and_keys(api: TestClient, session: Session) -> None:
    admin = add_caller(session)
    officer = add_caller(session, Role.PRIVACY_OFFICER)
    there = add_organisation(session)
    body = {"organisation_id": str(there.id)}
    answer = api.post(f"/v1/members/{officer.principal.id}/move", json=body, headers=admin.headers)
    assert (answer.json()["role"], answer.json()["organisation_id"]) == ("viewer", str(there.id))
    assert refusal(api.get("/v1/account", headers=officer.headers)) == (401, "unauthorized")
    key = session.scalars(sa.select(ApiKey).where(ApiKey.member_id == officer.principal.id)).one()
    assert key.revoked_at is not None


def test_nobody_changes_their_own_standing(api: TestClient, session: Session) -> None:
    admin = add_caller(session)
    path = f"/v1/members/{admin.principal.id}"
    body = {"organisation_id": str(add_organisation(session).id)}
    for answer in (
        api.put(f"{path}/role", json={"role": "viewer"}, headers=admin.headers),
        api.post(f"{path}/suspend", headers=admin.headers),
        api.post(f"{path}/move", json=body, headers=admin.headers),
    ):
        assert refusal(answer) == (409, "own_member")


def test_a_suspended_member_with_the_right_password_is_told_so_and_gets_nothing(
    api: TestClient, session: Session
) -> None:
    person = add_person(session)
    person.member.suspended_at = clock.now()
    session.flush()
    assert refusal(api.post("/v1/sessions", json=person.body())) == (403, "suspended")
    wrong = api.post("/v1/sessions", json=person.body(password="wrong horse"))
    assert refusal(wrong) == (401, "sign_in_refused")


def test_in_production_an_administrator_without_a_second_factor_can_only_get_one(
    api: TestClient, session: Session
) -> None:
    app = api.app
    production = app.state.settings.model_copy(update={"environment": Environment.PRODUCTION})  # type: ignore[attr-defined]
    app.state.settings = production  # type: ignore[attr-defined]  # install_state sets it anew for each test
    person = add_person(session, Role.ADMIN)
    tokens = person.sign_in(api)
    headers = bearer(tokens["access_token"])
    assert "account:secure" in tokens["scopes"]
    assert refusal(api.get("/v1/members", headers=headers)) == (403, "forbidden")
    assert refusal(api.post("/v1/api-keys", json={"label": "x"}, headers=headers)) == (403, "forbidden")
    assert api.get("/v1/account", headers=headers).json()["needs_second_factor"] is True
    person.get_second_factor(api, headers)
    renewed = api.post("/v1/sessions/refresh", json={"refresh_token": tokens["refresh_token"]}).json()
    assert renewed["scopes"] is None
    assert api.get("/v1/members", headers=bearer(renewed["access_token"])).status_code == 200
    with clock.shifted(timedelta(seconds=60)):
        again = person.sign_in(api, code=person.code())
    assert again["scopes"] is None


def test_in_development_an_administrator_may_do_without(api: TestClient, session: Session) -> None:
    tokens = add_person(session, Role.ADMIN).sign_in(api)
    assert tokens["scopes"] is None
    assert api.get("/v1/members", headers=bearer(tokens["access_token"])).status_code == 200
