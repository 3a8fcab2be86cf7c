"""Tokens bound to keys: every way in which a stolen token, or a copied proof, is worth nothing."""

import base64
import hashlib
import json
import random
import time
from collections.abc import Iterator
from dataclasses import dataclass
from typing import Any
from uuid import UUID

import pytest
from fastapi import FastAPI
from httpx2 import Response
from sqlalchemy.orm import Session
from starlette.testclient import TestClient

from app.core.db import Database
from app.core.dpop import read_proof, thumbprint
from app.core.settings import Settings
from app.core.tokens import Refusal, TokenRefused
from app.identity.possession import certificate_thumbprint
from app.identity.roles import Principal, Role
from app.main import install_state
from tests.http.accounts import Applicant, add_caller, client_headers, enrol, token_form
from tests.proofs import Hand, base64url, public_jwk

HERE = "http://127.0.0.1:8000"
TOKENS, ASSIGNMENTS = f"{HERE}/v1/tokens", f"{HERE}/v1/assignments"


@pytest.fixture
def strict(shared_app: FastAPI, settings: Settings, rolled_back: Database) -> Iterator[TestClient]:
    """The gateway as it is outside development."""
    install_state(shared_app, settings.model_copy(update={"proof_of_possession": True}), rolled_back)
    with_state = TestClient(shared_app, base_url=HERE, raise_server_exceptions=False)
    yield with_state
    with_state.close()


@dataclass
class Bound:
    """A training client with a token that is bound to a key."""

    api: TestClient
    applicant: Applicant
    client_id: str
    hand: Hand
    token: str

    def ask(self, **changes: Any) -> Response:
        told = self.hand.headers("GET", ASSIGNMENTS, self.token) | changes
        return self.api.get(
            "/v1/assignments", headers={name: value for name, value in told.items() if value is not None}
        )


@pytest.fixture
def bound(strict: TestClient, session: Session) -> Bound:
    applicant, client_id = enrol(strict, add_caller(session))
    hand = Hand()
    answer = strict.post(
        "/v1/tokens",
        data=token_form(applicant.assertion(client_id)),
        headers={"DPoP": hand.proof("POST", TOKENS)},
    )
    assert answer.status_code == 200, answer.text
    assert answer.json()["token_type"] == "DPoP"
    return Bound(strict, applicant, client_id, hand, answer.json()["access_token"])


def refusal(answer: Response) -> tuple[int, str]:
    return answer.status_code, answer.json()["code"]


def test_a_bound_token_is_taken_with_a_proof_of_its_key(bound: Bound) -> None:
    assert bound.ask().status_code == 200
    assert bound.ask().status_code == 200


def test_a_stolen_token_is_refused_without_its_key(bound: Bound) -> None:
    thief = Hand()
    assert refusal(bound.ask(DPoP=thief.proof("GET", ASSIGNMENTS, token=bound.token))) == (
        401,
        "proof_refused",
    )
    assert refusal(bound.ask(DPoP=None)) == (401, "proof_refused")
    assert refusal(bound.ask(Authorization=f"Bearer {bound.token}")) == (401, "proof_refused")
    bare = bound.ask(Authorization=f"Bearer {bound.token}", DPoP=None)
    assert refusal(bare) == (401, "proof_refused")
    assert 'DPoP realm="dpfl"' in bare.headers["WWW-Authenticate"]


def test_a_proof_is_good_for_one_request(bound: Bound) -> None:
    proof = bound.hand.proof("GET", ASSIGNMENTS, token=bound.token)
    assert bound.ask(DPoP=proof).status_code == 200
    assert refusal(bound.ask(DPoP=proof)) == (401, "proof_replayed")
    again = bound.hand.proof("POST", TOKENS)
    form = token_form(bound.applicant.assertion(bound.client_id))
    assert bound.api.post("/v1/tokens", data=form, headers={"DPoP": again}).status_code == 200
    form = token_form(bound.applicant.assertion(bound.client_id))
    assert refusal(bound.api.post("/v1/tokens", data=form, headers={"DPoP": again})) == (
        401,
        "proof_replayed",
    )


