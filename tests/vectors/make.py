"""Write the vectors of docs/wire.md anew, from fixed keys, times and ids: `python -m tests.vectors.make`."""

from __future__ import annotations

import base64
import hashlib
import json
from pathlib import Path
from typing import Any

import jwt
from cryptography.hazmat.primitives.asymmetric.ed25519 import Ed25519PrivateKey

from tests.proofs import Hand, base64url, content_digest, signed_update

HERE = Path(__file__).parent
AT = 1_790_000_000
URL = "https://lab.example/federated"
CLIENT = "01976c5e-8d2b-7c3a-9f4e-2b6d1a0c9e77"
ROUND, UPDATE = "01976c5f-0000-7000-8000-000000000001", "01976c5f-0000-7000-8000-000000000002"
TOKEN = "aaaa.bbbb.cccc"
ENROLMENT_TOKEN = "dpfl_enrol_" + "0" * 49


def key(seed: int) -> Ed25519PrivateKey:
    return Ed25519PrivateKey.from_private_bytes(hashlib.sha256(f"vector {seed}".encode()).digest())


def raw(one: Ed25519PrivateKey) -> bytes:
    return one.public_key().public_bytes_raw()


def keys() -> dict[str, str]:
    return {
        "enrolled_private": base64url(key(1).private_bytes_raw()),
        "enrolled_public": base64url(raw(key(1))),
        "proving_private": base64url(key(2).private_bytes_raw()),
        "proving_public": base64url(raw(key(2))),
    }


def enrolment() -> dict[str, Any]:
    message = b"dpfl-enrol-v1\0" + ENROLMENT_TOKEN.encode() + b"\0" + raw(key(1))
    return {"token": ENROLMENT_TOKEN, "message_hex": message.hex(), "proof": base64url(key(1).sign(message))}


def assertion() -> dict[str, Any]:
    claims = {"iss": CLIENT, "sub": CLIENT, "aud": f"{URL}/v1/tokens", "iat": AT, "exp": AT + 240}
    claims["jti"] = "assertion-0001"
    return {"claims": claims, "at": AT, "assertion": jwt.encode(claims, key(1), algorithm="EdDSA")}


def proof() -> dict[str, Any]:
    address = f"{URL}/v1/assignments"
    made = Hand(key(2)).proof("GET", address, token=TOKEN, iat=AT, jti="proof-0001")
    return {"method": "GET", "target": address, "token": TOKEN, "at": AT, "proof": made}


def update() -> dict[str, Any]:
    """One trained tensor of shape (2, 2), its header padded with blanks to a multiple of eight."""
    entry = {"dtype": "F32", "shape": [2, 2], "data_offsets": [0, 16]}
    text = json.dumps({"one.weight": entry}, separators=(",", ":")).encode()
    text += b" " * (-len(text) % 8)
    values = b"".join(bytes.fromhex(one) for one in ("0000803f", "000000c0", "00000000", "0000003e"))
    body = len(text).to_bytes(8, "little") + text + values
    return {
        "values": [1.0, -2.0, 0.0, 0.125],
        "name": "one.weight",
        "shape": [2, 2],
        "body": base64.b64encode(body).decode(),
        "sha256": hashlib.sha256(body).hexdigest(),
        "content_digest": content_digest(body),
    }


def signature() -> dict[str, Any]:
    body = base64.b64decode(update()["body"])
    address = f"{URL}/v1/rounds/{ROUND}/updates/{UPDATE}"
    headers = signed_update(
        body, address=address, client_id=CLIENT, key=key(1), created=AT, nonce="nonce-of-0001-xx"
    )
    return {"method": "PUT", "target": address, "at": AT, "headers": headers}


VECTORS = {
    "keys": keys,
    "enrolment": enrolment,
    "assertion": assertion,
    "proof": proof,
    "update": update,
    "signature": signature,
}


def rendered(name: str) -> str:
    return json.dumps(VECTORS[name](), indent=2) + "\n"


if __name__ == "__main__":
    for name in VECTORS:
        (HERE / f"{name}.json").write_text(rendered(name))
