"""Members sign in through an issuer: a real provider over HTTP, told to lie in one respect at a time."""

import time
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from datetime import timedelta
from http.server import BaseHTTPRequestHandler
from pathlib import Path
from typing import Any
from urllib.parse import parse_qs, urlencode, urlsplit

import httpx2
import pytest
import sqlalchemy as sa
from fastapi import FastAPI
from pydantic import ValidationError
from sqlalchemy.orm import Session
from starlette.testclient import TestClient

from app.core import clock
from app.core.settings import Environment, OidcIssuer, Settings
from app.http import openapi
from app.identity.models import MemberKind, MemberSession, OidcIdentity, OidcLogin
from app.identity.oidc import challenge_of, providers_of
from app.identity.roles import Role
from app.main import build_app
from tests.database import settings_for
from tests.http.accounts import add_caller
from tests.http.issuer import CLIENT_ID, CLIENT_SECRET, Issuer, make_key
from tests.http.members import Person, add_person, bearer, refusal

REDIRECT = "http://127.0.0.1:8000/docs/oauth2-redirect.html"
VERIFIER = "dBjftJeZ4CVP-mB92K27uhbUJU1p1r_wW1gFWFOEjXk"


def configured(url: str, **changes: Any) -> OidcIssuer:
    values = {
        "name": "hospital",
        "issuer": url,
        "client_id": CLIENT_ID,
        "client_secret": CLIENT_SECRET,
        "email_domains": ("riverside.example",),
    }
    return OidcIssuer.model_validate(values | changes)


@dataclass
class Browser:
    """Goes where it is sent, between the gateway and the provider."""

    api: TestClient
    issuer: Issuer

    def configure(self, **changes: Any) -> None:
        app = self.api.app
        assert isinstance(app, FastAPI)
        issuer = configured(self.issuer.url, **changes)
        app.state.settings = app.state.settings.model_copy(update={"oidc": (issuer,)})
        app.state.providers = providers_of(app.state.settings)

    def begin(self, issuer_name: str = "hospital", **changes: str) -> httpx2.Response:
        asked = {
            "response_type": "code",
            "client_id": "dpfl",
            "redirect_uri": REDIRECT,
            "state": "the caller's own",
            "code_challenge": challenge_of(VERIFIER),
            "code_challenge_method": "S256",
        }
        path = f"/v1/oidc/{issuer_name}/authorize?{urlencode(asked | changes)}"
        return self.api.get(path, follow_redirects=False)

    def sign_in_there(self) -> str:
        """Begin, and sign in at the issuer: the path by which the browser comes back."""
        begun = self.begin()
        assert begun.status_code == 302, begun.text
        there = httpx2.get(begun.headers["location"], follow_redirects=False, trust_env=False)
        back = there.headers["location"]
        assert back.startswith("http://127.0.0.1:8000/v1/oidc/callback?")
        return str(back.removeprefix("http://127.0.0.1:8000"))

    def come_back(self, path: str | None = None) -> httpx2.Response:
        return self.api.get(path or self.sign_in_there(), follow_redirects=False)

    def code(self) -> str:
        answer = self.come_back()
        assert answer.status_code == 302, answer.text
        place = urlsplit(answer.headers["location"])
        assert f"{place.scheme}://{place.netloc}{place.path}" == REDIRECT
        query = parse_qs(place.query)
        assert query["state"] == ["the caller's own"]
        return query["code"][0]

    def exchange(self, code: str, **changes: str) -> httpx2.Response:
        form = {
            "grant_type": "authorization_code",
            "code": code,
            "redirect_uri": REDIRECT,
            "client_id": "dpfl",
            "code_verifier": VERIFIER,
        }
        return self.api.post("/v1/oidc/token", data=form | changes)


@pytest.fixture
def browser(api: TestClient) -> Iterator[Browser]:
    with Issuer() as issuer:
        browser = Browser(api, issuer)
        browser.configure()
        yield browser


@pytest.fixture
def ada(session: Session, browser: Browser) -> Person:
    """A member whom the issuer knows by the same address."""
    person = add_person(session)
    browser.issuer.person["email"] = person.email.upper()
    return person


