"""Updates are signed by the key of their client: what a signature must cover, and that it is kept."""

from collections.abc import Iterator
from typing import Any
from uuid import UUID

import pytest
import sqlalchemy as sa
from cryptography.hazmat.primitives.asymmetric.ed25519 import Ed25519PrivateKey
from fastapi import FastAPI
from httpx2 import Response
from sqlalchemy.orm import Session
from starlette.testclient import TestClient

from app.core.db import Database
from app.core.dpop import thumbprint
from app.core.ids import new_id
from app.core.settings import Settings
from app.core.tokens import sign_token
from app.identity.keys import ensure_signing_keys
from app.identity.models import ClientState
from app.main import install_state
from app.updates import router
from app.updates.models import Update, UpdateState
from client.possession import sign_update
from tests.builders import build_round, build_update
from tests.federation import Federation, update_file
from tests.http.accounts import VAULT
from tests.proofs import COMPONENTS, Hand, content_digest, signed_update

HERE = "http://127.0.0.1:8000"


class Desk:
    """Two clients of a running federation with their keys, on a gateway that wants both proofs."""

    def __init__(self, api: TestClient, federation: Federation) -> None:
        self.api, self.federation = api, federation
        ensure_signing_keys(federation.session, VAULT)
        self.run = federation.running()
        self.round_id = federation.round_of(self.run).id
        self.body = update_file(self.run.manifest)
        self.hands = [Hand(), Hand()]
        self.tokens = [self._token(number) for number in range(2)]

    def _token(self, number: int) -> str:
        principal, hand = self.federation.principal(number), self.hands[number]
        keys = self.api.app.state.keys
        kid, key = keys.current()
        return sign_token(
            key,
            kid=kid,
            issuer=HERE,
            audience=HERE,
            subject=str(principal.id),
            lifetime_s=600,
            claims={
                "org": str(principal.organisation_id),
                "role": "client",
                "cnf": {"jkt": thumbprint(hand.key.public_key().public_bytes_raw())},
            },
        )

    def address(self, update_id: UUID) -> str:
        return f"{HERE}/v1/rounds/{self.round_id}/updates/{update_id}"

    def signed(self, update_id: UUID, number: int = 0, **changes: Any) -> dict[str, str]:
        told = {
            "address": self.address(update_id),
            "client_id": self.federation.clients[number].id,
            "key": self.federation.keys[number],
        }
        return signed_update(self.body, **(told | changes))

    def put(
        self, update_id: UUID, headers: dict[str, str], number: int = 0, body: bytes | None = None
    ) -> Response:
        address = self.address(update_id)
        proven = self.hands[number].headers("PUT", address, self.tokens[number])
        return self.api.put(address, content=self.body if body is None else body, headers=proven | headers)

    def row(self, update_id: UUID) -> Update | None:
        return self.federation.session.scalar(
            sa.select(Update).where(Update.id == update_id).execution_options(populate_existing=True)
        )


@pytest.fixture
def desk(shared_app: FastAPI, settings: Settings, rolled_back: Database, session: Session) -> Iterator[Desk]:
    install_state(shared_app, settings.model_copy(update={"proof_of_possession": True}), rolled_back)
    api = TestClient(shared_app, base_url=HERE, raise_server_exceptions=False)
    yield Desk(api, Federation(session, settings))
    api.close()


def refusal(answer: Response) -> tuple[int, str]:
    return answer.status_code, answer.json()["code"]


def test_a_signed_update_is_taken_and_its_signature_kept(desk: Desk) -> None:
    update_id = new_id()
    headers = desk.signed(update_id, nonce="n" * 20)
    answer = desk.put(update_id, headers)
    assert answer.status_code == 201, answer.text
    row = desk.row(update_id)
    assert row is not None
    assert (row.state, row.signature_nonce) == (UpdateState.RECEIVED, "n" * 20)
    assert (row.signature_input, row.signature) == (headers["Signature-Input"], headers["Signature"])


def test_a_clock_that_is_off_within_the_leeway_is_taken(desk: Desk, settings: Settings) -> None:
    update_id = new_id()
    ahead = desk.signed(update_id, age_s=-(settings.clock_leeway_s - 5))
    assert desk.put(update_id, ahead).status_code == 201


def test_a_client_that_was_suspended_within_its_upload_is_not_part_of_the_round(
    desk: Desk, monkeypatch: pytest.MonkeyPatch
) -> None:
    update_id, client = new_id(), desk.federation.clients[0]
    receive = router.receive

    async def suspended_meanwhile(*given: Any, **named: Any) -> None:
        await receive(*given, **named)
        client.state = ClientState.REVOKED
        desk.federation.session.flush()

    monkeypatch.setattr(router, "receive", suspended_meanwhile)
    assert refusal(desk.put(update_id, desk.signed(update_id))) == (403, "client_revoked")
    row = desk.row(update_id)
    assert row is not None
    assert row.state is UpdateState.RECEIVING


