"""`fedask` in real rounds: two of them make one step, and what comes out is the mean of whole products."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest
import sqlalchemy as sa
import torch
from safetensors.torch import load, save
from sqlalchemy.orm import Session
from torch import Tensor

from app.budget.queries import accounts_of_clients
from app.core.canonical import canonical_bytes
from app.core.db import Database
from app.core.ids import new_id
from app.identity.models import Client
from app.identity.roles import Principal, Role
from app.rounds import lifecycle
from app.rounds.models import Assignment, Round
from app.rounds.queries import rounds_of
from app.rounds.states import RoundState
from app.runs import service
from app.runs.charges import reservation, schedule
from app.runs.manifest import Manifest
from app.runs.models import Run
from app.runs.states import RunState
from client.pricing import terms_of
from client.sketching import first_message, second_message, trained_whole
from client.turns import Turn
from client.update_file import update_file
from client.wire import FrozenManifest
from engines.lora.states import BASIS
from tests.builders import (
    HOME,
    build_account,
    build_round,
    build_run,
    build_update,
    clients_of,
    tiny_manifest,
)
from tests.db.test_lora_rounds import (
    COLUMNS,
    HEAD,
    MODULE,
    OWN,
    OWN_STABILIZED,
    RANK,
    ROWS,
    A,
    B,
    Training,
    off,
    plan,
    weight_change,
)
from tests.worker_bench import context_for
from workers.context import Context
from workers.handlers.price import price_of
from workers.sketches import start_of

SCALE = 1.5


@pytest.fixture
def context(database: Database, tmp_path: Path) -> Context:
    return context_for(database, tmp_path)


class Sketching(Training):
    """A run whose clients train at random and send what the client's own code makes of it."""

    def __init__(self, context: Context, manifest: dict[str, Any], *, ranks: list[int] | None = None) -> None:
        super().__init__(context, manifest, ranks=ranks)
        self.whole: list[dict[str, Tensor]] = []

    @property
    def adapter(self) -> bytes:
        return save(self.started_from())

    def first(self, *, seed: int = 0) -> list[dict[str, Tensor]]:
        """All clients train, at their ranks."""
        generator = torch.Generator().manual_seed(10 * self.number + seed)
        number, self.whole, sent = self.number + 1, [], []
        for rank in self.ranks:
            shapes = {A: (rank, COLUMNS), B: (ROWS, rank), HEAD: (2, COLUMNS)}
            change = {name: 0.3 * torch.randn(one, generator=generator) for name, one in shapes.items()}
            self.whole.append(trained_whole(self.adapter, change))
            sent.append(first_message(self.manifest, Turn(number, rank), self.whole[-1]))
        return sent

    def second(self, client: int) -> dict[str, Tensor]:
        turn = Turn(self.number + 1, self.ranks[client])
        return second_message(self.manifest, turn, self.whole[client], self.adapter)

    def target(self, clients: list[int]) -> Tensor:
        products = [SCALE * self.whole[one][B].double() @ self.whole[one][A].double() for one in clients]
        return torch.stack(products).mean(dim=0)

    def sealed(self, updates: dict[int, dict[str, Tensor]]) -> Round:
        """The open round with updates of some clients, worked to its end."""
        self.number += 1
        with self.context.database.run_tx("test") as session:
            run = session.get_one(Run, self.run_id)
            opened = rounds_of(session, self.run_id)
            row = opened[-1] if opened else build_round(session, run=run, min_updates=1)
            session.execute(sa.update(Round).where(Round.id == row.id).values(adapter_sha256=self.state))
            clients = clients_of(session, run)
            for client, tensors in updates.items():
                file = update_file(tensors, wire_dtype=self.wire_dtype)
                digest = self.context.blobs.of(HOME).put(file)
                build_update(session, row, clients[client], blob_sha256=digest, size_bytes=len(file))
                session.execute(
                    sa.update(Assignment)
                    .where(Assignment.round_id == row.id, Assignment.client_id == clients[client])
                    .values(rank=None if self.ranks[client] == RANK else self.ranks[client])
                )
            session.execute(sa.update(Round).where(Round.id == row.id).values(state=RoundState.SEALED))
        return self.worked(row.id)

    def invited(self) -> list[int]:
        """Who is in the round that is open."""
        with self.context.database.run_tx("test") as session:
            run = session.get_one(Run, self.run_id)
            last = rounds_of(session, self.run_id)[-1]
            assert (last.number, last.state) == (self.number + 1, RoundState.OPEN)
            ids = session.scalars(sa.select(Assignment.client_id).where(Assignment.round_id == last.id))
            return sorted(clients_of(session, run).index(one) for one in ids)


