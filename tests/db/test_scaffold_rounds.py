"""SCAFFOLD in real rounds: the server's c is the mean of the clients' c_i, whatever was counted or not."""

from __future__ import annotations

import math
from collections.abc import Mapping
from pathlib import Path
from typing import Any
from uuid import UUID

import pytest
import sqlalchemy as sa
import torch
from safetensors.torch import save
from torch import Tensor

from app.core.db import Database
from app.core.ids import new_id
from app.identity.roles import Principal, Role
from app.rounds import lifecycle, standing
from app.rounds.models import Round
from app.rounds.queries import cohort_of, rounds_of
from app.rounds.states import RoundState, Step
from app.runs import service
from app.runs.models import Run
from app.runs.queries import assignments_of
from app.runs.states import RunState
from client.training import Training as Plan
from client.turns import Turn
from client.update_file import update_file
from client.variates import next_variate
from engines.aggregation.client_terms import corrected_gradient
from engines.lora.states import VARIATE, parted, variates_in
from tests.builders import HOME, build_round, build_update, clients_of
from tests.db.test_lora_rounds import Training, plan
from tests.worker_bench import context_for, round_of, work
from workers.context import Context
from workers.handlers import aggregate
from workers.sketches import start_of

STEPS, RATE, CLIENTS = 5, 0.1, 3
CURVATURE = (0.5, 1.0, 4.0)


@pytest.fixture
def context(database: Database, tmp_path: Path) -> Context:
    return context_for(database, tmp_path)


def scaffold(method: str = "ffa", *, rounds: int = 12) -> dict[str, Any]:
    made = plan(method, clients=CLIENTS)
    training = {"learning_rate": RATE, "local_steps": STEPS, "momentum": 0.0, "control_variates": "scaffold"}
    return made | {"rounds": rounds, "training": made["training"] | training}


