"""What checking a request costs in microseconds: token, proof of possession, update's signature, API key."""

import statistics
import time
from collections.abc import Callable
from typing import Any
from uuid import UUID

from cryptography.hazmat.primitives.asymmetric.ed25519 import Ed25519PrivateKey

from app.core.crypto import Vault
from app.core.dpop import read_proof
from app.core.tokens import ACCESS_TOKEN, Expected, sign_token, verify_token
from app.identity.credentials import mint_api_key, read_key_id
from app.updates import signing
from client.possession import Holder, sign_update

URL, CLIENT = "https://lab.example", "01976c5e-8d2b-7c3a-9f4e-2b6d1a0c9e77"
Section = tuple[list[dict[str, Any]], list[dict[str, Any]]]


def rows_and_goals(*, times: int = 300) -> Section:
    """Measure each check alone, in turn, without a database; medians of processor time."""
    acts = {
        "access token": _token(),
        "DPoP proof": _proof(),
        "update's signature": _signature(),
        "API key": _key(),
    }
    taken: dict[str, list[float]] = {name: [] for name in acts}
    for _ in range(times):
        for name, act in acts.items():
            began = time.process_time()
            act()
            taken[name].append(time.process_time() - began)
    rows: list[dict[str, Any]] = [
        {"verified": name, "microseconds": round(statistics.median(one) * 1e6, 1)}
        for name, one in taken.items()
    ]
    return rows, []


def _token() -> Callable[[], object]:
    key = Ed25519PrivateKey.generate()
    token = sign_token(
        key, kid="k", issuer=URL, audience=URL, subject=CLIENT, lifetime_s=600, claims={"role": "client"}
    )
    expected = Expected(typ=ACCESS_TOKEN, issuer=URL, audience=URL, max_lifetime_s=600, leeway_s=30)
    public = key.public_key()
    return lambda: verify_token(token, public, expected)


def _proof() -> Callable[[], object]:
    target, carried = f"{URL}/v1/assignments", "aaaa.bbbb.cccc"
    proof = Holder().proof("GET", target, token=carried)
    return lambda: read_proof(proof, method="GET", target=target, leeway_s=30, access_token=carried)


def _signature() -> Callable[[], object]:
    key, target = Ed25519PrivateKey.generate(), f"{URL}/v1/rounds/r/updates/u"
    digest = "sha-256=:X48E9qOokqqrvdts8nOJRJN3OWDUoyWxBf7kbu9DBPE=:"
    headers = {"content-digest": digest, "content-length": "1000"}
    sign_update(headers, address=target, client_id=CLIENT, key=key)
    head = signing.Head(url=target, headers=headers)
    public = key.public_key().public_bytes_raw()
    return lambda: signing.verified(head, UUID(CLIENT), [public])


def _key() -> Callable[[], object]:
    vault, minted = Vault(bytes(32)), mint_api_key()
    return lambda: (read_key_id(minted.text), vault.fingerprint("api-key", minted.text))
