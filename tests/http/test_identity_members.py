"""Organisations, members, API keys, and who is let in."""

from datetime import timedelta
from uuid import uuid4

import pytest
import sqlalchemy as sa
from sqlalchemy.orm import Session
from starlette.testclient import TestClient

from app.core import clock
from app.identity.models import ApiKey, Member
from app.identity.roles import Role
from tests.http.accounts import add_caller


@pytest.mark.parametrize(
    "header",
    [
        None,
        "",
        "Bearer",
        "Bearer ",
        "Basic YTpi",
        "Bearer x",
        "Bearer a.b.c",
        "Bearer dpfl_live_",
        "Bearer dpfl_live_abcdefgh_" + "A" * 49,
        "Bearer " + "x" * 9000,
        "Bearer eyJhbGciOiJub25lIiwidHlwIjoiYXQrand0Iiwia2lkIjoiLi4vLi4ifQ.e30.",
    ],
)
def test_what_is_no_credential_is_answered_with_401(
    api: TestClient, session: Session, header: str | None
) -> None:
    add_caller(session)
    answer = api.get("/v1/organisations", headers={} if header is None else {"Authorization": header})
    assert (answer.status_code, answer.json()["code"]) == (401, "unauthorized")
    assert answer.headers["www-authenticate"].startswith('Bearer realm="dpfl"')


def test_a_key_is_shown_once_works_and_is_stored_as_a_keyed_hash(api: TestClient, session: Session) -> None:
    admin = add_caller(session)
    answer = api.post("/v1/api-keys", json={"label": "export"}, headers=admin.headers)
    assert answer.status_code == 201
    key = answer.json()["api_key"]
    listed = api.get("/v1/api-keys", headers={"Authorization": f"Bearer {key}"})
    assert listed.status_code == 200
    assert key not in listed.text
    row = session.scalars(sa.select(ApiKey).where(ApiKey.key_id == answer.json()["key_id"])).one()
    assert len(row.secret_hmac) == 32
    assert key.encode() not in row.secret_hmac
    assert row.last_used_at is not None


def test_a_revoked_key_fails_from_the_next_request_on(api: TestClient, session: Session) -> None:
    admin = add_caller(session)
    made = api.post("/v1/api-keys", json={"label": "export"}, headers=admin.headers).json()
    headers = {"Authorization": f"Bearer {made['api_key']}"}
    for _twice in range(2):
        assert api.delete(f"/v1/api-keys/{made['id']}", headers=admin.headers).status_code == 204
    assert api.get("/v1/api-keys", headers=headers).status_code == 401


def test_an_expired_key_fails(api: TestClient, session: Session) -> None:
    admin = add_caller(session)
    made = api.post(
        "/v1/api-keys", json={"label": "export", "expires_in_s": 60}, headers=admin.headers
    ).json()
    headers = {"Authorization": f"Bearer {made['api_key']}"}
    assert api.get("/v1/api-keys", headers=headers).status_code == 200
    with clock.shifted(timedelta(seconds=61)):
        assert api.get("/v1/api-keys", headers=headers).status_code == 401


def test_a_key_with_another_secret_fails_like_an_unknown_one(api: TestClient, session: Session) -> None:
    admin = add_caller(session)
    first, second = (
        api.post("/v1/api-keys", json={"label": "export"}, headers=admin.headers).json()
        for _index in range(2)
    )
    mixed = first["api_key"][:19] + second["api_key"][19:]
    assert api.get("/v1/api-keys", headers={"Authorization": f"Bearer {mixed}"}).status_code == 401


def test_a_suspended_members_key_is_refused(api: TestClient, session: Session) -> None:
    admin = add_caller(session)
    session.execute(sa.update(Member).where(Member.id == admin.principal.id).values(suspended_at=clock.now()))
    session.flush()
    answer = api.get("/v1/organisations", headers=admin.headers)
    assert (answer.status_code, answer.json()["code"]) == (403, "suspended")


def test_members_reach_their_own_keys_only(api: TestClient, session: Session) -> None:
    admin, viewer = add_caller(session), add_caller(session, Role.VIEWER)
    others = {"label": "x", "member_id": str(admin.principal.id)}
    assert api.post("/v1/api-keys", json=others, headers=viewer.headers).status_code == 404
    admins_key = session.scalars(sa.select(ApiKey.id).where(ApiKey.member_id == admin.principal.id)).one()
    assert api.delete(f"/v1/api-keys/{admins_key}", headers=viewer.headers).status_code == 404
    listed = api.get("/v1/api-keys", headers=viewer.headers).json()["items"]
    assert {item["member_id"] for item in listed} == {str(viewer.principal.id)}
    for_viewer = {"label": "x", "member_id": str(viewer.principal.id)}
    assert api.post("/v1/api-keys", json=for_viewer, headers=admin.headers).status_code == 201


