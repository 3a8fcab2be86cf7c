"""Canaries: secrets of every kind go through the flows that use them, and then every way out is searched."""

from __future__ import annotations

import base64
import json
import logging
from collections.abc import Iterator, Sequence
from dataclasses import dataclass, field
from typing import Any

import pytest
import sqlalchemy as sa
import structlog
from fastapi import FastAPI
from pydantic import SecretStr
from sqlalchemy.engine import make_url
from sqlalchemy.orm import Session
from starlette.testclient import TestClient
from structlog.testing import capture_logs

from app.audit.models import AuditPersonal
from app.core.settings import Settings
from app.identity.roles import Role
from tests.audit_log import entries
from tests.database import TEST_MASTER_KEY
from tests.http.accounts import Applicant, add_caller, invite, token_form
from tests.http.issuer import CLIENT_SECRET, Issuer
from tests.http.members import add_person, bearer
from tests.http.test_identity_oidc import VERIFIER, Browser
from tests.proofs import Hand

PASSWORD, NEW_PASSWORD = "canary-8f1d horses by night", "canary-90c2 lighthouses by day"
PROXY_SECRET, ROOT_KEY = (
    "canary-71aa-of-a-proxy-and-more-than-32",
    "Y2FuYXJ5LWNhbmFyeS1jYW5hcnktY2FuYXJ5LTAwMDE=",
)
JSON_BODY = {"Content-Type": "application/json"}
TOKENS = "http://127.0.0.1:8000/v1/tokens"


MAY = {("e-mail", "what its commitments open to")}
"""What is no secret there: whoever may read an entry in full sees whom it is about."""


@dataclass
class Watch:
    """The gateway, the secrets that went through it, and all that it said where anybody might read it."""

    api: TestClient
    settings: Settings
    secrets: dict[str, str] = field(default_factory=dict)
    said: dict[str, str] = field(default_factory=dict)
    entries: Sequence[Any] = ()
    """Of our own log."""

    @property
    def app(self) -> FastAPI:
        assert isinstance(self.api.app, FastAPI)
        return self.api.app

    def keep(self, name: str, secret: str) -> str:
        assert len(secret) >= 12, "too short to be told from anything else"
        self.secrets[name] = secret
        return secret

    def right(self, method: str, path: str, **options: Any) -> Any:
        """A call that succeeds: its answer may hold the secret that it is there to show."""
        answer = self.api.request(method, path, **options)
        assert answer.status_code < 400, f"{path}: {answer.text}"
        return answer.json() if answer.content else None

    def wrong(self, method: str, path: str, **options: Any) -> None:
        """A call that is refused: the whole of what it says is searched."""
        answer = self.api.request(method, path, **options)
        assert answer.status_code >= 400, f"{path}: {answer.status_code}"
        self.said[f"{len(self.said)} {method} {path.partition('?')[0]}"] = f"{answer.headers} {answer.text}"


@pytest.fixture
def watch(api: TestClient, settings: Settings, caplog: pytest.LogCaptureFixture) -> Iterator[Watch]:
    """Everything that is logged, by us and by libraries, at the lowest level."""
    assert isinstance(api.app, FastAPI)
    secret = settings.model_copy(
        update={
            "proxy_secret": SecretStr(PROXY_SECRET),
            "region_root_key": SecretStr(ROOT_KEY),
            "redis_url": SecretStr("redis://:the-password-of-the-broker-alone@127.0.0.1:6379/0"),
        }
    )
    api.app.state.settings = secret
    watch = Watch(api, secret)
    with (
        caplog.at_level(logging.DEBUG),
        capture_logs([structlog.processors.format_exc_info]) as watch.entries,
    ):
        yield watch


def sign_in_and_out(watch: Watch, session: Session) -> None:
    """Password, second factor, recovery codes, sessions, an API key, an invitation to set a password."""
    member = add_caller(session, Role.ADMIN)
    person = add_person(session, Role.ADMIN, member.organisation_id)
    watch.keep("e-mail", person.email)
    told = watch.right(
        "POST",
        f"/v1/members/{person.member.id}/password-tokens",
        json={"purpose": "reset"},
        headers=member.headers,
    )
    token = watch.keep("password token", told["token"])
    watch.wrong("POST", "/v1/passwords", json={"token": token, "password": "short"})
    watch.right("POST", "/v1/passwords", json={"token": token, "password": watch.keep("password", PASSWORD)})
    watch.wrong("POST", "/v1/passwords", json={"token": token, "password": PASSWORD})
    person.password = PASSWORD
    first = person.sign_in(watch.api)
    codes = person.get_second_factor(watch.api, bearer(first["access_token"]))
    for number, code in enumerate(codes[:2]):
        watch.keep(f"recovery code {number}", code)
    watch.keep("second factor", base64.b32encode(person.secret or b"").decode())
    watch.wrong("POST", "/v1/sessions", json=person.body())
    watch.wrong("POST", "/v1/sessions", json=person.body(code=0))
    watch.wrong("POST", "/v1/sessions", json=person.body(password=[PASSWORD]))
    watch.wrong("POST", "/v1/sessions", content=json.dumps(person.body())[:-1], headers=JSON_BODY)
    tokens = person.sign_in(watch.api, recovery_code=codes[0])
    watch.wrong("POST", "/v1/sessions", json=person.body(recovery_code=codes[0]))
    access = watch.keep("access token", tokens["access_token"])
    refresh = watch.keep("refresh token", tokens["refresh_token"])
    change = {"password": PASSWORD, "new_password": watch.keep("new password", NEW_PASSWORD)}
    watch.wrong("POST", "/v1/account/password", json=change | {"code": {}}, headers=bearer(access))
    made = watch.right("POST", "/v1/api-keys", json={"label": "export"}, headers=bearer(access))
    key = watch.keep("API key", made["api_key"])
    watch.wrong("POST", "/v1/runs", json={"manifest": key}, headers=bearer(key))
    watch.wrong("GET", f"/v1/runs?cursor={key}", headers=bearer(key))
    watch.wrong("GET", "/v1/runs", headers={"Authorization": f"Basic {key}"})
    watch.wrong("GET", "/v1/runs", headers=bearer(key[:-1]))
    watch.wrong("GET", "/v1/runs", headers=bearer(access[:-2]))
    watch.right("POST", "/v1/sessions/refresh", json={"refresh_token": refresh})
    watch.wrong(
        "POST", "/v1/sessions/refresh", json={"refresh_token": refresh}
    )  # used twice: the session ends


