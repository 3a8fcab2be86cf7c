"""Persons for HTTP tests: members with e-mail and password, their second factors and their sign-ins."""

import base64
import urllib.parse
from dataclasses import dataclass, field
from typing import Any
from uuid import UUID, uuid4

import httpx2
from cryptography.hazmat.primitives.hashes import SHA1
from cryptography.hazmat.primitives.twofactor.totp import TOTP
from sqlalchemy.orm import Session
from starlette.testclient import TestClient

from app.core import clock
from app.identity.emails import give_email
from app.identity.keys import ensure_signing_keys
from app.identity.models import Member
from app.identity.passwords import hash_password
from app.identity.roles import Principal, Role
from tests.http.accounts import VAULT, add_organisation

PASSWORD = "twelve strong horses"
HASHED = hash_password(PASSWORD)


def bearer(token: str) -> dict[str, str]:
    return {"Authorization": f"Bearer {token}"}


@dataclass
class Person:
    """A member who signs in."""

    member: Member
    email: str
    password: str = PASSWORD
    secret: bytes | None = None
    """Of the second factor, once there is one."""
    changes: dict[str, Any] = field(default_factory=dict)

    @property
    def principal(self) -> Principal:
        return Principal(
            id=self.member.id, organisation_id=self.member.organisation_id, role=self.member.role
        )

    def body(self, **changes: Any) -> dict[str, Any]:
        return {"email": self.email, "password": self.password} | changes

    def sign_in(self, api: TestClient, **changes: Any) -> dict[str, Any]:
        """A sign-in that works: the fresh tokens."""
        answer = api.post("/v1/sessions", json=self.body(**changes))
        assert answer.status_code == 201, answer.text
        tokens: dict[str, Any] = answer.json()
        return tokens

    def code(self, *, steps: int = 0) -> str:
        """The code that the person's device shows now, or some steps from now."""
        assert self.secret is not None
        return code_of(self.secret, steps=steps)

    def get_second_factor(self, api: TestClient, headers: dict[str, str]) -> list[str]:
        """Get one as a person does, and return the recovery codes."""
        offered = api.post("/v1/account/second-factor", json={"password": self.password}, headers=headers)
        assert offered.status_code == 200, offered.text
        self.secret = secret_in(offered.json()["otpauth_uri"])
        answer = api.post("/v1/account/second-factor/confirm", json={"code": self.code()}, headers=headers)
        assert answer.status_code == 200, answer.text
        codes: list[str] = answer.json()["recovery_codes"]
        return codes


def code_of(secret: bytes, *, steps: int = 0) -> str:
    totp = TOTP(secret, 6, SHA1(), 30, enforce_key_length=False)  # noqa: S303  RFC 6238
    return totp.generate(clock.now().timestamp() + 30 * steps).decode()


def secret_in(otpauth_uri: str) -> bytes:
    query = urllib.parse.parse_qs(urllib.parse.urlsplit(otpauth_uri).query)
    return base64.b32decode(query["secret"][0])


def add_person(session: Session, role: Role = Role.VIEWER, organisation_id: UUID | None = None) -> Person:
    """A member with e-mail and password, of a new organisation unless one is named."""
    ensure_signing_keys(session, VAULT)
    owner = organisation_id or add_organisation(session).id
    email = f"{uuid4().hex[:12]}@riverside.example"
    member = Member(organisation_id=owner, name="Ada", role=role, password_hash=HASHED)
    give_email(VAULT, member, email)
    session.add(member)
    session.flush()
    return Person(member=member, email=email)


def refusal(answer: httpx2.Response) -> tuple[int, str]:
    return answer.status_code, answer.json()["code"]
