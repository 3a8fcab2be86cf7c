"""API keys: what they are good for, from where, how they are rotated, and that none exceeds its maker."""

from collections.abc import Iterator
from datetime import timedelta
from typing import Any
from uuid import UUID

import pytest
import sqlalchemy as sa
from sqlalchemy.orm import Session
from starlette.testclient import TestClient

from app.core import clock
from app.identity.models import ApiKey
from app.identity.roles import Role
from tests.http.accounts import Caller, add_caller
from tests.http.members import bearer, refusal


def make(api: TestClient, headers: dict[str, str], **terms: Any) -> dict[str, Any]:
    answer = api.post("/v1/api-keys", json={"label": "x"} | terms, headers=headers)
    assert answer.status_code == 201, answer.text
    made: dict[str, Any] = answer.json()
    return made


@pytest.fixture
def admin(session: Session) -> Caller:
    return add_caller(session)


def test_a_key_is_good_for_its_scopes_only(api: TestClient, admin: Caller) -> None:
    key = bearer(make(api, admin.headers, scopes=["members:read"])["api_key"])
    assert api.get("/v1/members", headers=key).status_code == 200
    answer = api.get("/v1/organisations", headers=key)
    assert (*refusal(answer), answer.json()["permission"]) == (403, "forbidden", "organisations:read")


def test_scopes_beyond_the_owners_role_are_refused(api: TestClient, session: Session, admin: Caller) -> None:
    viewer = add_caller(session, Role.VIEWER)
    body = {"label": "x", "scopes": ["runs:read", "rounds:seal"]}
    assert refusal(api.post("/v1/api-keys", json=body, headers=viewer.headers)) == (403, "forbidden")
    for_viewer = body | {"member_id": str(viewer.principal.id)}
    assert refusal(api.post("/v1/api-keys", json=for_viewer, headers=admin.headers)) == (403, "forbidden")
    unknown = {"label": "x", "scopes": ["runs:fly"]}
    assert refusal(api.post("/v1/api-keys", json=unknown, headers=admin.headers)) == (422, "invalid")


def roundabout(member: UUID, organisation: UUID) -> Iterator[tuple[str, str, dict[str, Any]]]:
    """Ways by which a narrow key could end in a wide one."""
    yield "POST", "/v1/api-keys", {"label": "x", "scopes": ["jobs:retry"]}
    yield "POST", "/v1/api-keys", {"label": "x", "member_id": str(member)}
    yield "POST", "/v1/members", {"organisation_id": str(organisation), "name": "x", "role": "admin"}
    yield "PUT", f"/v1/members/{member}/role", {"role": "admin"}
    yield "PUT", f"/v1/members/{member}/role", {"role": "viewer"}
    yield "POST", f"/v1/members/{member}/password-tokens", {"purpose": "reset"}
    yield "POST", f"/v1/members/{member}/move", {"organisation_id": str(organisation)}
    yield "POST", f"/v1/members/{member}/reinstate", {}


def test_nobody_hands_on_what_they_lack_by_whatever_way(
    api: TestClient, session: Session, admin: Caller
) -> None:
    """An administrator's key for members and keys only must not become one for everything."""
    other = add_caller(session, Role.ADMIN)
    own = ["api_keys:create", "members:create", "members:update", "members:move"]
    narrow = bearer(make(api, admin.headers, scopes=own)["api_key"])
    for method, path, body in roundabout(other.principal.id, admin.organisation_id):
        answer = api.request(method, path, json=body, headers=narrow)
        assert refusal(answer) == (403, "forbidden"), (method, path, body)
    heir = make(api, narrow)
    assert set(heir["scopes"]) == set(own)


def test_a_wider_key_of_the_same_member_cannot_be_rotated_by_a_narrow_one(
    api: TestClient, session: Session, admin: Caller
) -> None:
    narrow = bearer(make(api, admin.headers, scopes=["api_keys:create", "api_keys:read"])["api_key"])
    wide = session.scalars(
        sa.select(ApiKey.id).where(ApiKey.member_id == admin.principal.id, ApiKey.label == "test")
    ).one()
    answer = api.post(f"/v1/api-keys/{wide}/rotate", json={}, headers=narrow)
    assert refusal(answer) == (403, "forbidden")


@pytest.mark.parametrize(
    ("address", "status"),
    [
        ("10.1.2.3", 200),
        ("::ffff:10.1.2.3", 200),
        ("10.2.2.3", 403),
        ("2001:db8::7", 200),
        ("2001:db9::7", 403),
        ("elsewhere", 403),
    ],
)
def test_a_key_is_taken_from_its_networks_only(
    api: TestClient, admin: Caller, address: str, status: int
) -> None:
    key = make(api, admin.headers, networks=["10.1.0.0/16", "2001:db8::/32"])["api_key"]
    there = TestClient(api.app, base_url="http://127.0.0.1:8000", client=(address, 1))
    answer = there.get("/v1/members", headers=bearer(key))
    assert answer.status_code == status
    if status == 403:
        assert answer.json()["code"] == "address_not_allowed"


