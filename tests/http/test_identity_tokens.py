"""Access tokens against whatever may be sent in their place, and the keys that sign them."""

import base64
import json
import random
import secrets
from datetime import timedelta
from pathlib import Path
from typing import Any

import jwt
import pytest
import sqlalchemy as sa
from cryptography.hazmat.primitives.asymmetric.ed25519 import Ed25519PrivateKey
from fastapi import FastAPI
from sqlalchemy.orm import Session
from starlette.testclient import TestClient

from app.core import clock
from app.core.db import Database
from app.core.errors import Forbidden, Unauthorized
from app.core.tokens import sign_token
from app.identity.authentication import Authenticator
from app.identity.bootstrap import bootstrap
from app.identity.keys import KeyRing, rotate_signing_keys
from app.identity.models import KeyState, SigningKey
from app.identity.possession import Presented
from app.main import build_app
from tests.database import settings_for
from tests.http.accounts import VAULT, add_caller
from tests.http.members import add_person, bearer, refusal
from tests.http.test_identity_bootstrap import run_app, set_environment

BARE = Presented(method="GET", target="http://127.0.0.1:8000/v1/runs")
"""A request that shows nothing beside its token."""
ODD: list[Any] = [
    None,
    True,
    0,
    -1,
    2**63,
    10**400,
    1.5,
    "",
    "x",
    "\x00",
    "\ud800",
    "é" * 50,
    "x" * 2000,
    [],
    ["x"],
    [["x"] * 50],
    {},
    {"a": {"b": []}},
    "../../etc/passwd",
    "99999999999",
    "00000000-0000-0000-0000-000000000000",
]
CLAIMS = ("iss", "aud", "sub", "jti", "iat", "nbf", "exp", "org", "role", "epoch", "sid", "scope")
HEADERS = ("alg", "typ", "kid", "jku", "x5u", "jwk", "crit", "b64", "cty")


def encoded(value: object) -> str:
    return base64.urlsafe_b64encode(json.dumps(value).encode()).rstrip(b"=").decode()


def signed(key: Ed25519PrivateKey, header: object, claims: object) -> str:
    """Sign whatever by hand: a library would refuse to."""
    body = f"{encoded(header)}.{encoded(claims)}"
    return f"{body}.{base64.urlsafe_b64encode(key.sign(body.encode())).rstrip(b'=').decode()}"


class Forger:
    """Makes malformed tokens from a good one: some signed with the right key, some spoilt afterwards."""

    def __init__(self, key: Ed25519PrivateKey, good: str, seed: int) -> None:
        self.key, self.good, self.random = key, good, random.Random(seed)
        self.header = jwt.get_unverified_header(good)
        self.claims = jwt.decode(good, options={"verify_signature": False})

    def forged(self) -> str:
        way = self.random.randrange(6)
        if way == 0:
            return signed(self.key, self.spoilt(self.header, HEADERS[:3]), self.claims)
        if way == 1:
            return signed(self.key, self.header, self.spoilt(self.claims, CLAIMS[:9]))
        if way == 2:
            odd = self.random.choice(ODD)
            return signed(self.key, *self.random.choice([(odd, self.claims), (self.header, odd), (odd, odd)]))
        if way == 3:
            return self.cut()
        if way == 4:
            return signed(Ed25519PrivateKey.generate(), self.header | self.extra(), self.claims)
        letters = "ABCxyz019-_=.+/ \x00\n\u202eé"
        return "".join(self.random.choice(letters) for _index in range(self.random.randrange(200)))

    def spoilt(self, part: dict[str, Any], names: tuple[str, ...]) -> dict[str, Any]:
        """With one member that must be right missing or of another kind."""
        name = self.random.choice(names)
        without = {key: value for key, value in part.items() if key != name}
        odd = [value for value in ODD if value != part.get(name) and not harmless(name, value)]
        return self.random.choice([without, without | {name: self.random.choice(odd)}])

    def extra(self) -> dict[str, Any]:
        return {self.random.choice(HEADERS[3:]): self.random.choice(ODD)}

    def cut(self) -> str:
        """With a few characters flipped, dropped or doubled, in any of the three parts."""
        text = list(self.good)
        for _index in range(self.random.randrange(1, 4)):
            at = self.random.randrange(len(text) - 1)  # the last letter holds spare bits
            text[at] = self.random.choice(["", text[at] * 2, chr(self.random.randrange(33, 127))])
        found = "".join(text)
        return found if found != self.good else found[:-20]


def harmless(name: str, value: object) -> bool:
    """A value that a token may have there, if we signed it."""
    match name:
        case "jti":
            return isinstance(value, str) and len(value) <= 200
        case "nbf":
            return value in (0, -1) and not isinstance(value, bool)
        case "sub" | "org":
            return value == "00000000-0000-0000-0000-000000000000"
    return False