@pytest.mark.parametrize("algorithm", ["RS256", "PS256", "ES256", "EdDSA"])
def test_a_member_signs_in_through_an_issuer(api: TestClient, session: Session, algorithm: str) -> None:
    with Issuer(algorithm=algorithm) as issuer:
        browser = Browser(api, issuer)
        browser.configure()
        person = add_person(session)
        issuer.person["email"] = person.email
        tokens = browser.exchange(browser.code()).json()
        account = api.get("/v1/account", headers=bearer(tokens["access_token"])).json()
        assert account["id"] == str(person.member.id)
        assert (
            api.post("/v1/sessions/refresh", json={"refresh_token": tokens["refresh_token"]}).status_code
            == 200
        )
        assert session.scalars(sa.select(MemberSession.method)).one() == "hospital"


def test_from_the_second_time_on_the_subject_counts_and_not_the_address(
    session: Session, browser: Browser, ada: Person
) -> None:
    assert browser.exchange(browser.code()).status_code == 200
    other = add_person(session)
    browser.issuer.person["email"] = other.email
    browser.code()
    assert session.scalars(sa.select(OidcIdentity.member_id)).all() == [ada.member.id]
    browser.issuer.person = {"sub": "ada-1"}
    assert browser.exchange(browser.code()).status_code == 200


def test_an_address_that_was_given_to_somebody_else_opens_no_account(browser: Browser, ada: Person) -> None:
    assert browser.exchange(browser.code()).status_code == 200
    browser.issuer.person["sub"] = "bob-2"
    assert refusal(browser.come_back()) == (403, "no_such_member")


@pytest.mark.parametrize(
    "person",
    [
        {"email": "nobody@riverside.example"},
        {"email_verified": False},
        {"email_verified": "true"},
        {"email": None},
        {"email": 7},
    ],
    ids=str,
)
def test_who_is_no_member_stays_none(browser: Browser, ada: Person, person: dict[str, Any]) -> None:
    browser.issuer.person |= person
    assert refusal(browser.come_back()) == (403, "no_such_member")


@pytest.mark.parametrize(
    "domains",
    [
        (),
        ("riverside",),
        ("example",),
        ("side.example",),
        ("evil-riverside.example",),
        ("riverside.example.org",),
    ],
    ids=str,
)
def test_a_domain_is_compared_as_a_whole(browser: Browser, ada: Person, domains: tuple[str, ...]) -> None:
    browser.configure(email_domains=domains)
    assert refusal(browser.come_back()) == (403, "no_such_member")


def test_services_and_suspended_members_do_not_sign_in(
    session: Session, browser: Browser, ada: Person
) -> None:
    ada.member.suspended_at = clock.now()
    session.flush()
    assert refusal(browser.come_back()) == (403, "suspended")
    ada.member.suspended_at, ada.member.password_hash = None, None
    ada.member.kind = MemberKind.SERVICE
    session.flush()
    assert refusal(browser.come_back()) == (403, "no_such_member")


LIES: dict[str, Callable[[dict[str, Any]], dict[str, Any]]] = {
    "another issuer": lambda claims: claims | {"iss": "http://127.0.0.1:1"},
    "another audience": lambda claims: claims | {"aud": "somebody"},
    "several audiences without a party": lambda claims: claims | {"aud": [CLIENT_ID, "somebody"]},
    "another party": lambda claims: claims | {"aud": [CLIENT_ID, "x"], "azp": "x"},
    "another nonce": lambda claims: claims | {"nonce": "x"},
    "no nonce": lambda claims: {key: value for key, value in claims.items() if key != "nonce"},
    "a number as nonce": lambda claims: claims | {"nonce": 7},
    "expired": lambda claims: claims | {"exp": int(time.time()) - 3600},
    "issued long ago": lambda claims: claims | {"iat": int(time.time()) - 3600},
    "issued in the future": lambda claims: claims | {"iat": int(time.time()) + 3600},
    "no subject": lambda claims: {key: value for key, value in claims.items() if key != "sub"},
    "an empty subject": lambda claims: claims | {"sub": ""},
    "a subject over two lines": lambda claims: claims | {"sub": "a\nb"},
    "a long subject": lambda claims: claims | {"sub": "x" * 256},
    "a huge token": lambda claims: claims | {"padding": "x" * 20_000},
}