def enrol_and_prove(watch: Watch, session: Session) -> None:
    """An invitation, an enrolment, an assertion, a proof of possession, a bound token."""
    admin = add_caller(session)
    token = watch.keep("enrolment token", invite(watch.api, admin))
    applicant = Applicant()
    watch.wrong("POST", "/v1/clients", json=applicant.body(token, proof="A" * 86))
    watch.wrong("POST", "/v1/clients", json=applicant.body(token, name=7))
    watch.right("POST", "/v1/enrolments/check", json={"enrolment_token": token})
    made = watch.right("POST", "/v1/clients", json=applicant.body(token))
    watch.wrong("POST", "/v1/clients", json=Applicant().body(token))
    assertion = watch.keep("assertion", applicant.assertion(made["client_id"]))
    hand = Hand()
    proof = watch.keep("proof", hand.proof("POST", TOKENS))
    form = token_form(assertion)
    watch.wrong("POST", "/v1/tokens", data=form | {"client_id": "x"}, headers={"DPoP": proof})
    bound = watch.right("POST", "/v1/tokens", data=form, headers={"DPoP": proof})["access_token"]
    watch.wrong("POST", "/v1/tokens", data=form, headers={"DPoP": proof})
    watch.keep("bound token", bound)
    shown = {"Authorization": f"DPoP {bound}", "DPoP": proof}  # a proof of another request
    watch.wrong("GET", "/v1/assignments", headers=shown)
    watch.keep("client's key", applicant.key.private_bytes_raw().hex())
    watch.keep("client's other key", hand.key.private_bytes_raw().hex())


def sign_in_elsewhere(watch: Watch, session: Session) -> None:
    """An issuer's client secret, its code, ours, and the verifier."""
    with Issuer() as issuer:
        browser = Browser(watch.api, issuer)
        browser.configure()
        person = add_person(session)
        issuer.person["email"] = person.email
        watch.keep("secret at the issuer", CLIENT_SECRET)
        code = watch.keep("code", browser.code())
        wrong = {"grant_type": "authorization_code", "redirect_uri": "http://127.0.0.1:8000/", "code": code}
        watch.wrong("POST", "/v1/oidc/token", data=wrong | {"code_verifier": VERIFIER})
        assert browser.exchange(code).status_code in {200, 400, 401}


def configured(settings: Settings) -> dict[str, str]:
    """The secrets that an operator sets."""
    database, redis = (
        make_url(one.get_secret_value())
        for one in (settings.database_url, settings.redis_url or SecretStr(""))
    )
    return {
        "master key": TEST_MASTER_KEY,
        "proxy's secret": PROXY_SECRET,
        "root key": ROOT_KEY,
        "database's password": str(database.password),
        "broker's password": str(redis.password),
    }


def read_everything(watch: Watch, session: Session, caplog: pytest.LogCaptureFixture) -> dict[str, str]:
    """Every way out but the answers that show a secret once."""
    admin = add_caller(session)
    read = {
        path: watch.api.get(path, headers=admin.headers)
        for path in (
            "/metrics",
            "/openapi.json",
            "/v1/audit/entries?limit=200",
            "/v1/security-events?limit=200",
        )
    }
    assert [path for path, answer in read.items() if answer.status_code != 200] == []
    log = [json.dumps(one, default=repr) for one in watch.entries]
    assert any('"path"' in line or '"status"' in line for line in log), "the access log was captured"
    return (
        watch.said
        | {path: answer.text for path, answer in read.items()}
        | {
            "our log": "\n".join(log),
            # The test's own client logs the addresses that it asks for; whoever calls knows what they put in.
            "libraries' logs": "\n".join(
                one.getMessage() for one in caplog.records if "http://127.0.0.1:8000" not in one.getMessage()
            ),
            "what the log's export holds": json.dumps(entries(session)),
            "what its commitments open to": "\n".join(
                row.clear.decode() for row in session.scalars(sa.select(AuditPersonal))
            ),
            "settings": f"{watch.settings!r} {watch.settings}",
        }
    )


def test_no_secret_gets_into_logs_refusals_the_audit_log_metrics_or_the_description(
    watch: Watch, session: Session, caplog: pytest.LogCaptureFixture
) -> None:
    sign_in_and_out(watch, session)
    enrol_and_prove(watch, session)
    sign_in_elsewhere(watch, session)
    secrets = watch.secrets | configured(watch.settings)
    told = read_everything(watch, session, caplog)
    assert len(secrets) >= 20
    found = {
        f"{name} in {place}"
        for name, secret in secrets.items()
        for place, text in told.items()
        if secret in text and (name, place) not in MAY
    }
    assert found == set()
