"""Client certificates: how they are issued and taken back, and whose word about them a gateway believes."""

from collections.abc import Callable
from dataclasses import dataclass
from datetime import UTC, datetime
from pathlib import Path
from urllib.parse import quote
from uuid import UUID

import pytest
from cryptography.hazmat.primitives.asymmetric import ec, rsa
from cryptography.hazmat.primitives.hashes import SHA256
from cryptography.hazmat.primitives.serialization import Encoding
from cryptography.x509 import CertificateSigningRequestBuilder, Name
from fastapi import FastAPI
from httpx2 import Response
from pydantic import SecretStr
from sqlalchemy.orm import Session
from starlette.testclient import TestClient

from app.core.authority import Authority, pem_of, private_pem
from app.core.db import Database
from app.core.settings import Settings
from app.http.peers import Peers
from app.identity.models import Client
from app.identity.roles import Role
from app.main import install_state
from tests.builders import principal_of
from tests.http.accounts import Applicant, add_caller, client_headers, enrol, token_form
from tests.proofs import Hand
from tests.tls import request_of

HERE, PROXY, SECRET = "http://127.0.0.1:8000", "10.1.2.3", "s" * 40
Gateway = Callable[..., TestClient]


@pytest.fixture
def gateway(shared_app: FastAPI, settings: Settings, rolled_back: Database, tmp_path: Path) -> Gateway:
    """Make a gateway with an authority, as called from one address through a proxy's middleware."""
    authority = Authority.new("test", at=datetime.now(UTC))
    certificate, key = tmp_path / "ca.pem", tmp_path / "ca.key"
    certificate.write_bytes(pem_of(authority.certificate))
    key.write_bytes(private_pem(authority.key))
    told = settings.model_copy(
        update={
            "proof_of_possession": True,
            "tls_ca": certificate,
            "tls_ca_key": key,
            "trusted_proxies": (PROXY,),
            "proxy_secret": SecretStr(SECRET),
        }
    )

    def made(peer: str = PROXY) -> TestClient:
        install_state(shared_app, told, rolled_back)
        app = Peers(shared_app, proxies=told.trusted_proxies, secret=SECRET)
        return TestClient(app, base_url=HERE, raise_server_exceptions=False, client=(peer, 40000))

    return made


@dataclass
class Holder:
    """A training client with a certificate that was issued to it."""

    applicant: Applicant
    client_id: str
    hand: Hand
    token: str
    certificate: str = ""
    certificate_id: str = ""

    def ask_for_one(self, api: TestClient, signing_request: str) -> Response:
        headers = self.hand.headers("POST", f"{HERE}/v1/certificates", self.token)
        return api.post("/v1/certificates", json={"signing_request": signing_request}, headers=headers)

    def vouched(self) -> dict[str, str]:
        return {"X-Client-Cert": quote(self.certificate), "X-DPFL-Proxy-Secret": SECRET}

    def exchange(self, api: TestClient, headers: dict[str, str]) -> Response:
        return api.post(
            "/v1/tokens", data=token_form(self.applicant.assertion(self.client_id)), headers=headers
        )


@pytest.fixture
def holder(gateway: Gateway, session: Session) -> Holder:
    api = gateway()
    applicant, client_id = enrol(api, add_caller(session))
    hand = Hand()
    form = token_form(applicant.assertion(client_id))
    proof = {"DPoP": hand.proof("POST", f"{HERE}/v1/tokens")}
    token = api.post("/v1/tokens", data=form, headers=proof).json()["access_token"]
    made = Holder(applicant, client_id, hand, token)
    answer = made.ask_for_one(api, request_of(ec.generate_private_key(ec.SECP256R1())))
    assert answer.status_code == 201, answer.text
    made.certificate, made.certificate_id = answer.json()["certificate"], answer.json()["id"]
    return made


def refusal(answer: Response) -> tuple[int, str]:
    return answer.status_code, answer.json()["code"]


def test_a_trusted_proxys_word_binds_and_proves(gateway: Gateway, holder: Holder) -> None:
    api = gateway()
    token = holder.exchange(api, holder.vouched()).json()["access_token"]
    bearer = {"Authorization": f"Bearer {token}"}
    assert api.get("/v1/assignments", headers=bearer | holder.vouched()).status_code == 200
    assert refusal(api.get("/v1/assignments", headers=bearer)) == (401, "proof_refused")


@pytest.mark.parametrize(
    ("peer", "changes"),
    [
        ("10.1.2.4", {}),
        (PROXY, {"X-DPFL-Proxy-Secret": "t" * 40}),
        (PROXY, {"X-DPFL-Proxy-Secret": ""}),
        (PROXY, {"X-Client-Cert": "none"}),
        ("not-an-address", {}),
    ],
)
def test_anybody_elses_word_is_taken_away(
    gateway: Gateway, holder: Holder, peer: str, changes: dict[str, str]
) -> None:
    answer = holder.exchange(gateway(peer), holder.vouched() | changes)
    assert refusal(answer) == (401, "proof_required")


def test_a_revoked_certificate_is_refused_at_once(gateway: Gateway, holder: Holder, session: Session) -> None:
    api = gateway()
    token = holder.exchange(api, holder.vouched()).json()["access_token"]
    path = f"/v1/clients/{holder.client_id}/certificates/{holder.certificate_id}/revoke"
    stranger = add_caller(session, Role.COORDINATOR)
    assert refusal(api.post(path, headers=stranger.headers)) == (404, "not_found")
    assert api.post(path, headers=add_caller(session).headers).status_code == 200
    bearer = {"Authorization": f"Bearer {token}"}
    assert refusal(api.get("/v1/assignments", headers=bearer | holder.vouched())) == (401, "proof_refused")
    assert refusal(holder.exchange(api, holder.vouched())) == (401, "proof_refused")
    listed = api.get(
        f"/v1/clients/{holder.client_id}/certificates", headers=add_caller(session).headers
    ).json()["items"]
    assert [one["revoked_at"] is not None for one in listed] == [True]


def test_what_cannot_be_signed_is_refused(gateway: Gateway, holder: Holder) -> None:
    api = gateway()
    weak = rsa.generate_private_key(65537, 2048)
    unsuitable = CertificateSigningRequestBuilder().subject_name(Name([])).sign(weak, SHA256())
    good = request_of(ec.generate_private_key(ec.SECP256R1()))
    body = good.splitlines()
    other = "A" if body[3][-8] != "A" else "B"
    flipped = "\n".join([*body[:3], body[3][:-8] + other + body[3][-7:], *body[4:]])
    rsa_request = unsuitable.public_bytes(Encoding.PEM).decode()
    odd = (rsa_request, flipped, "é", good[:100], good.replace("REQUEST", "X"))
    for text in odd:
        assert refusal(holder.ask_for_one(api, text)) == (422, "signing_request_invalid")
    assert refusal(holder.ask_for_one(api, "x" * 9000)) == (422, "invalid")
    for _more in range(4):
        assert holder.ask_for_one(api, request_of(ec.generate_private_key(ec.SECP256R1()))).status_code == 201
    assert refusal(holder.ask_for_one(api, good)) == (409, "too_many_certificates")


def test_a_server_without_an_authority_says_so(api: TestClient, session: Session) -> None:
    _applicant, client_id = enrol(api, add_caller(session))
    client = session.get_one(Client, UUID(client_id))
    headers = client_headers(api.app, principal_of(client))  # type: ignore[arg-type]  # a FastAPI application
    body = {"signing_request": request_of(ec.generate_private_key(ec.SECP256R1()))}
    assert refusal(api.post("/v1/certificates", json=body, headers=headers)) == (409, "no_authority")