def test_what_the_client_signs_holds(desk: Desk) -> None:
    """The client's library and the bytes made by hand agree with the server."""
    update_id = new_id()
    headers = {
        "Content-Type": "application/octet-stream",
        "Content-Length": str(len(desk.body)),
        "Content-Digest": content_digest(desk.body),
    }
    sign_update(
        headers,
        address=desk.address(update_id),
        client_id=str(desk.federation.clients[0].id),
        key=desk.federation.keys[0],
    )
    assert desk.put(update_id, headers).status_code == 201


def test_an_update_without_a_signature_is_refused_and_charges_nothing(desk: Desk) -> None:
    update_id = new_id()
    headers = desk.signed(update_id)
    for missing in ({"Signature"}, {"Signature-Input"}, {"Signature", "Signature-Input"}):
        told = {name: value for name, value in headers.items() if name not in missing}
        assert refusal(desk.put(update_id, told)) == (401, "update_unsigned")
    assert desk.row(update_id) is None


@pytest.mark.parametrize(
    "changes",
    [
        {"address": f"{HERE}/v1/rounds/{new_id()}/updates/{new_id()}"},
        {"method": "POST"},
        {"components": COMPONENTS[1:]},
        {"components": ("@method", "content-digest", "content-length")},
        {"components": ("@method", "@target-uri", "content-length")},
        {"components": ("@method", "@target-uri", "content-digest")},
        {"age_s": 3600},
        {"age_s": -3600},
        {"nonce": None},
        {"nonce": "short"},
        {"nonce": "with blanks in a nonce"},
        {"tag": "another"},
        {"alg": "hmac-sha256"},
        {"client_id": new_id()},
        {"key": Ed25519PrivateKey.generate()},
    ],
)
def test_a_signature_of_something_else_is_refused_and_charges_nothing(
    desk: Desk, changes: dict[str, Any]
) -> None:
    update_id = new_id()
    assert refusal(desk.put(update_id, desk.signed(update_id, **changes))) == (
        401,
        "update_signature_invalid",
    )
    assert desk.row(update_id) is None


def test_a_clients_signature_does_not_serve_another(desk: Desk) -> None:
    """The second client sends the first one's signed request with its own token."""
    update_id = new_id()
    assert refusal(desk.put(update_id, desk.signed(update_id), number=1)) == (401, "update_signature_invalid")


def test_a_body_that_was_exchanged_under_its_signature_is_refused(desk: Desk) -> None:
    """A library that checks signatures alone would take it: the digest is made anew from the bytes."""
    update_id = new_id()
    swapped = bytes([*desk.body[:-1], desk.body[-1] ^ 1])
    assert refusal(desk.put(update_id, desk.signed(update_id), body=swapped)) == (422, "digest_mismatch")
    row = desk.row(update_id)
    assert row is not None
    assert row.state is UpdateState.RECEIVING
    assert desk.put(update_id, desk.signed(update_id)).status_code == 201


def test_a_nonce_serves_one_update(desk: Desk) -> None:
    session, nonce, update_id = desk.federation.session, "n" * 32, new_id()
    earlier = build_update(session, build_round(session), desk.federation.clients[0].id)
    earlier.signature_nonce = nonce
    session.flush()
    assert refusal(desk.put(update_id, desk.signed(update_id, nonce=nonce))) == (409, "nonce_used")
    assert desk.row(update_id) is None
    fresh = desk.signed(update_id)
    assert desk.put(update_id, fresh).status_code == 201
    assert desk.put(update_id, fresh).status_code == 200  # the same PUT again, after an answer that was lost


@pytest.mark.parametrize(
    ("name", "value"),
    [
        ("Signature-Input", "dpfl"),
        ("Signature-Input", "dpfl=()"),
        ("Signature-Input", 'dpfl=("@method" "@method");tag="dpfl-update"'),
        ("Signature-Input", "(" * 500),
        ("Signature-Input", "x" * 1001),
        ("Signature", "dpfl=:!!!:"),
        ("Signature", "other=:AAAA:"),
        ("Signature", "dpfl=?1"),
        ("Signature", "dpfl=::"),
    ],
)
def test_a_malformed_signature_is_refused_as_one(desk: Desk, name: str, value: str) -> None:
    update_id = new_id()
    assert refusal(desk.put(update_id, desk.signed(update_id) | {name: value})) == (
        401,
        "update_signature_invalid",
    )