@pytest.mark.parametrize("lie", LIES)
def test_a_token_that_says_anything_else_is_refused(browser: Browser, ada: Person, lie: str) -> None:
    browser.issuer.claims = LIES[lie]
    assert refusal(browser.come_back()) == (401, "issuer_refused")


def test_a_token_of_another_key_or_algorithm_is_refused(browser: Browser, ada: Person) -> None:
    issuer = browser.issuer
    issuer.forged_with = make_key("RS256")
    assert refusal(browser.come_back()) == (401, "issuer_refused")
    issuer.header = {"kid": "unknown"}
    assert refusal(browser.come_back()) == (401, "issuer_refused")
    issuer.header = {"alg": "HS256"}
    assert refusal(browser.come_back()) == (401, "issuer_refused")


def test_a_new_key_of_the_issuer_is_found(
    browser: Browser, ada: Person, monkeypatch: pytest.MonkeyPatch
) -> None:
    assert browser.exchange(browser.code()).status_code == 200
    browser.issuer.key = make_key("RS256")
    monkeypatch.setattr("app.identity.oidc._KEYS_PAUSE_S", 0.0)
    assert browser.exchange(browser.code()).status_code == 200


def test_an_answer_of_the_issuer_is_looked_at_once(browser: Browser, ada: Person) -> None:
    path = browser.sign_in_there()
    assert browser.come_back(path).status_code == 302
    assert refusal(browser.come_back(path)) == (401, "login_unknown")


def test_a_state_that_was_not_begun_here_or_long_ago_is_refused(browser: Browser, ada: Person) -> None:
    assert refusal(browser.come_back("/v1/oidc/callback?state=x&code=y")) == (401, "login_unknown")
    path = browser.sign_in_there()
    with clock.shifted(timedelta(minutes=11)):
        assert refusal(browser.come_back(path)) == (401, "login_unknown")


@pytest.mark.parametrize(
    "change", [("iss=", "iss=http%3A%2F%2Fevil.example&x="), ("iss=", "x="), ("code=", "error=")]
)
def test_another_issuers_answer_or_a_refusal_is_none(
    browser: Browser, ada: Person, change: tuple[str, str]
) -> None:
    path = browser.sign_in_there().replace(*change)
    assert refusal(browser.come_back(path)) == (401, "issuer_refused")


def test_our_code_works_once_soon_and_for_who_began_only(browser: Browser, ada: Person) -> None:
    code = browser.code()
    assert browser.exchange(code).status_code == 200
    assert refusal(browser.exchange(code)) == (401, "login_unknown")
    stolen = browser.code()
    assert refusal(browser.exchange(stolen, code_verifier="x" * 43)) == (401, "login_unknown")
    assert refusal(browser.exchange(stolen)) == (401, "login_unknown")  # it was used up by the thief
    elsewhere = browser.code()
    assert refusal(browser.exchange(elsewhere, redirect_uri="http://x")) == (401, "login_unknown")
    late = browser.code()
    with clock.shifted(timedelta(seconds=61)):
        assert refusal(browser.exchange(late)) == (401, "login_unknown")


@pytest.mark.parametrize(
    "place",
    [
        f"{REDIRECT}?x=1",
        f"{REDIRECT}/",
        "https://evil.example/",
        "http://127.0.0.1:8000/docs",
        REDIRECT.upper(),
        "",
    ],
)
def test_a_browser_is_sent_to_addresses_of_the_settings_only(browser: Browser, place: str) -> None:
    assert refusal(browser.begin(redirect_uri=place)) == (422, "redirect_not_allowed")


@pytest.mark.parametrize(
    "change", [{"code_challenge_method": "plain"}, {"code_challenge": "x"}, {"response_type": "token"}]
)
def test_without_pkce_nothing_begins(browser: Browser, change: dict[str, str]) -> None:
    assert refusal(browser.begin(**change)) == (422, "invalid")


def test_an_unknown_issuer_is_absent(browser: Browser) -> None:
    begun = browser.begin(issuer_name="clinic")
    assert refusal(begun) == (404, "not_found")