@pytest.mark.parametrize(
    "changes",
    [
        {"htm": "POST"},
        {"htu": f"{HERE}/v1/budgets"},
        {"htu": "https://127.0.0.1:8000/v1/assignments"},
        {"htu": "http://127.0.0.1:8001/v1/assignments"},
        {"htu": "http://evil@127.0.0.1:8000/v1/assignments"},
        {"htu": "http://[::1/v1/assignments"},
        {"htu": 7},
        {"htu": None},
        {"htm": None},
        {"jti": None},
        {"jti": "short"},
        {"jti": "x" * 101},
        {"jti": 12345678},
        {"iat": None},
        {"iat": int(time.time()) - 120},
        {"iat": int(time.time()) + 3600},
        {"iat": "now"},
        {"iat": True},
        {"iat": 10**18},
        {"iat": -5},
        {"ath": "x" * 43},
        {"ath": None},
    ],
)
def test_a_proof_of_something_else_is_refused(bound: Bound, changes: dict[str, Any]) -> None:
    proof = bound.hand.proof("GET", ASSIGNMENTS, token=bound.token, **changes)
    if changes == {"ath": None}:
        proof = bound.hand.proof("GET", ASSIGNMENTS)
    assert refusal(bound.ask(DPoP=proof)) == (401, "proof_refused")


@pytest.mark.parametrize(
    "headers",
    [
        {"typ": "JWT"},
        {"jwk": None},
        {"jwk": "key"},
        {"jwk": {"kty": "oct", "k": "c2VjcmV0"}},
        {"jwk": {"kty": "RSA", "n": "AQAB", "e": "AQAB"}},
        {"jwk": {"kty": "OKP", "crv": "Ed25519"}},
        {"jwk": {"kty": "OKP", "crv": "Ed25519", "x": "A" * 42}},
        {"jwk": {"kty": "OKP", "crv": "Ed25519", "x": "!" * 43}},
        {"jwk": {"kty": "OKP", "crv": "X25519", "x": "A" * 43}},
        {"jwk": {"kty": "OKP", "crv": "Ed25519", "x": 7}},
    ],
)
def test_a_proof_with_an_odd_head_is_refused(bound: Bound, headers: dict[str, Any]) -> None:
    proof = bound.hand.proof("GET", ASSIGNMENTS, token=bound.token, headers=headers)
    assert refusal(bound.ask(DPoP=proof)) == (401, "proof_refused")


def test_a_proof_that_shows_its_private_key_is_refused(bound: Bound) -> None:
    shown = public_jwk(bound.hand.key) | {"d": base64url(bound.hand.key.private_bytes_raw())}
    proof = bound.hand.proof("GET", ASSIGNMENTS, token=bound.token, headers={"jwk": shown})
    assert refusal(bound.ask(DPoP=proof)) == (401, "proof_refused")


def test_a_key_has_one_spelling(bound: Bound) -> None:
    """The last of 43 characters has two bits that mean nothing: as another text it is another thumbprint."""
    x = public_jwk(bound.hand.key)["x"]
    alphabet = "ABCDEFGHIJKLMNOPQRSTUVWXYZabcdefghijklmnopqrstuvwxyz0123456789-_"
    twisted = x[:-1] + alphabet[alphabet.index(x[-1]) | 1]
    assert base64.urlsafe_b64decode(twisted + "=") == base64.urlsafe_b64decode(x + "=")
    jwk = public_jwk(bound.hand.key) | {"x": twisted}
    proof = bound.hand.proof("GET", ASSIGNMENTS, token=bound.token, headers={"jwk": jwk})
    assert refusal(bound.ask(DPoP=proof)) == (401, "proof_refused")


def test_two_proofs_are_none(bound: Bound) -> None:
    one, other = (bound.hand.proof("GET", ASSIGNMENTS, token=bound.token) for _ in range(2))
    told = [("Authorization", f"DPoP {bound.token}"), ("DPoP", one), ("DPoP", other)]
    assert refusal(bound.api.get("/v1/assignments", headers=told)) == (401, "proof_refused")


def test_the_query_is_no_part_of_a_proof(bound: Bound) -> None:
    told = bound.hand.headers("GET", f"{ASSIGNMENTS}?ignored=1#too", bound.token)
    assert bound.api.get("/v1/assignments?limit=5", headers=told).status_code == 200


def test_a_token_is_only_made_for_a_key(bound: Bound) -> None:
    form = token_form(bound.applicant.assertion(bound.client_id))
    assert refusal(bound.api.post("/v1/tokens", data=form)) == (401, "proof_required")
    form = token_form(bound.applicant.assertion(bound.client_id))
    stale = bound.hand.proof("POST", TOKENS, iat=int(time.time()) - 600)
    assert refusal(bound.api.post("/v1/tokens", data=form, headers={"DPoP": stale})) == (
        401,
        "proof_refused",
    )