def test_only_administrators_add_organisations_and_members(api: TestClient, session: Session) -> None:
    admin = add_caller(session)
    made = api.post(
        "/v1/organisations", json={"name": f"clinic {uuid4()}", "region": "eu-west-1"}, headers=admin.headers
    )
    assert made.status_code == 201
    body = {"organisation_id": made.json()["id"], "name": "officer", "role": "privacy_officer"}
    assert api.post("/v1/members", json=body, headers=admin.headers).status_code == 201
    for role in (Role.COORDINATOR, Role.PRIVACY_OFFICER, Role.AUDITOR, Role.VIEWER):
        caller = add_caller(session, role)
        answer = api.post("/v1/members", json=body | {"role": "admin"}, headers=caller.headers)
        assert (answer.status_code, answer.json()["code"]) == (403, "forbidden")
        assert answer.json()["permission"] == "members:create"


def test_a_training_client_cannot_be_made_as_a_member(api: TestClient, session: Session) -> None:
    admin = add_caller(session)
    body = {"organisation_id": str(admin.organisation_id), "name": "x", "role": "client"}
    assert api.post("/v1/members", json=body, headers=admin.headers).status_code == 422


def test_a_name_is_taken_once(api: TestClient, session: Session) -> None:
    admin = add_caller(session)
    body = {"name": f"clinic {uuid4()}", "region": "eu-west-1"}
    assert api.post("/v1/organisations", json=body, headers=admin.headers).status_code == 201
    answer = api.post("/v1/organisations", json=body, headers=admin.headers)
    assert (answer.status_code, answer.json()["code"]) == (409, "name_taken")


def test_a_member_of_an_unknown_organisation_is_refused(api: TestClient, session: Session) -> None:
    body = {"organisation_id": str(uuid4()), "name": "x", "role": "viewer"}
    assert api.post("/v1/members", json=body, headers=add_caller(session).headers).status_code == 404


def test_staff_see_their_own_organisation_only(api: TestClient, session: Session) -> None:
    add_caller(session)
    viewer = add_caller(session, Role.VIEWER)
    listed = api.get("/v1/organisations", headers=viewer.headers).json()["items"]
    assert [item["id"] for item in listed] == [str(viewer.organisation_id)]
    auditor = add_caller(session, Role.AUDITOR, viewer.organisation_id)
    members = api.get("/v1/members", headers=auditor.headers).json()["items"]
    assert {item["organisation_id"] for item in members} == {str(viewer.organisation_id)}


def test_pages_are_cut_by_keys_and_hold_everything_once(api: TestClient, session: Session) -> None:
    admin = add_caller(session)
    for _index in range(4):
        add_caller(session, Role.VIEWER, admin.organisation_id)
    seen: list[str] = []
    query: dict[str, str | int] = {"limit": 2}
    for _page in range(10):
        answer = api.get("/v1/members", params=query, headers=admin.headers).json()
        seen += [item["id"] for item in answer["items"]]
        if answer["next_cursor"] is None:
            break
        query = {"limit": 2, "cursor": answer["next_cursor"]}
    assert len(seen) == len(set(seen)) == 5
    assert seen == sorted(seen)


@pytest.mark.parametrize(
    "query",
    [
        {"limit": 0},
        {"limit": 201},
        {"limit": -(10**13)},
        {"limit": "x"},
        {"cursor": "x"},
        {"cursor": "aTE"},
        {"cursor": "\x00"},
        {"cursor": "a" * 65},
    ],
    ids=str,
)
def test_a_page_that_cannot_be_is_refused(api: TestClient, session: Session, query: dict[str, str]) -> None:
    answer = api.get("/v1/members", params=query, headers=add_caller(session).headers)
    assert (answer.status_code, answer.json()["code"]) == (422, "invalid")


def test_the_published_keys_verify_tokens_and_hold_nothing_private(api: TestClient, session: Session) -> None:
    add_caller(session)
    keys = api.get("/.well-known/jwks.json").json()["keys"]
    assert len(keys) == 2
    assert all(key.keys() == {"kty", "crv", "alg", "use", "kid", "x"} for key in keys)


def test_without_bootstrap_there_are_no_keys_and_the_answer_says_so(api: TestClient) -> None:
    answer = api.get("/.well-known/jwks.json")
    assert (answer.status_code, answer.json()["code"]) == (503, "unavailable")
    assert answer.headers["retry-after"]
