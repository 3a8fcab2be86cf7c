"""A federation whose server adds the noise: clients with accounts by client, and runs with secret cohorts."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any
from uuid import UUID

import sqlalchemy as sa
from sqlalchemy.orm import Session
from torch import Tensor

from app.core.ids import new_id
from app.core.settings import Settings
from app.custody.blobs import Blobs
from app.identity.models import Organisation
from app.identity.roles import Principal, Role
from app.rounds import lifecycle
from app.rounds.models import Assignment, Round
from app.rounds.queries import cohort_of, rounds_of
from app.runs import service
from app.runs.manifest import Manifest
from app.runs.models import Run
from app.runs.queries import client_ids_of
from tests.builders import (
    TINY_MANIFEST,
    build_account,
    build_client,
    build_update,
    home,
    tiny_manifest,
)
from tests.http.accounts import VAULT
from workers.handlers.price import commitment_of
from workers.tensors import write_tensors

CLIENTS = 6
PRICE: dict[str, Any] = {
    "noise_multiplier": 1.5,
    "epsilon": 3.9,
    "delta": 1e-5,
    "epsilon_by_round": [2.5, 3.9],
    "epsilon_rdp": None,
    "accountant": "dp-accounting 0.6.0 PLD",
    "rdp": {},
}
ADAPTIVE_PRICE: dict[str, Any] = {"clip_noise_multiplier": 1.6181}
"""What is left of z = 1.5 for the sum when the count of norms has noise of standard deviation 2."""
CENTRAL: dict[str, Any] = {
    "trust": "central",
    "unit": "client",
    "cohort": {"kind": "poisson", "rate": 0.5, "cap": CLIENTS, "n_max": CLIENTS},
    "examples": {"kind": "all"},
    "divisor": CLIENTS / 2,
}
EVERYONE: dict[str, Any] = {"cohort": {"kind": "everyone"}}
CANARIES, CAP = 200, 155
SEATED: dict[str, Any] = {
    "audit": {"canaries": CANARIES},
    "cohort": {"kind": "poisson", "rate": 0.5, "cap": CAP, "n_max": CLIENTS},
}
"""A plan whose canaries take places in its rounds; the cap is five deviations over 103 of 206."""
WIDE: list[dict[str, Any]] = [
    entry | {"shape": [2048 if length == 4 else length for length in entry["shape"]]}
    for entry in TINY_MANIFEST["tensors"]
]
"""As many trained values, 8,192, as so many canaries need to be told apart."""


def central_manifest(
    *,
    rounds: int = 2,
    seal: str | None = "quorum",
    aggregation: dict[str, Any] | None = None,
    **privacy: Any,
) -> dict[str, Any]:
    """A small plan under `central`; keywords change members of its privacy section."""
    plan = CENTRAL | privacy
    quorum = {"min_updates": 0, "max_updates": plan["cohort"].get("cap", CLIENTS), "seal": seal}
    manifest = tiny_manifest(privacy=plan, aggregation=aggregation or {}, quorum=quorum, rounds=rounds)
    if plan.get("audit") is not None:
        manifest["tensors"] = WIDE
    return manifest


def price_central_run(
    session: Session,
    settings: Settings,
    *,
    start_adapter_sha256: str = "a" * 64,
    organisation: Organisation | None = None,
    rounds: int = 2,
    seal: str | None = "quorum",
    **privacy: Any,
) -> tuple[Run, Principal]:
    """A priced run of six clients, and who may start it."""
    organisation = organisation or home(session)
    coordinator = Principal(id=new_id(), organisation_id=organisation.id, role=Role.COORDINATOR)
    clients = [build_client(session, organisation) for _number in range(CLIENTS)]
    for client in clients:
        build_account(session, client, unit="client")
    run = service.create(
        session,
        coordinator,
        name=None,
        manifest=Manifest.model_validate(central_manifest(rounds=rounds, seal=seal, **privacy)),
        client_ids=[client.id for client in clients],
        settings=settings,
    )
    run = service.price(session, coordinator, run.id)
    committed = {"canaries_commitment": commitment_of(Manifest.model_validate(run.manifest), VAULT, run.id)}
    assert service.accept_price(
        session,
        run.id,
        version=run.version,
        price=(ADAPTIVE_PRICE if privacy.get("adaptive_clip") else {}) | committed | PRICE,
        start_adapter_sha256=start_adapter_sha256,
        actor="job",
    )
    return run, coordinator


def start_central_run(session: Session, settings: Settings, **plan: Any) -> Run:
    """A started run of six clients, its first round open; keywords as for `price_central_run`."""
    run, coordinator = price_central_run(session, settings, **plan)
    run = service.start(session, coordinator, run.id, region=None)
    assert run.state == "running", run.reason
    return run


def set_cohort(session: Session, round_id: UUID, client_ids: Sequence[UUID]) -> None:
    """Put these clients into a round's cohort instead of those that chance has put there."""
    session.execute(sa.delete(Assignment).where(Assignment.round_id == round_id))
    session.add_all(Assignment(round_id=round_id, client_id=client_id) for client_id in client_ids)
    session.flush()


def first_round(session: Session, run: Run, *, cohort: Sequence[int] | None = None) -> Round:
    """The run's first round; `cohort` says by number which clients are in it."""
    row = rounds_of(session, run.id)[0]
    if cohort is not None:
        client_ids = client_ids_of(session, run.id)
        set_cohort(session, row.id, [client_ids[number] for number in cohort])
    return row


def send_and_seal(session: Session, blobs: Blobs, row: Round, updates: Sequence[dict[str, Tensor]]) -> None:
    """The cohort's first clients send these updates; then the round is sealed."""
    for client_id, tensors in zip(cohort_of(session, row.id), updates, strict=False):
        digest, size_bytes = write_tensors(blobs.of(row.organisation_id), tensors)
        build_update(session, row, client_id, blob_sha256=digest, size_bytes=size_bytes)
    lifecycle.seal(session, row.id, actor="test", vault=VAULT)