class Quadratics(Training):
    """Clients whose losses are quadratics of different curvature about different optima.

    Each keeps a c_i for every round that it sent in, by the client's own code, and goes on from that of the
    round which the server says it counted.
    """

    def __init__(self, context: Context, manifest: dict[str, Any]) -> None:
        super().__init__(context, manifest)
        generator = torch.Generator().manual_seed(7)
        trained, _base = parted(self.started_from())
        self.optima = [
            {name: torch.randn(one.shape, generator=generator) for name, one in trained.items()}
            for _ in range(CLIENTS)
        ]
        self.kept: list[dict[int, dict[str, Tensor]]] = [{} for _ in range(CLIENTS)]
        with context.database.run_tx("test") as session:
            session.get_one(Run, self.run_id).start_adapter_sha256 = self.state
        self.plan = Plan.model_validate(manifest["training"])

    def best(self) -> dict[str, Tensor]:
        """Where the sum of all clients' losses is least."""
        return {
            name: sum((c * one[name] for c, one in zip(CURVATURE, self.optima, strict=True)), torch.zeros(()))
            / sum(CURVATURE)
            for name in self.optima[0]
        }

    def counted(self) -> list[int | None]:
        """What the server tells each client in its assignment to the round that is open."""
        with self.context.database.run_tx("test") as session:
            told = []
            for client in clients_of(session, session.get_one(Run, self.run_id)):
                found = [one.counted for one in assignments_of(session, client) if one.run.id == self.run_id]
                told.append(found[0] if found else None)
            return told

    def own(self, client: int) -> dict[str, Tensor] | None:
        counted = self.counted()[client]
        return None if counted is None else self.kept[client][counted]

    def trained(self, client: int) -> dict[str, Tensor]:
        """A client's update for the open round; what would follow from it is kept."""
        state, own = self.started_from(), self.own(client)
        start, shared = parted(state)[0], variates_in(state)
        update = {}
        for name, first in start.items():
            now, mine = first, torch.zeros_like(first) if own is None else own[name]
            for _ in range(STEPS):
                gradient = CURVATURE[client] * (now - self.optima[client][name])
                if self.plan.control_variates == "scaffold":
                    gradient = corrected_gradient(gradient, mine, shared[name])
                now = now - RATE * gradient
            update[name] = now - first
        turn = Turn(self.number, variate=own)
        self.kept[client][self.number] = next_variate(self.plan, turn, save(state), update)
        return update

    def opened(self) -> UUID:
        """The round that is open, from the state as it is."""
        with self.context.database.run_tx("test") as session:
            run, former = session.get_one(Run, self.run_id), rounds_of(session, self.run_id)
            row = (
                former[-1]
                if former
                else build_round(session, run=run, min_updates=1, adapter_sha256=self.state)
            )
            assert (row.state, row.adapter_sha256) == (RoundState.OPEN, self.state)
            self.number = row.number
            return row.id

    def sent(self, round_id: UUID, updates: Mapping[int, dict[str, Tensor]]) -> None:
        """These clients' updates arrive, and the round is sealed."""
        with self.context.database.run_tx("test") as session:
            row = session.get_one(Round, round_id)
            clients = clients_of(session, session.get_one(Run, self.run_id))
            for client, tensors in updates.items():
                file = update_file(tensors, wire_dtype="float32")
                digest = self.context.blobs.of(HOME).put(file)
                build_update(session, row, clients[client], blob_sha256=digest, size_bytes=len(file))
            session.execute(sa.update(Round).where(Round.id == round_id).values(state=RoundState.SEALED))

    def whole_round(self, *clients: int) -> None:
        round_id = self.opened()
        self.sent(round_id, {client: self.trained(client) for client in clients})
        self.worked(round_id)

    def require_mean(self, held: list[dict[str, Tensor] | None]) -> None:
        """c is the mean of these c_i over all clients of the run, None being zero."""
        for name, shared in variates_in(self.started_from()).items():
            mean = sum((one[name] for one in held if one is not None), torch.zeros_like(shared)) / CLIENTS
            assert torch.allclose(shared, mean, atol=1e-5), name

    def resumed(self) -> None:
        with self.context.database.run_tx("test") as session:
            run = session.get_one(Run, self.run_id)
            assert run.state is RunState.PAUSED
            coordinator = Principal(id=new_id(), organisation_id=run.organisation_id, role=Role.COORDINATOR)
            service.resume(session, coordinator, run.id, region=None)

    def off(self) -> float:
        """How far the adapter is from the common optimum."""
        state, best = parted(self.started_from())[0], self.best()
        return math.sqrt(sum(float((state[name] - one).square().sum()) for name, one in best.items()))


@pytest.mark.parametrize("method", ["ffa", "fedsb"])
def test_rounds_come_to_the_common_optimum_and_c_is_the_mean_of_all_c_i(
    context: Context, method: str
) -> None:
    training = Quadratics(context, scaffold(method))
    for number in range(1, 9):
        training.whole_round(0, 1, 2)
        training.require_mean([one[number] for one in training.kept])
    drifting = scaffold(method) | {"training": scaffold()["training"] | {"control_variates": "none"}}
    plain = Quadratics(context, drifting)
    for _ in range(8):
        plain.whole_round(0, 1, 2)
    assert training.off() < 0.1 * plain.off()
    assert not any(name.endswith(VARIATE) for name in plain.started_from())


def test_rounds_are_the_paper_s_with_some_of_the_clients_in_each(context: Context) -> None:
    """Against the paper's own loop in float64: c moves by |S| / N of the mean change of c_i."""
    training = Quadratics(context, scaffold())
    optima = [{name: one.double() for name, one in each.items()} for each in training.optima]
    at = {name: one.double() for name, one in parted(training.started_from())[0].items()}
    shared = {name: torch.zeros_like(one) for name, one in at.items()}
    own = [{name: torch.zeros_like(one) for name, one in at.items()} for _ in range(CLIENTS)]
    for cohort in ((0, 1, 2), (0, 2), (1,), (1, 2), (0, 1, 2)):
        training.whole_round(*cohort)
        for name, first in at.items():
            ends, moved = [], []
            for client in cohort:
                now = first
                for _ in range(STEPS):
                    gradient = CURVATURE[client] * (now - optima[client][name])
                    now = now - RATE * (gradient - own[client][name] + shared[name])
                fresh = own[client][name] - shared[name] + (first - now) / (STEPS * RATE)
                moved.append(fresh - own[client][name])
                own[client][name] = fresh
                ends.append(now)
            at[name] = torch.stack(ends).mean(dim=0)
            shared[name] = shared[name] + len(cohort) / CLIENTS * torch.stack(moved).mean(dim=0)
        state = training.started_from()
        for name, one in at.items():
            assert torch.allclose(state[name].double(), one, atol=1e-5)
            assert torch.allclose(state[f"{name}{VARIATE}"].double(), shared[name], atol=1e-5)