def test_an_assertion_whose_proof_was_refused_can_be_used_again(bound: Bound) -> None:
    """Nothing half-written: the refusal undoes the note that the assertion was used."""
    form = token_form(bound.applicant.assertion(bound.client_id))
    assert bound.api.post("/v1/tokens", data=form).status_code == 401
    proof = bound.hand.proof("POST", TOKENS)
    assert bound.api.post("/v1/tokens", data=form, headers={"DPoP": proof}).status_code == 200


def test_a_training_clients_token_without_a_key_is_refused(strict: TestClient, bound: Bound) -> None:
    """As one from before the setting was switched on."""
    claims = json.loads(base64.urlsafe_b64decode(bound.token.split(".")[1] + "=="))
    principal = Principal(UUID(claims["sub"]), UUID(claims["org"]), Role.CLIENT)
    free = client_headers(strict.app, principal)  # type: ignore[arg-type]  # a FastAPI application
    assert refusal(strict.get("/v1/assignments", headers=free)) == (401, "proof_required")
    scheme = {"Authorization": free["Authorization"].replace("Bearer", "DPoP")}
    assert refusal(strict.get("/v1/assignments", headers=scheme)) == (401, "proof_refused")


def test_an_api_key_needs_no_proof_and_takes_none(strict: TestClient, session: Session) -> None:
    caller = add_caller(session)
    assert strict.get("/v1/organisations", headers=caller.headers).status_code == 200
    as_dpop = {"Authorization": caller.headers["Authorization"].replace("Bearer", "DPoP")}
    assert strict.get("/v1/organisations", headers=as_dpop).status_code == 401


def test_behind_a_proxy_that_adds_a_prefix_the_public_address_counts(
    shared_app: FastAPI, settings: Settings, rolled_back: Database, session: Session
) -> None:
    """The proxy takes the prefix away: the proof is about what the client calls."""
    public = "https://lab.example/federated"
    told = settings.model_copy(update={"proof_of_possession": True, "public_url": public})
    install_state(shared_app, told, rolled_back)
    api = TestClient(shared_app, base_url=HERE, raise_server_exceptions=False)
    applicant, client_id = enrol(api, add_caller(session))
    form = token_form(applicant.assertion(client_id, aud=f"{public}/v1/tokens"))
    proof = Hand().proof("POST", TOKENS)
    assert refusal(api.post("/v1/tokens", data=form, headers={"DPoP": proof})) == (401, "proof_refused")
    hand = Hand()
    proof = hand.proof("POST", f"{public.upper().replace('FEDERATED', 'federated')}/v1/tokens")
    answer = api.post("/v1/tokens", data=form, headers={"DPoP": proof})
    assert answer.status_code == 200, answer.text
    token = answer.json()["access_token"]
    told_headers = hand.headers("GET", "https://lab.example:443/federated/v1/assignments", token)
    assert api.get("/v1/assignments", headers=told_headers).status_code == 200


def test_the_thumbprint_is_that_of_the_standard() -> None:
    """RFC 8037, appendix A.3."""
    x = "11qYAYKxCrfVS_7TyWQHOg7hcvPapiMlrwIaaPcHURo"
    assert thumbprint(base64.urlsafe_b64decode(x + "=")) == "kPrK_qmxVWaYVA9wwBF6Iuo3vVzz7TxHCTwXBygrS4k"


def test_ten_thousand_broken_proofs_are_refused_and_nothing_else() -> None:
    generator, hand = random.Random(5), Hand()
    text = hand.proof("GET", ASSIGNMENTS)
    read = {"method": "GET", "target": ASSIGNMENTS, "leeway_s": 30}
    assert read_proof(text, **read).jti  # type: ignore[arg-type]  # as named
    for _number in range(10_000):
        broken = list(text)
        for _fault in range(generator.randint(1, 3)):
            at = generator.randrange(len(broken))
            broken[at] = generator.choice("Aa0-_.=\0é{")
        if (changed := "".join(broken)) == text:
            continue
        with pytest.raises(TokenRefused) as refused:
            read_proof(changed, **read)  # type: ignore[arg-type]  # as named
        assert refused.value.reason in Refusal


def test_a_certificates_thumbprint_is_of_its_der() -> None:
    expected = base64.urlsafe_b64encode(hashlib.sha256(b"der").digest()).rstrip(b"=").decode()
    assert certificate_thumbprint(b"der") == expected
