"""A small federation for tests: one organisation, two enrolled clients, and runs in any state of life."""

from __future__ import annotations

import hashlib
import json
import struct
from typing import Any
from uuid import UUID

import sqlalchemy as sa
from cryptography.hazmat.primitives.asymmetric.ed25519 import Ed25519PrivateKey
from sqlalchemy.orm import Session

from app.core.ids import new_id
from app.core.settings import Settings
from app.identity.models import Client, Organisation
from app.identity.roles import Principal, Role
from app.rounds import lifecycle
from app.rounds.models import Assignment, Round
from app.rounds.queries import rounds_of
from app.runs import service
from app.runs.manifest import Manifest
from app.runs.methods import update_tensors
from app.runs.models import Run
from tests.builders import (
    build_account,
    build_client,
    build_organisation,
    build_update,
    principal_of,
    tiny_manifest,
)
from tests.http.accounts import VAULT

PRICE = {
    "noise_multiplier": 1.2345,
    "epsilon": 3.9,
    "delta": 1e-5,
    "epsilon_by_round": [2.5, 3.9],
    "accountant": "dp-accounting 0.6.0 PLD",
    "rdp": {"8.0": 1.25},
}
OPEN_PRIVACY = {"trust": "none", "clip_norm": None, "epsilon": None, "delta": None}
NOTHING = {"noise_multiplier": None, "epsilon": None, "delta": None, "epsilon_by_round": [], "rdp": {}}


class Federation:
    """An organisation with two enrolled clients and a coordinator."""

    def __init__(
        self,
        session: Session,
        settings: Settings,
        *,
        epsilon: float = 8.0,
        delta: float = 1e-5,
        unit: str = "example",
    ) -> None:
        self.session, self.settings = session, settings
        self.organisation: Organisation = build_organisation(session)
        self.keys = [Ed25519PrivateKey.generate() for _ in range(2)]
        self.clients: list[Client] = [
            build_client(session, self.organisation, public_key=key.public_key().public_bytes_raw())
            for key in self.keys
        ]
        for client in self.clients:
            build_account(session, client, epsilon=epsilon, delta=delta, unit=unit)
        self.coordinator = Principal(id=new_id(), organisation_id=self.organisation.id, role=Role.COORDINATOR)

    def draft(self, *, client_ids: list[UUID] | None = None, **changes: Any) -> Run:
        return service.create(
            self.session,
            self.coordinator,
            name=None,
            manifest=Manifest.model_validate(tiny_manifest(**changes)),
            client_ids=client_ids or [client.id for client in self.clients],
            settings=self.settings,
        )

    def priced(self, price: dict[str, Any] = PRICE, **changes: Any) -> Run:
        run = self.draft(**changes)
        service.price(self.session, self.coordinator, run.id)
        assert service.accept_price(
            self.session, run.id, version=run.version, price=price, start_adapter_sha256="a" * 64, actor="job"
        )
        return run

    def running(self, **changes: Any) -> Run:
        run = self.priced(**changes)
        return service.start(self.session, self.coordinator, run.id, region=None)

    def round_of(self, run: Run, number: int = 1) -> Round:
        return rounds_of(self.session, run.id)[number - 1]

    def principal(self, number: int = 0) -> Principal:
        """One of the clients as a caller."""
        return principal_of(self.clients[number])


def publish(session: Session, round_: Round, *, candidate: str = "b" * 64) -> None:
    """Walk an open round to published, as the workers do."""
    for client_id in session.scalars(
        sa.select(Assignment.client_id).where(Assignment.round_id == round_.id)
    ).all():
        build_update(session, round_, client_id)
    lifecycle.seal(session, round_.id, actor="test", vault=VAULT)
    lifecycle.begin_aggregation(session, round_.id, actor="test")
    lifecycle.record_candidate(session, round_.id, candidate_sha256=candidate, device="cpu", actor="test")
    lifecycle.publish(session, round_.id, actor="test")
    session.refresh(round_)


def update_file(manifest: dict[str, Any], *, fill: int = 0) -> bytes:
    """A safetensors file of the manifest's trained tensors, every byte of their values `fill`."""
    header: dict[str, Any] = {}
    start = 0
    for name, tensor in sorted(update_tensors(manifest, number=1).items()):
        end = start + tensor.size_bytes
        header[name] = {"dtype": tensor.dtype, "shape": list(tensor.shape), "data_offsets": [start, end]}
        start = end
    text = json.dumps(header).encode()
    return struct.pack("<Q", len(text)) + text + bytes([fill]) * start


def sha256_of(body: bytes) -> str:
    return hashlib.sha256(body).hexdigest()
