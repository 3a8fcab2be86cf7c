"""Invitations and resets: a token that works once, handed over by hand."""

from datetime import timedelta
from uuid import uuid4

import pytest
import sqlalchemy as sa
from sqlalchemy.orm import Session
from starlette.testclient import TestClient

from app.core import clock
from app.core.errors import Forbidden
from app.identity import password_tokens
from app.identity.models import Member, PasswordToken, TokenPurpose
from app.identity.permissions import permissions_of
from app.identity.roles import Principal, Role
from tests.http.accounts import VAULT, Caller, add_caller
from tests.http.members import PASSWORD, add_person, bearer, refusal

STRONG = "nine quiet lighthouses"


def invite_person(api: TestClient, admin: Caller, **changes: object) -> tuple[str, str, str]:
    """A new person: (member id, e-mail, token of the invitation)."""
    email = f"{uuid4().hex[:12]}@riverside.example"
    body = {"organisation_id": str(admin.organisation_id), "name": "Ada", "role": "viewer", "email": email}
    made = api.post("/v1/members", json=body | changes, headers=admin.headers)
    assert made.status_code == 201, made.text
    token = issue(api, admin, made.json()["id"], "invitation")
    return made.json()["id"], email, token


def issue(api: TestClient, admin: Caller, member_id: str, purpose: str, **changes: object) -> str:
    answer = api.post(
        f"/v1/members/{member_id}/password-tokens",
        json={"purpose": purpose} | changes,
        headers=admin.headers,
    )
    assert answer.status_code == 201, answer.text
    return str(answer.json()["token"])


def test_an_invited_person_sets_a_password_once_and_signs_in(api: TestClient, session: Session) -> None:
    admin = add_caller(session)
    _member_id, email, token = invite_person(api, admin)
    assert refusal(api.post("/v1/sessions", json={"email": email, "password": STRONG})) == (
        401,
        "sign_in_refused",
    )
    body = {"token": token, "password": STRONG}
    assert api.post("/v1/passwords", json=body).status_code == 204
    assert refusal(api.post("/v1/passwords", json=body)) == (401, "password_token_unknown")
    assert api.post("/v1/sessions", json={"email": email, "password": STRONG}).status_code == 201
    assert token.encode() not in session.scalars(sa.select(PasswordToken.token_hmac)).one()


@pytest.mark.parametrize("token", ["x", "dpfl_password_" + "A" * 49])
def test_a_token_that_was_never_issued_sets_no_password(
    api: TestClient, session: Session, token: str
) -> None:
    add_caller(session)
    answer = api.post("/v1/passwords", json={"token": token, "password": STRONG})
    assert refusal(answer) == (401, "password_token_unknown")


def test_an_expired_or_replaced_token_is_of_no_use(api: TestClient, session: Session) -> None:
    admin = add_caller(session)
    member_id, _email, first = invite_person(api, admin)
    second = issue(api, admin, member_id, "invitation", expires_in_s=60)
    answer = api.post("/v1/passwords", json={"token": first, "password": STRONG})
    assert refusal(answer) == (401, "password_token_unknown")
    with clock.shifted(timedelta(seconds=61)):
        answer = api.post("/v1/passwords", json={"token": second, "password": STRONG})
        assert refusal(answer) == (401, "password_token_unknown")


def test_a_weak_password_leaves_the_token_unused(api: TestClient, session: Session) -> None:
    _member_id, _email, token = invite_person(api, add_caller(session))
    weak = api.post("/v1/passwords", json={"token": token, "password": "aaaaaaaaaaaa"})
    assert refusal(weak) == (422, "password_too_weak")
    short = api.post("/v1/passwords", json={"token": token, "password": "short"})
    assert refusal(short) == (422, "invalid")
    assert api.post("/v1/passwords", json={"token": token, "password": STRONG}).status_code == 204