def test_ten_thousand_malformed_tokens_are_refused_and_none_breaks_anything(
    api: TestClient, session: Session
) -> None:
    good = add_person(session).sign_in(api)["access_token"]
    app = api.app
    assert isinstance(app, FastAPI)
    authenticator: Authenticator = app.state.authenticator
    assert authenticator.principal(f"Bearer {good}", BARE)
    forger = Forger(app.state.keys.current()[1], good, seed=5)
    for number in range(10_000):
        token = forger.forged()
        try:
            authenticator.principal(f"Bearer {token}", BARE)
        except Unauthorized:
            continue
        pytest.fail(f"token {number} was taken: {token}")


def test_malformed_tokens_over_http_are_401(api: TestClient, session: Session) -> None:
    good = add_person(session).sign_in(api)["access_token"]
    forger = Forger(api.app.state.keys.current()[1], good, seed=6)  # type: ignore[attr-defined]
    for _index in range(200):
        token = forger.forged().encode("utf-8", "replace").replace(b"\n", b"").replace(b"\x00", b"")
        answer = api.get("/v1/account", headers={"Authorization": b"Bearer " + token})
        assert refusal(answer) == (401, "unauthorized"), token


@pytest.mark.parametrize("claim", ["org", "role", "epoch", "sid", "scope"])
@pytest.mark.parametrize("value", ODD, ids=lambda value: repr(value)[:20])
def test_odd_claims_of_our_own_break_nothing_even_under_the_right_signature(
    api: TestClient, session: Session, claim: str, value: object
) -> None:
    good = add_person(session).sign_in(api)["access_token"]
    app = api.app
    assert isinstance(app, FastAPI)
    claims = jwt.decode(good, options={"verify_signature": False}) | {claim: value}
    token = signed(app.state.keys.current()[1], jwt.get_unverified_header(good), claims)
    authenticator: Authenticator = app.state.authenticator
    try:
        found = authenticator.principal(f"Bearer {token}", BARE)
    except (Unauthorized, Forbidden):
        return
    assert claim in {"epoch", "sid", "scope", "org"}
    assert found.role.value == "viewer"


def test_after_an_ending_no_token_of_an_earlier_epoch_is_taken_whatever_it_says_of_its_session(
    api: TestClient, session: Session
) -> None:
    """Not even one whose session nobody remembers: the epoch alone ends it."""
    admin, person = add_caller(session), add_person(session)
    app = api.app
    assert isinstance(app, FastAPI)
    kid, key = app.state.keys.current()
    url = app.state.settings.public_url
    claims: dict[str, str | int] = {"org": str(person.member.organisation_id), "role": "viewer", "epoch": 0}
    token = sign_token(
        key, kid=kid, issuer=url, audience=url, subject=str(person.member.id), lifetime_s=600, claims=claims
    )
    assert api.get("/v1/account", headers=bearer(token)).status_code == 200
    path = f"/v1/members/{person.member.id}/sessions"
    assert api.delete(path, headers=admin.headers).status_code == 204
    app.state.authenticator.suspensions.announce()  # as the hub does
    assert refusal(api.get("/v1/account", headers=bearer(token))) == (401, "unauthorized")


def test_a_cookie_is_no_credential_and_none_is_ever_set(api: TestClient, session: Session) -> None:
    """What a browser sends by itself opens nothing, so no foreign page can act for who looks at it."""
    person = add_person(session)
    answer = api.post("/v1/sessions", json=person.body())
    assert "set-cookie" not in answer.headers
    token = answer.json()["access_token"]
    for name in ("session", "access_token", "Authorization", "token"):
        sent = {"Cookie": f"{name}={token}; {name}=Bearer {token}"}
        assert refusal(api.get("/v1/account", headers=sent)) == (401, "unauthorized")
    assert refusal(api.get("/v1/account", params={"access_token": token})) == (401, "unauthorized")


def test_tokens_of_a_rotated_key_hold_until_they_expire(api: TestClient, session: Session) -> None:
    admin, person = add_caller(session), add_person(session)
    before = person.sign_in(api)["access_token"]
    body = {"leaked": False}
    assert api.post("/v1/signing-keys/rotate", json=body, headers=admin.headers).status_code == 204
    api.app.state.keys.announce()  # type: ignore[attr-defined]  # as the hub does
    after = person.sign_in(api)["access_token"]
    kids = [jwt.get_unverified_header(token)["kid"] for token in (before, after)]
    assert kids[0] != kids[1]
    published = {key["kid"] for key in api.get("/.well-known/jwks.json").json()["keys"]}
    assert set(kids) < published
    for token in (before, after):
        assert api.get("/v1/account", headers=bearer(token)).status_code == 200
    with clock.shifted(timedelta(seconds=631)):
        assert refusal(api.get("/v1/account", headers=bearer(before))) == (401, "unauthorized")