def test_what_is_not_counted_moves_neither_c_nor_any_c_i(context: Context) -> None:
    """A missing update, a rejected one, and a round that was aborted after everybody had sent."""
    training = Quadratics(context, scaffold())
    training.whole_round(0, 1, 2)
    training.whole_round(1, 2)
    broken = training.opened()
    updates = {client: training.trained(client) for client in (0, 1, 2)}
    updates[1] = {name: torch.full_like(one, torch.nan) for name, one in updates[1].items()}
    training.sent(broken, updates)
    training.worked(broken)
    aborted = training.opened()
    assert training.counted() == [3, 2, 3]
    before = training.state
    training.sent(aborted, {client: training.trained(client) for client in (0, 1, 2)})
    with context.database.run_tx("test") as session:
        lifecycle.abort(session, aborted, code="stopped", reason="", actor="test")
        service.after_abort(session, training.run_id, code="stopped", reason="", actor="test")
    training.resumed()
    training.opened()
    assert (training.number, training.counted(), training.state) == (5, [3, 2, 3], before)
    training.require_mean([training.own(client) for client in range(CLIENTS)])
    training.whole_round(0, 1, 2)
    training.require_mean([one[5] for one in training.kept])


def test_an_update_of_a_round_that_is_not_published_yet_is_not_counted(context: Context) -> None:
    training = Quadratics(context, scaffold())
    round_id = training.opened()
    training.sent(round_id, {0: training.trained(0)})
    work(context, aggregate.run, "aggregate", round_id)
    assert round_of(context.database, round_id).state is RoundState.VALIDATING
    with context.database.run_tx("test") as session:
        run = session.get_one(Run, training.run_id)
        build_round(session, run=run, number=2, min_updates=1)
    assert training.counted() == [None, None, None]


def test_who_does_not_count_whole_is_not_invited_and_who_is_invited_counts_whole(context: Context) -> None:
    """A client that counts half would have a c_i of which only a part is in c."""
    training = Quadratics(context, scaffold())
    round_id = training.opened()
    updates = {client: training.trained(client) for client in range(CLIENTS)}
    with context.database.run_tx("test") as session:
        clients = clients_of(session, session.get_one(Run, training.run_id))
        stand = standing.Stand(Step.DISCOUNT, 3.0)
        standing.step_after_round(session, clients[1], round_id, odd=True, stand=stand, actor="test")
    training.sent(round_id, updates)
    training.worked(round_id)
    training.require_mean([one[1] for one in training.kept])
    with context.database.run_tx("test") as session:
        assert list(cohort_of(session, rounds_of(session, training.run_id)[-1].id)) == [
            clients[0],
            clients[2],
        ]


def test_another_run_starts_without_c_and_a_release_has_none(context: Context) -> None:
    training = Quadratics(context, scaffold())
    training.whole_round(0, 1, 2)
    assert not any(VARIATE in name for name in training.release()[0])
    state = training.started_from()
    training.state = start_of(context.blobs.of(HOME), training.state, blobs=context.blobs.of(HOME))
    assert training.started_from().keys() == {name for name in state if VARIATE not in name}


def test_without_control_variates_an_assignment_says_nothing_of_what_counted(context: Context) -> None:
    plain = Quadratics(context, plan("ffa", clients=CLIENTS))
    plain.whole_round(0, 1, 2)
    plain.opened()
    assert plain.counted() == [None, None, None]