@pytest.mark.parametrize(
    ("changes", "amr", "scopes"),
    [
        ({}, None, True),
        ({}, ["pwd"], True),
        ({}, "mfa", True),
        ({}, ["pwd", "otp"], False),
        ({"enforces_second_factor": True}, None, False),
    ],
    ids=str,
)
def test_an_administrator_needs_a_second_factor_of_the_issuer_in_production(
    session: Session, browser: Browser, changes: dict[str, Any], amr: object, scopes: bool
) -> None:
    person = add_person(session, Role.ADMIN)
    browser.issuer.person |= {"email": person.email} | ({} if amr is None else {"amr": amr})
    browser.configure(**changes)
    state = browser.api.app.state  # type: ignore[attr-defined]
    state.settings = state.settings.model_copy(update={"environment": Environment.PRODUCTION})
    tokens = browser.exchange(browser.code()).json()
    assert (tokens["scopes"] is not None) is scopes


def redirected(handler: BaseHTTPRequestHandler) -> None:
    handler.send_response(302)
    handler.send_header("Location", "/.well-known/openid-configuration")
    handler.end_headers()


def enormous(handler: BaseHTTPRequestHandler) -> None:
    handler.send_response(200)
    handler.end_headers()
    handler.wfile.write(b'{"x": "' + b"y" * 300_000 + b'"}')


def nonsense(handler: BaseHTTPRequestHandler) -> None:
    handler.send_response(200)
    handler.end_headers()
    handler.wfile.write(b"[" * 5_000)


@pytest.mark.parametrize("answer", [redirected, enormous, nonsense], ids=lambda answer: answer.__name__)
@pytest.mark.parametrize("path", ["/.well-known/openid-configuration", "/token", "/jwks"])
def test_an_answer_of_another_form_is_not_taken(
    browser: Browser, ada: Person, path: str, answer: Callable[[BaseHTTPRequestHandler], None]
) -> None:
    browser.issuer.answers[path] = answer
    if path.startswith("/.well"):
        assert refusal(browser.begin()) == (503, "outbound_refused")
    else:
        assert refusal(browser.come_back()) == (503, "outbound_refused")


@pytest.mark.parametrize(
    "description",
    [
        {"issuer": "http://127.0.0.1:1"},
        {"token_endpoint": None},
        {"jwks_uri": "file:///etc/passwd"},
        {"authorization_endpoint": "javascript:alert(1)"},
    ],
    ids=str,
)
def test_a_description_of_something_else_is_not_taken(browser: Browser, description: dict[str, Any]) -> None:
    browser.issuer.description = description
    assert refusal(browser.begin()) == (503, "outbound_refused")


def test_no_secret_of_a_sign_in_lies_open_in_its_row(session: Session, browser: Browser, ada: Person) -> None:
    begun = browser.begin()
    query = parse_qs(urlsplit(begun.headers["location"]).query)
    row = session.scalars(sa.select(OidcLogin)).one()
    kept = row.sealed + row.state_hmac
    assert query["state"][0].encode() not in kept
    assert query["nonce"][0].encode() not in kept


def test_swagger_offers_what_is_configured(tmp_path: Path, api: TestClient, session: Session) -> None:
    issuer = configured("http://127.0.0.1:1")
    app = build_app(settings_for("postgresql+psycopg://x", tmp_path, oidc=(issuer,)))
    document = openapi.describe(app)
    scheme = document["components"]["securitySchemes"]["oidc-hospital"]
    flow = scheme["flows"]["authorizationCode"]
    assert (flow["authorizationUrl"], flow["tokenUrl"]) == ("/v1/oidc/hospital/authorize", "/v1/oidc/token")
    assert {"oidc-hospital": []} in document["paths"]["/v1/runs"]["get"]["security"]
    plain = api.get("/openapi.json").json()["components"]["securitySchemes"]
    assert list(plain) == ["HTTPBearer"]
    page = api.get("/docs/oauth2-redirect.html")
    assert "script-src 'self'" in page.headers["content-security-policy"]
    assert page.headers["cross-origin-opener-policy"] == "unsafe-none"
    assert "swaggerUIRedirectOauth2" in api.get("/docs/oauth2-redirect.js").text
    add_caller(session)


def test_outside_development_an_issuer_is_https(tmp_path: Path) -> None:
    values = settings_for("postgresql+psycopg://x", tmp_path).model_dump()
    values |= {"oidc": (configured("http://127.0.0.1:1"),), "environment": Environment.PRODUCTION}
    with pytest.raises(ValidationError, match="https"):
        Settings(**values)