@pytest.mark.parametrize(
    ("lora", "ranks"),
    [
        ({}, None),
        ({"ranks": [1, 2, 4]}, [1, 2, 4]),
        ({"ranks": [1, 2, 4], "rank_stabilized": True, "alpha": SCALE * RANK**0.5}, [1, 2, 4]),
        (OWN, None),
        (OWN_STABILIZED, None),
    ],
)
def test_two_rounds_release_the_nearest_adapter_of_the_mean_product(
    context: Context, lora: dict[str, Any], ranks: list[int] | None
) -> None:
    training = Sketching(context, plan("fedask", **lora), ranks=ranks)
    everyone = [0, 1, 2]
    for _step in (1, 2):
        before = training.started_from()
        training.sealed(dict(enumerate(training.first())))
        between = training.started_from()
        assert between.pop(f"{MODULE}{BASIS}").shape == (ROWS, min(3 * RANK, ROWS, COLUMNS))
        assert {name: one.tolist() for name, one in between.items()} == {
            name: one.tolist() for name, one in before.items()
        }
        released = training.release()[0]
        assert set(released) == {A, B, HEAD}
        assert all(torch.equal(released[name], before[name]) for name in released)  # not moved by a half
        blobs = context.blobs.of(HOME)
        start = load(blobs.read(start_of(blobs, training.state, blobs=blobs)))
        assert set(start) == {A, B, HEAD}  # what a run that continues this release starts from
        done = training.sealed({client: training.second(client) for client in everyone})
        wanted = training.target(everyone)
        u, values, vt = torch.linalg.svd(wanted)
        assert off(weight_change(training.release()), u[:, :RANK] * values[:RANK] @ vt[:RANK]) < 1e-5
        assert done.target_norm == pytest.approx(float(wanted.norm()), rel=1e-5)
        assert done.missed_norm == pytest.approx(float(values[RANK:].norm()), rel=1e-4)
        head = before[HEAD] + sum(one[HEAD] for one in training.whole) / 3
        assert off(training.release()[0][HEAD], head) < 1e-6


def test_the_second_round_asks_only_those_of_the_first_and_is_exact_for_those_who_answer(
    context: Context,
) -> None:
    training = Sketching(context, plan("fedask", clients=4, ranks=[2, 4]), ranks=[2, 4, 2, 2])
    first = training.first()
    training.sealed({client: first[client] for client in (0, 1, 3)})
    assert training.invited() == [0, 1, 3]
    training.sealed({client: training.second(client) for client in (0, 3)})
    assert off(weight_change(training.release()), training.target([0, 3])) < 1e-5
    assert training.invited() == [0, 1, 2, 3]


def test_a_narrow_sketch_is_smaller_and_near(context: Context) -> None:
    training = Sketching(context, plan("fedask", sketch_width=6))
    training.sealed(dict(enumerate(training.first())))
    sent = training.second(0)
    assert (sent[A].shape, sent[HEAD].shape) == ((6, COLUMNS), (2, COLUMNS))
    training.sealed({client: training.second(client) for client in range(3)})
    values = torch.linalg.svdvals(training.target([0, 1, 2]))
    missed = float((weight_change(training.release()) - training.target([0, 1, 2])).norm())
    assert float(values[RANK:].norm()) <= missed < float(values.norm())


def test_a_round_whose_first_half_was_aborted_keeps_its_number_and_is_passed_over(context: Context) -> None:
    """By their numbers clients know when to train, and are charged."""
    training = Sketching(context, plan("fedask"))
    with context.database.run_tx("test") as session:
        run = session.get_one(Run, training.run_id)
        run.start_adapter_sha256 = training.state
        row = build_round(session, run=run, min_updates=1)
        lifecycle.abort(session, row.id, code="quorum_lost", reason="", actor="test")
        service.after_abort(session, run.id, code="quorum_lost", reason="", actor="test")
        session.expire_all()
        assert run.state is RunState.PAUSED
        coordinator = Principal(id=new_id(), organisation_id=run.organisation_id, role=Role.COORDINATOR)
        service.resume(session, coordinator, run.id, region=None)
        found = [(one.number, one.state, one.abort_code) for one in rounds_of(session, run.id)]
    assert found == [
        (1, RoundState.ABORTED, "quorum_lost"),
        (2, RoundState.ABORTED, "nothing_to_finish"),
        (3, RoundState.OPEN, None),
    ]


@pytest.mark.parametrize("order", [None, 8.0])
def test_accounts_pay_for_the_rounds_that_train_and_never_less_than_was_sent(
    session: Session, order: float | None
) -> None:
    """The account counts updates: whoever sends in rounds 1 and 3 alone has trained twice."""
    private = {"trust": "local", "epsilon": None, "noise_multiplier": 2.0}
    document = plan("fedask")
    document["privacy"] = tiny_manifest()["privacy"] | private
    manifest = Manifest.model_validate(document)
    half = Manifest.model_validate(document | {"lora": document["lora"] | {"method": "fedit"}, "rounds": 2})
    price, cost = (price_of(one, orders=(8.0,)) for one in (manifest, half))
    one, two = cost["epsilon_by_round"]
    assert (manifest.steps, price["epsilon"], price["rdp"]) == (half.steps, cost["epsilon"], cost["rdp"])
    assert price["epsilon_by_round"] == [one, two, two, two]
    frozen = document | {"privacy": document["privacy"] | {"epsilon": price["epsilon"]}}
    held = terms_of(FrozenManifest(canonical_bytes(frozen)), run_id="r", client_id="c", server="s")
    run = build_run(session, clients=1, manifest=frozen)
    run.price = price
    client = session.get_one(Client, clients_of(session, run)[0])
    build_account(session, client, order=order, epsilon=300.0)
    account = accounts_of_clients(session, [client.id])[client.id]
    parts = [charge.amount for charge in schedule(run, account)]
    assert sum(parts) == reservation(run, account).amount
    assert (parts[2:], min(parts[:2]) > 0) == ([0, 0], True)
    if order is None:
        assert (sum(parts), parts[0]) == (held.epsilon, held.epsilon_by_round[0])