def test_a_reset_ends_every_session_and_takes_the_second_factor_where_it_says_so(
    api: TestClient, session: Session
) -> None:
    admin, person = add_caller(session), add_person(session)
    tokens = person.sign_in(api)
    person.get_second_factor(api, bearer(tokens["access_token"]))
    token = issue(api, admin, str(person.member.id), "reset")
    assert api.get("/v1/account", headers=bearer(tokens["access_token"])).status_code == 200
    assert api.post("/v1/passwords", json={"token": token, "password": STRONG}).status_code == 204
    api.app.state.authenticator.suspensions.announce()  # type: ignore[attr-defined]  # as the hub does
    assert api.get("/v1/account", headers=bearer(tokens["access_token"])).status_code == 401
    needs = api.post("/v1/sessions", json=person.body(password=STRONG))
    assert refusal(needs) == (401, "second_factor_required")
    token = issue(api, admin, str(person.member.id), "reset", drops_second_factor=True)
    assert api.post("/v1/passwords", json={"token": token, "password": PASSWORD}).status_code == 204
    person.sign_in(api)


def test_an_invitation_is_for_who_has_no_password(api: TestClient, session: Session) -> None:
    admin, person = add_caller(session), add_person(session)
    answer = api.post(
        f"/v1/members/{person.member.id}/password-tokens",
        json={"purpose": "invitation"},
        headers=admin.headers,
    )
    assert refusal(answer) == (409, "already_signed_up")


def test_a_service_account_has_no_password_ever(api: TestClient, session: Session) -> None:
    admin = add_caller(session)
    body = {"organisation_id": str(admin.organisation_id), "name": "export", "role": "viewer"}
    refused = api.post(
        "/v1/members", json=body | {"kind": "service", "email": "a@b.example"}, headers=admin.headers
    )
    assert refusal(refused) == (422, "invalid")
    made = api.post("/v1/members", json=body | {"kind": "service"}, headers=admin.headers).json()
    assert made["kind"] == "service"
    path = f"/v1/members/{made['id']}/password-tokens"
    answer = api.post(path, json={"purpose": "invitation"}, headers=admin.headers)
    assert refusal(answer) == (422, "invalid")
    key = api.post("/v1/api-keys", json={"label": "x", "member_id": made["id"]}, headers=admin.headers).json()
    account = api.get("/v1/account", headers=bearer(key["api_key"])).json()
    assert (account["kind"], account["has_password"]) == ("service", False)
    with pytest.raises(sa.exc.IntegrityError), session.begin_nested():
        session.execute(sa.update(Member).where(Member.id == made["id"]).values(password_hash="$argon2id$"))


def test_an_address_belongs_to_one_member_in_any_case(api: TestClient, session: Session) -> None:
    admin = add_caller(session)
    _member_id, email, _token = invite_person(api, admin)
    body = {"organisation_id": str(admin.organisation_id), "name": "Eve", "role": "viewer"}
    answer = api.post("/v1/members", json=body | {"email": email.upper()}, headers=admin.headers)
    assert refusal(answer) == (409, "email_taken")


def test_addresses_are_shown_to_who_looks_after_members_only(api: TestClient, session: Session) -> None:
    admin = add_caller(session)
    member_id, email, _token = invite_person(api, admin)
    auditor = add_caller(session, Role.AUDITOR, admin.organisation_id)
    assert api.get(f"/v1/members/{member_id}", headers=admin.headers).json()["email"] == email
    for path in ("/v1/members", f"/v1/members/{member_id}"):
        assert email not in api.get(path, headers=auditor.headers).text


def test_nobody_takes_over_an_account_that_holds_more(session: Session) -> None:
    """A reset is a way to act for its member: it needs everything that the member's role holds."""
    person = add_person(session, Role.ADMIN)
    narrow = Principal(
        id=uuid4(),
        organisation_id=person.member.organisation_id,
        role=Role.ADMIN,
        scopes=permissions_of(Role.ADMIN) - {"jobs:retry"},
    )
    with pytest.raises(Forbidden) as refused:
        password_tokens.issue(
            session,
            narrow,
            VAULT,
            member_id=person.member.id,
            purpose=TokenPurpose.RESET,
            drops_second_factor=False,
            expires_in_s=60,
        )
    assert refused.value.members == {"permission": "jobs:retry"}