@pytest.mark.parametrize("network", ["10.1.0.1/16", "10.1.0.0/33", "x", "", "::/129", "10.1.0.0/16 "])
def test_what_is_no_network_is_refused(api: TestClient, admin: Caller, network: str) -> None:
    body = {"label": "x", "networks": [network]}
    assert refusal(api.post("/v1/api-keys", json=body, headers=admin.headers)) == (422, "invalid")


def test_a_bound_key_makes_no_freer_one(api: TestClient, admin: Caller) -> None:
    bound = bearer(make(api, admin.headers, networks=["10.1.0.0/16"], expires_in_s=3600)["api_key"])
    there = TestClient(api.app, base_url="http://127.0.0.1:8000", client=("10.1.2.3", 1))
    heir = make(there, bound)
    assert heir["networks"] == ["10.1.0.0/16"]
    assert heir["expires_at"] is not None
    assert make(there, bound, networks=["10.1.7.0/24"])["networks"] == ["10.1.7.0/24"]
    for networks in (["10.0.0.0/8"], ["10.1.0.0/16", "::/0"]):
        answer = there.post("/v1/api-keys", json={"label": "x", "networks": networks}, headers=bound)
        assert refusal(answer) == (403, "forbidden")


def test_the_last_use_is_noted_with_its_address(api: TestClient, session: Session, admin: Caller) -> None:
    made = make(api, admin.headers)
    there = TestClient(api.app, base_url="http://127.0.0.1:8000", client=("203.0.113.7", 1))
    there.get("/v1/members", headers=bearer(made["api_key"]))
    listed = api.get("/v1/api-keys", headers=admin.headers).json()["items"]
    seen = {item["id"]: item["last_used_address"] for item in listed}
    assert seen[made["id"]] == "203.0.113.7"


def test_both_keys_work_until_the_overlap_is_over(api: TestClient, admin: Caller) -> None:
    former = make(api, admin.headers, scopes=["members:read"], networks=["0.0.0.0/0"])
    answer = api.post(f"/v1/api-keys/{former['id']}/rotate", json={"overlap_s": 60}, headers=admin.headers)
    assert answer.status_code == 201
    made = answer.json()
    assert (made["replaces"], made["scopes"], made["networks"]) == (
        former["id"],
        ["members:read"],
        ["0.0.0.0/0"],
    )
    there = TestClient(api.app, base_url="http://127.0.0.1:8000", client=("203.0.113.7", 1))
    for key in (former, made):
        assert there.get("/v1/members", headers=bearer(key["api_key"])).status_code == 200
    with clock.shifted(timedelta(seconds=61)):
        assert there.get("/v1/members", headers=bearer(former["api_key"])).status_code == 401
        assert there.get("/v1/members", headers=bearer(made["api_key"])).status_code == 200
        again = api.post(f"/v1/api-keys/{former['id']}/rotate", json={}, headers=admin.headers)
        assert refusal(again) == (409, "key_over")


def test_a_rotated_key_gets_the_lifetime_of_the_former_and_never_prolongs_it(
    api: TestClient, admin: Caller
) -> None:
    former = make(api, admin.headers, expires_in_s=3600)
    with clock.shifted(timedelta(seconds=3590)):
        made = api.post(
            f"/v1/api-keys/{former['id']}/rotate", json={"overlap_s": 600}, headers=admin.headers
        ).json()
    with clock.shifted(timedelta(seconds=3610)):
        assert api.get("/v1/members", headers=bearer(former["api_key"])).status_code == 401
        assert api.get("/v1/members", headers=bearer(made["api_key"])).status_code == 200


def test_a_change_of_role_narrows_the_keys_too(api: TestClient, session: Session, admin: Caller) -> None:
    coordinator = add_caller(session, Role.COORDINATOR)
    key = bearer(make(api, coordinator.headers, scopes=["enrolments:read", "runs:read"])["api_key"])
    assert api.get("/v1/enrolments", headers=key).status_code == 200
    path = f"/v1/members/{coordinator.principal.id}/role"
    assert api.put(path, json={"role": "viewer"}, headers=admin.headers).status_code == 200
    assert refusal(api.get("/v1/enrolments", headers=key)) == (403, "forbidden")
    assert api.get("/v1/runs", headers=key).status_code == 200
