"""What a client says of its noise: another amount than the plan's is refused, kept, and charged to nobody."""

from __future__ import annotations

import base64
import json
from typing import Any

import pytest
import sqlalchemy as sa
from cryptography.hazmat.primitives.asymmetric.ed25519 import Ed25519PrivateKey
from httpx2 import Response
from sqlalchemy.orm import Session
from starlette.testclient import TestClient

from app.budget.models import PrivacyViolation
from app.budget.queries import account_of_client
from app.core.canonical import canonical_sha256
from app.core.ids import new_id
from app.core.settings import Settings
from app.identity.keys import ensure_signing_keys
from app.updates.declared import HEADER
from tests.federation import NOTHING, OPEN_PRIVACY, Federation, sha256_of, update_file
from tests.http.accounts import VAULT, client_headers


class Desk:
    """The first client of a running federation, with its key and what it declares."""

    def __init__(self, api: TestClient, federation: Federation, **run: Any) -> None:
        self.api, self.federation = api, federation
        ensure_signing_keys(federation.session, VAULT)
        self.run = federation.running(**run)
        self.round = federation.round_of(self.run)
        self.body = update_file(self.run.manifest)
        self.key: Ed25519PrivateKey = federation.keys[0]
        self.said: dict[str, Any] = {
            "attestation": "declared",
            "client_id": str(federation.clients[0].id),
            "run_id": str(self.run.id),
            "number": 1,
            "manifest_sha256": self.run.manifest_sha256,
            "update_sha256": sha256_of(self.body),
            "noise_by_client": True,
            "noise_multiplier": self.run.manifest["privacy"]["noise_multiplier"],
            "clip_norm": self.run.manifest["privacy"]["clip_norm"],
        }

    def header(self, **changes: Any) -> str:
        said = self.said | changes
        signature = self.key.sign(bytes.fromhex(canonical_sha256(said)))
        whole = {"declaration": said, "signature": base64.b64encode(signature).decode()}
        return base64.urlsafe_b64encode(json.dumps(whole).encode()).decode()

    def send(self, header: str | None) -> Response:
        digest = base64.b64encode(bytes.fromhex(sha256_of(self.body))).decode()
        own = client_headers(self.api.app, self.federation.principal())  # type: ignore[arg-type]
        headers = {"Content-Type": "application/octet-stream", "Content-Digest": f"sha-256=:{digest}:"}
        return self.api.put(
            f"/v1/rounds/{self.round.id}/updates/{new_id()}",
            content=self.body,
            headers=own | headers | ({} if header is None else {HEADER: header}),
        )

    @property
    def spent(self) -> int:
        return account_of_client(self.federation.session, self.federation.clients[0].id).spent

    def violations(self) -> list[PrivacyViolation]:
        return list(self.federation.session.scalars(sa.select(PrivacyViolation)))


@pytest.fixture
def desk(api: TestClient, session: Session, settings: Settings) -> Desk:
    return Desk(api, Federation(session, settings))


def test_an_update_that_is_declared_as_planned_is_taken(desk: Desk) -> None:
    assert desk.send(desk.header()).status_code == 201
    assert desk.violations() == []


def test_an_update_without_a_declaration_is_taken(desk: Desk) -> None:
    assert desk.send(None).status_code == 201


@pytest.mark.parametrize(
    ("changes", "kind"),
    [
        ({"noise_by_client": False}, "missing_noise"),
        ({"noise_multiplier": None}, "missing_noise"),
        ({"noise_multiplier": 0.0}, "missing_noise"),
        ({"noise_multiplier": 0.12345}, "scaled_noise"),
        ({"noise_multiplier": 2.0}, "scaled_noise"),
        ({"clip_norm": 10.0}, "scaled_noise"),
        ({"clip_norm": None}, "scaled_noise"),
    ],
)
def test_other_noise_than_the_plans_is_refused_recorded_once_and_not_charged(
    desk: Desk, changes: dict[str, Any], kind: str
) -> None:
    for _attempt in range(2):
        answer = desk.send(desk.header(**changes))
        assert (answer.status_code, answer.json()["code"]) == (422, "noise_differs")
    (found,) = desk.violations()
    assert (found.kind, found.run_id, found.client_id) == (kind, desk.run.id, desk.federation.clients[0].id)
    assert found.detail["planned"] == {"noise_multiplier": 1.2345, "clip_norm": 1.0}
    assert found.detail["round"] == 1
    assert desk.spent == 0
    assert desk.send(desk.header()).status_code == 201


def test_whatever_else_a_client_declares_for_a_round_adds_no_record(desk: Desk) -> None:
    for number in range(1, 6):
        assert desk.send(desk.header(noise_multiplier=number / 7)).status_code == 422
        assert desk.send(desk.header(noise_by_client=False, clip_norm=number / 3)).status_code == 422
    found = sorted(desk.violations(), key=lambda row: row.kind)
    assert [row.kind for row in found] == ["missing_noise", "scaled_noise"]
    assert found[1].detail["declared"]["noise_multiplier"] == 1 / 7


@pytest.mark.parametrize(
    "changes",
    [
        {"update_sha256": "0" * 64},
        {"update_sha256": None},
        {"manifest_sha256": "0" * 64},
        {"number": 2},
        {"number": True},
        {"run_id": str(new_id())},
        {"client_id": str(new_id())},
        {"noise_by_client": "yes"},
    ],
)
def test_a_declaration_of_another_update_is_refused_and_says_nothing_of_noise(
    desk: Desk, changes: dict[str, Any]
) -> None:
    answer = desk.send(desk.header(**changes))
    assert (answer.status_code, answer.json()["code"]) == (422, "declaration_invalid")
    assert (desk.violations(), desk.spent) == ([], 0)


def encoded(text: bytes) -> str:
    return base64.urlsafe_b64encode(text).decode()


@pytest.mark.parametrize(
    "header",
    [
        "",
        "?",
        "A" * 9000,
        encoded(b"[]"),
        encoded(b"{}"),
        encoded(b'{"declaration": {"a": NaN}, "signature": ""}'),
        encoded(b'{"declaration": {}, "signature": 1}'),
        encoded(b'{"declaration": "\\ud800", "signature": ""}'),
        encoded(b"[" * 5000),
    ],
)
def test_a_header_that_is_no_declaration_is_refused(desk: Desk, header: str) -> None:
    answer = desk.send(header)
    assert (answer.status_code, answer.json()["code"]) == (422, "declaration_invalid")


def test_nobody_declares_in_anothers_name(desk: Desk) -> None:
    desk.key = desk.federation.keys[1]
    answer = desk.send(desk.header(noise_by_client=False))
    assert answer.json()["code"] == "declaration_invalid"
    assert desk.violations() == []


def test_where_no_client_noises_a_declaration_is_not_looked_at(
    api: TestClient, session: Session, settings: Settings
) -> None:
    desk = Desk(api, Federation(session, settings), price=NOTHING, privacy=OPEN_PRIVACY)
    assert desk.send("?").status_code == 201
