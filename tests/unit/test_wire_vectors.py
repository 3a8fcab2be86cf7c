"""The vectors of docs/wire.md: the server takes each, and they are what their maker makes."""

import base64
import hashlib
import io
import json
from datetime import UTC, datetime, timedelta
from typing import Any
from uuid import UUID

import numpy as np
import pytest
from cryptography.hazmat.primitives.asymmetric.ed25519 import Ed25519PublicKey
from safetensors.numpy import load

from app.core import clock
from app.core.dpop import read_proof, thumbprint
from app.core.tokens import Expected, verify_token
from app.updates import signing
from app.updates.stream import announced
from app.updates.wire import WireTensor, check_header
from tests.vectors.make import CLIENT, HERE, URL, VECTORS, rendered


def vector(name: str) -> dict[str, Any]:
    found: dict[str, Any] = json.loads((HERE / f"{name}.json").read_text())
    return found


def raw(name: str) -> bytes:
    return base64.urlsafe_b64decode(vector("keys")[name] + "=")


@pytest.fixture(autouse=True)
def _then(monkeypatch: pytest.MonkeyPatch) -> None:
    """The vectors' own time."""
    monkeypatch.setattr(clock, "now", lambda: datetime.fromtimestamp(vector("proof")["at"] + 1, UTC))


@pytest.mark.parametrize("name", VECTORS)
def test_the_committed_vector_is_what_its_maker_makes(name: str) -> None:
    assert (HERE / f"{name}.json").read_text() == rendered(name), "run python -m tests.vectors.make"


def test_the_enrolment_proof_is_over_prefix_token_and_key() -> None:
    told, public = vector("enrolment"), raw("enrolled_public")
    message = b"dpfl-enrol-v1\0" + told["token"].encode() + b"\0" + public
    assert message.hex() == told["message_hex"]
    Ed25519PublicKey.from_public_bytes(public).verify(base64.urlsafe_b64decode(told["proof"] + "=="), message)


def test_the_assertion_is_taken() -> None:
    key = Ed25519PublicKey.from_public_bytes(raw("enrolled_public"))
    expected = Expected(
        typ=None,
        issuer=CLIENT,
        audience=f"{URL}/v1/tokens",
        max_lifetime_s=300,
        leeway_s=30,
        required=("exp", "iat", "aud", "iss", "sub", "jti"),
    )
    assert verify_token(vector("assertion")["assertion"], key, expected)["jti"] == "assertion-0001"


def test_the_proof_is_taken() -> None:
    told = vector("proof")
    found = read_proof(
        told["proof"],
        method=told["method"],
        target=told["target"],
        leeway_s=30,
        access_token=told["token"],
    )
    assert (found.thumbprint, found.jti) == (thumbprint(raw("proving_public")), "proof-0001")


def test_the_update_is_taken_and_holds_its_values() -> None:
    told = vector("update")
    body = base64.b64decode(told["body"])
    expected = {told["name"]: WireTensor("F32", tuple(told["shape"]))}
    check_header(io.BytesIO(body), size_bytes=len(body), expected=expected)
    assert load(body)[told["name"]].reshape(-1).tolist() == np.float32(told["values"]).tolist()
    assert hashlib.sha256(body).hexdigest() == told["sha256"]
    headers = {"content-length": str(len(body)), "content-digest": told["content_digest"]}
    assert announced(headers) == (len(body), told["sha256"])


def test_the_signature_is_taken(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(signing, "MAX_AGE", timedelta(days=36_500))  # the library has a clock of its own
    told = vector("signature")
    headers = {name.lower(): value for name, value in told["headers"].items()}
    named = {"Signature-Input": headers["signature-input"], "Signature": headers["signature"]}
    head = signing.head_of(headers | named, target=told["target"], is_required=True, leeway_s=10**9)
    assert head is not None
    assert signing.verified(head, UUID(CLIENT), [raw("enrolled_public")]).nonce == "nonce-of-0001-xx"