def test_long_after_its_retirement_a_key_verifies_certificates_and_no_token(
    database: Database, tmp_path: Path
) -> None:
    bootstrap(settings_for("postgresql+psycopg://x", tmp_path), database, VAULT, admin_file=tmp_path / "a")
    kid = KeyRing(database, VAULT).current()[0]
    with database.run_tx("test") as session:
        rotate_signing_keys(session, VAULT)
    ring = KeyRing(database, VAULT)
    assert ring.token_key(kid) is not None
    with clock.shifted(timedelta(hours=2)):
        assert ring.token_key(kid) is None
        assert ring.public_key(kid) is not None


def test_a_leaked_key_verifies_nothing_from_the_commit_on(api: TestClient, session: Session) -> None:
    admin, person = add_caller(session), add_person(session)
    before = person.sign_in(api)
    kid = jwt.get_unverified_header(before["access_token"])["kid"]
    answer = api.post("/v1/signing-keys/rotate", json={"leaked": True}, headers=admin.headers)
    assert answer.status_code == 204
    api.app.state.keys.announce()  # type: ignore[attr-defined]  # as the hub does
    assert refusal(api.get("/v1/account", headers=bearer(before["access_token"]))) == (401, "unauthorized")
    assert kid not in {key["kid"] for key in api.get("/.well-known/jwks.json").json()["keys"]}
    body = {"refresh_token": before["refresh_token"]}
    renewed = api.post("/v1/sessions/refresh", json=body).json()["access_token"]
    assert api.get("/v1/account", headers=bearer(renewed)).status_code == 200


def test_a_rotation_reaches_every_process_through_the_hub(
    database: Database, database_url: str, tmp_path: Path
) -> None:
    app = build_app(settings_for(database_url, tmp_path, pool_size=4))
    with database.run_tx("test") as session:
        admin, person = add_caller(session), add_person(session)
    with TestClient(app, base_url="http://127.0.0.1:8000") as api:
        assert api.portal is not None
        api.portal.call(app.state.hub.connected.wait)
        token = person.sign_in(api)["access_token"]
        assert api.get("/v1/account", headers=bearer(token)).status_code == 200
        followed = app.state.keys._announced
        with database.run_tx("elsewhere") as session:
            rotate_signing_keys(session, VAULT, leaked=True)
        while app.state.keys._announced == followed:  # the test's own time limit ends a wait for nothing
            api.get("/healthz")
        assert refusal(api.get("/v1/account", headers=bearer(token))) == (401, "unauthorized")
        assert api.get("/v1/account", headers=admin.headers).status_code == 200


def test_two_rotations_at_once_are_one_step_each_and_leave_one_current_key(session: Session) -> None:
    add_caller(session)
    for _index in range(3):
        rotate_signing_keys(session, VAULT)
    states = sorted(session.scalars(sa.select(SigningKey.state)))
    assert states == [KeyState.CURRENT, KeyState.NEXT, *[KeyState.RETIRED] * 3]


def test_the_command_rotates(
    database: Database,
    database_url: str,
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
    capfd: pytest.CaptureFixture[str],
) -> None:
    set_environment(monkeypatch, database_url, tmp_path)
    run_app(monkeypatch, "bootstrap")
    before = KeyRing(database, VAULT).current()[0]
    run_app(monkeypatch, "rotate-signing-key")
    assert KeyRing(database, VAULT).current()[0] != before
    run_app(monkeypatch, "rotate-signing-key", "--leaked")
    with database.run_tx("test") as session:
        states = sorted(session.scalars(sa.select(SigningKey.state)))
    assert states == [KeyState.CURRENT, KeyState.NEXT, KeyState.RETIRED, KeyState.REVOKED]
    assert "next signing key" in capfd.readouterr().out


@pytest.mark.parametrize("key", [bytes(32), b"a" * 32, b"changeme" * 4])
def test_no_process_starts_with_a_key_that_nobody_drew(tmp_path: Path, key: bytes) -> None:
    with pytest.raises(ValueError, match="no random key"):
        settings_for("postgresql+psycopg://x", tmp_path, master_key=base64.b64encode(key).decode())
    drawn = base64.b64encode(secrets.token_bytes(32)).decode()
    assert settings_for("postgresql+psycopg://x", tmp_path, master_key=drawn)
