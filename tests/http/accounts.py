"""Callers for HTTP tests: members with API keys, training clients with their keys and tokens."""

import base64
from dataclasses import dataclass, field
from datetime import timedelta
from uuid import UUID, uuid4

import jwt
from cryptography.hazmat.primitives.asymmetric.ed25519 import Ed25519PrivateKey
from fastapi import FastAPI
from sqlalchemy.orm import Session
from starlette.testclient import TestClient

from app.core import clock
from app.core.crypto import Vault
from app.core.ids import new_id
from app.core.tokens import sign_token
from app.identity import api_keys, service
from app.identity.enrolments import PROOF_PREFIX
from app.identity.keys import ensure_signing_keys
from app.identity.models import Member, Organisation
from app.identity.roles import Principal, Role
from tests.database import TEST_MASTER_KEY

VAULT = Vault(base64.b64decode(TEST_MASTER_KEY))


@dataclass
class Caller:
    """A member with a working API key."""

    principal: Principal
    headers: dict[str, str]

    @property
    def organisation_id(self) -> UUID:
        return self.principal.organisation_id


def add_organisation(session: Session) -> Organisation:
    return service.add_organisation(session, name=f"organisation {uuid4()}", region="eu-west-1")


def add_caller(session: Session, role: Role = Role.ADMIN, organisation_id: UUID | None = None) -> Caller:
    """A member of `role`, of a new organisation unless one is named, with a key."""
    ensure_signing_keys(session, VAULT)
    owner = organisation_id or add_organisation(session).id
    member = Member(organisation_id=owner, name="somebody", role=role)
    session.add(member)
    session.flush()
    made = api_keys.add_api_key(session, VAULT, member_id=member.id, label="test", expires_in_s=None)
    return Caller(
        principal=Principal(id=member.id, organisation_id=owner, role=role),
        headers={"Authorization": f"Bearer {made.text}"},
    )


def client_headers(app: FastAPI, principal: Principal) -> dict[str, str]:
    """An access token for a training client, signed by the application's own key."""
    with app.state.database.run_tx("test") as session:
        ensure_signing_keys(session, VAULT)
    kid, key = app.state.keys.current()
    url = app.state.settings.public_url
    token = sign_token(
        key,
        kid=kid,
        issuer=url,
        audience=url,
        subject=str(principal.id),
        lifetime_s=600,
        claims={"org": str(principal.organisation_id), "role": principal.role.value},
    )
    return {"Authorization": f"Bearer {token}"}


@dataclass
class Applicant:
    """A machine that wants to become a training client."""

    key: Ed25519PrivateKey = field(default_factory=Ed25519PrivateKey.generate)
    population: str = field(default_factory=lambda: f"data set {new_id()}")

    @property
    def raw(self) -> bytes:
        return self.key.public_key().public_bytes_raw()

    def body(self, token: str, **changes: object) -> dict[str, object]:
        """A registration that holds, with changes."""
        proof = self.key.sign(PROOF_PREFIX + token.encode() + b"\0" + self.raw)
        return {
            "enrolment_token": token,
            "name": "mailbox-1",
            "public_key": base64.urlsafe_b64encode(self.raw).rstrip(b"=").decode(),
            "proof": base64.urlsafe_b64encode(proof).rstrip(b"=").decode(),
            "population": self.population,
            "capability": {"memory_bytes": 8 * 1024**3, "cpu_count": 4},
        } | changes

    def assertion(self, client_id: str, **changes: object) -> str:
        """A client assertion that holds, with changes."""
        issued = clock.now()
        claims: dict[str, object] = {
            "iss": client_id,
            "sub": client_id,
            "aud": "http://127.0.0.1:8000/v1/tokens",
            "iat": int(issued.timestamp()),
            "exp": int((issued + timedelta(minutes=2)).timestamp()),
            "jti": str(uuid4()),
        }
        return jwt.encode(claims | changes, self.key, algorithm="EdDSA")


def token_form(assertion: str) -> dict[str, str]:
    return {
        "grant_type": "client_credentials",
        "client_assertion_type": "urn:ietf:params:oauth:client-assertion-type:jwt-bearer",
        "client_assertion": assertion,
    }


def invite(api: TestClient, admin: Caller, **changes: object) -> str:
    """An enrolment token for the admin's own organisation."""
    body: dict[str, object] = {"organisation_id": str(admin.organisation_id), "region": "eu-west-1"}
    answer = api.post("/v1/enrolments", json=body | changes, headers=admin.headers)
    assert answer.status_code == 201, answer.text
    return str(answer.json()["token"])


def enrol(api: TestClient, admin: Caller, applicant: Applicant | None = None) -> tuple[Applicant, str]:
    """A training client and its id, made over HTTP."""
    applicant = applicant or Applicant()
    answer = api.post("/v1/clients", json=applicant.body(invite(api, admin)))
    assert answer.status_code == 201, answer.text
    return applicant, str(answer.json()["client_id"])
