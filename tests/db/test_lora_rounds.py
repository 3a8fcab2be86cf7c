"""LoRA methods in real rounds: what comes out of the jobs is the mean of the clients' weight changes."""

from __future__ import annotations

from pathlib import Path
from typing import Any
from uuid import UUID

import pytest
import sqlalchemy as sa
import torch
from safetensors.torch import load
from torch import Tensor

from app.core.canonical import canonical_sha256
from app.core.db import Database
from app.releases.models import Release
from app.rounds.models import Assignment, Round
from app.rounds.queries import rounds_of
from app.rounds.states import RoundState
from app.runs.methods import is_trained, sent_shapes
from app.runs.models import Run
from app.runs.rounds import open_next
from client.update_file import update_file
from engines.lora.adapter import initial_adapter
from engines.lora.factors import pairs_of
from engines.lora.patterns import LoraPattern
from engines.lora.states import parted
from tests.builders import HOME, build_round, build_run, build_update, clients_of, tiny_manifest
from tests.worker_bench import context_for, round_of, work
from workers.context import Context
from workers.handlers import aggregate, publish, validate
from workers.tensors import write_tensors

MODULE = "base_model.model.bert.encoder.layer.5.attention.self.query"
A, B, HEAD = f"{MODULE}.lora_A.weight", f"{MODULE}.lora_B.weight", "base_model.model.classifier.weight"
CORE, BASIS = f"{MODULE}.lora_B.core.weight", f"{MODULE}.lora_B.basis.weight"
ROWS, COLUMNS, RANK, ALPHA = 12, 10, 4, 6.0
SCALE = ALPHA / RANK
_PATH = MODULE.removeprefix("base_model.model.")
OWN: dict[str, Any] = {
    "rank": 2,
    "alpha": 1.0,
    "rank_pattern": {_PATH: RANK},
    "alpha_pattern": {_PATH: ALPHA},
}
"""A run of another rank and alpha, whose one module has these for itself."""
OWN_STABILIZED = OWN | {"rank_stabilized": True, "alpha_pattern": {_PATH: SCALE * RANK**0.5}}
OPEN = {"trust": "none", "clip_norm": None, "epsilon": None, "delta": None}


@pytest.fixture
def context(database: Database, tmp_path: Path) -> Context:
    return context_for(database, tmp_path)


def plan(method: str, *, clients: int = 3, **lora: Any) -> dict[str, Any]:
    """A plan of one adapted module of 12 x 10 at rank 4, with a head."""
    shapes = {A: [RANK, COLUMNS], B: [ROWS, RANK], HEAD: [2, COLUMNS]}
    if method == "fedsb":
        shapes = {A: [RANK, COLUMNS], CORE: [RANK, RANK], BASIS: [ROWS, RANK], HEAD: [2, COLUMNS]}
    made = tiny_manifest(
        lora={"method": method, "rank": RANK, "alpha": ALPHA} | lora,
        privacy=OPEN,
        rounds=4,
        quorum={"min_updates": 1, "max_updates": clients},
    )
    made["tensors"] = [
        {"name": name, "shape": shape, "trained": is_trained(method, name)}
        for name, shape in sorted(shapes.items())
    ]
    return made


def changes(
    manifest: dict[str, Any], *, number: int, ranks: list[int], seed: int = 0
) -> list[dict[str, Tensor]]:
    """What clients of these ranks send: random, of the size of the factors."""
    generator = torch.Generator().manual_seed(100 * seed + number)
    return [
        {
            name: 0.3 * torch.randn(shape, generator=generator)
            for name, shape in sent_shapes(manifest, number=number, rank=rank).items()
        }
        for rank in ranks
    ]


class Training:
    """A run whose rounds are sent to by hand and worked by the real jobs."""

    def __init__(self, context: Context, manifest: dict[str, Any], *, ranks: list[int] | None = None) -> None:
        self.context, self.manifest = context, manifest
        self.wire_dtype = manifest["aggregation"].get("wire_dtype", "float32")
        clients = manifest["quorum"]["max_updates"]
        self.ranks = ranks or [RANK] * clients
        first = initial_adapter(manifest["tensors"], manifest["lora"]["seed"], trained_only=True)
        self.state, _size = write_tensors(context.blobs.of(HOME), first)
        with context.database.run_tx("test") as session:
            run = build_run(session, clients=clients, manifest=manifest)
            run.manifest_sha256 = canonical_sha256(manifest)
            self.run_id = run.id
        self.number = 0

    def started_from(self) -> dict[str, Tensor]:
        return load(self.context.blobs.of(HOME).read(self.state))

    def round(self, updates: list[dict[str, Tensor]]) -> Round:
        """One round with these updates, in the order of client ids, to its end."""
        self.number += 1
        with self.context.database.run_tx("test") as session:
            run = session.get_one(Run, self.run_id)
            opened = rounds_of(session, self.run_id)  # by the job that published the last one
            row = opened[-1] if opened else build_round(session, run=run, min_updates=1)
            session.execute(sa.update(Round).where(Round.id == row.id).values(adapter_sha256=self.state))
            for client_id, rank, tensors in zip(clients_of(session, run), self.ranks, updates, strict=True):
                file = update_file(tensors, wire_dtype=self.wire_dtype)
                digest = self.context.blobs.of(HOME).put(file)
                build_update(session, row, client_id, blob_sha256=digest, size_bytes=len(file))
                session.execute(
                    sa.update(Assignment)
                    .where(Assignment.round_id == row.id, Assignment.client_id == client_id)
                    .values(rank=None if rank == RANK else rank)
                )
            session.execute(sa.update(Round).where(Round.id == row.id).values(state=RoundState.SEALED))
        return self.worked(row.id)

    def worked(self, round_id: UUID) -> Round:
        for handler, kind in ((aggregate, "aggregate"), (validate, "validate"), (publish, "publish")):
            work(self.context, handler.run, kind, round_id)
        done = round_of(self.context.database, round_id)
        assert done.state is RoundState.PUBLISHED, done.abort_code
        assert done.candidate_sha256 is not None
        self.state = done.candidate_sha256
        return done

    def release(self) -> tuple[dict[str, Tensor], dict[str, Any]]:
        """The last release's file and configuration."""
        with self.context.database.run_tx("test") as session:
            row = session.scalars(
                sa.select(Release).where(Release.run_id == self.run_id).order_by(Release.number.desc())
            ).first()
            assert row is not None
            return load(self.context.blobs.of(HOME).read(row.adapter_sha256)), row.adapter_config


def weight_change(release: tuple[dict[str, Tensor], dict[str, Any]]) -> Tensor:
    """What a runtime that knows PEFT's format adds to the base weight."""
    tensors, config = release
    pattern = LoraPattern(
        config["r"],
        config["lora_alpha"],
        config["rank_pattern"],
        config["alpha_pattern"],
        rank_stabilized=config["use_rslora"],
    )
    pair = pairs_of(tensors, pattern)[MODULE].wide()
    return pair.scale * (pair.b @ pair.a)


def target(start: dict[str, Tensor], updates: list[dict[str, Tensor]], ranks: list[int]) -> Tensor:
    """The mean of s B_i A_i over whole factors, plus what the base weight took up before."""
    trained, base = parted(start)
    total = torch.zeros(ROWS, COLUMNS, dtype=torch.float64)
    for update, rank in zip(updates, ranks, strict=True):
        b = trained[B].double()[:, :rank] + update[B].double()
        a = trained[A].double()[:rank] + update[A].double()
        total += SCALE * (b @ a) / len(updates)
    if MODULE in base:
        total += base[MODULE].b.double() @ base[MODULE].a.double()
    return total


def off(found: Tensor, wanted: Tensor) -> float:
    return float((found - wanted).norm() / wanted.norm())


@pytest.mark.parametrize("own", [{}, OWN, OWN_STABILIZED], ids=["run", "module", "module, stabilized"])
@pytest.mark.parametrize("method", ["flora", "fedex"])
def test_a_release_is_the_mean_of_products_round_after_round(
    context: Context, method: str, own: dict[str, Any]
) -> None:
    training = Training(context, plan(method, **own))
    for number in (1, 2, 3):
        start, updates = (
            training.started_from(),
            changes(training.manifest, number=number, ranks=training.ranks),
        )
        training.round(updates)
        assert off(weight_change(training.release()), target(start, updates, training.ranks)) < 1e-5
        assert off(training.release()[0][HEAD], start[HEAD] + sum(one[HEAD] for one in updates) / 3) < 1e-6


def test_flora_starts_every_round_from_another_a_and_no_b(context: Context) -> None:
    training, starts = Training(context, plan("flora")), []
    for number in (1, 2):
        training.round(changes(training.manifest, number=number, ranks=training.ranks))
        starts.append(training.started_from())
        assert not starts[-1][B].any()
    assert off(starts[0][A], starts[1][A]) > 0.5


@pytest.mark.parametrize("own", [{}, OWN, OWN_STABILIZED], ids=["run", "module", "module, stabilized"])
def test_flexlora_releases_the_nearest_adapter_and_says_what_it_cut_off(
    context: Context, own: dict[str, Any]
) -> None:
    training = Training(context, plan("flexlora", **own))
    for number in (1, 2):
        start, updates = (
            training.started_from(),
            changes(training.manifest, number=number, ranks=training.ranks),
        )
        done = training.round(updates)
        wanted = target(start, updates, training.ranks)
        values = torch.linalg.svdvals(wanted)
        missed = float((weight_change(training.release()) - wanted).norm())
        assert missed == pytest.approx(float(values[RANK:].norm()), rel=1e-4)
        assert (done.target_norm, done.missed_norm) == pytest.approx((float(values.norm()), missed), rel=1e-4)


def test_fedit_releases_the_mean_of_factors_and_reports_their_covariance(context: Context) -> None:
    training = Training(context, plan("fedit"))
    start, updates = training.started_from(), changes(training.manifest, number=1, ranks=training.ranks)
    done = training.round(updates)
    b, a = (start[name] + sum(one[name] for one in updates) / 3 for name in (B, A))
    assert off(weight_change(training.release()), SCALE * (b @ a).double()) < 1e-6
    left = target(start, updates, training.ranks) - SCALE * (b.double() @ a.double())
    assert done.missed_norm == pytest.approx(float(left.norm()), rel=1e-5)
    assert float(left.norm()) > 0.1 * float(b.norm())


def test_rolora_takes_b_in_odd_rounds_and_a_in_even_ones(context: Context) -> None:
    training = Training(context, plan("rolora"))
    for number, moved, still in ((1, B, A), (2, A, B)):
        start, updates = (
            training.started_from(),
            changes(training.manifest, number=number, ranks=training.ranks),
        )
        assert {moved, HEAD} == set(updates[0])
        training.round(updates)
        after = training.started_from()
        assert torch.equal(after[still], start[still])
        assert off(after[moved], start[moved] + sum(one[moved] for one in updates) / 3) < 1e-6


def test_fedsb_releases_the_mean_core_between_its_bases(context: Context) -> None:
    training = Training(context, plan("fedsb"))
    updates = changes(training.manifest, number=1, ranks=training.ranks)
    training.round(updates)
    core, files = sum(one[CORE] for one in updates) / 3, training.release()[0]
    assert set(files) == {A, B, HEAD}
    whole = weight_change(training.release())
    assert float(whole.norm()) == pytest.approx(SCALE * float(core.norm()), rel=1e-5)  # orthonormal bases


def test_fedsa_releases_the_mean_a_and_no_b(context: Context) -> None:
    training = Training(context, plan("fedsa"))
    start, updates = training.started_from(), changes(training.manifest, number=1, ranks=training.ranks)
    assert set(updates[0]) == {A, HEAD}
    training.round(updates)
    files = training.release()[0]
    assert off(files[A], start[A] + sum(one[A] for one in updates) / 3) < 1e-6
    assert not files[B].any()


@pytest.mark.parametrize("method", ["flexlora", "flora"])
def test_products_of_mixed_ranks_are_averaged_exactly(context: Context, method: str) -> None:
    ranks = [1, 2, 4]
    training = Training(context, plan(method, ranks=ranks), ranks=ranks)
    for number in (1, 2):
        start, updates = training.started_from(), changes(training.manifest, number=number, ranks=ranks)
        training.round(updates)
        wanted = target(start, updates, ranks)
        u, values, vt = torch.linalg.svd(wanted)
        if method == "flexlora":
            wanted = u[:, :RANK] * values[:RANK] @ vt[:RANK]
        assert off(weight_change(training.release()), wanted) < 1e-5


@pytest.mark.parametrize("method", ["ffa", "rolora", "fedsb"])
def test_a_smaller_rank_moves_the_first_corner_of_what_is_averaged(context: Context, method: str) -> None:
    ranks = [1, 2, 4]
    training = Training(context, plan(method, ranks=ranks), ranks=ranks)
    start, updates = training.started_from(), changes(training.manifest, number=1, ranks=ranks)
    training.round(updates)
    after = training.started_from()
    for name in updates[0]:
        wanted = start[name].clone()
        for update in updates:
            rows, columns = update[name].shape
            wanted[:rows, :columns] += update[name] / 3
        assert off(after[name], wanted) < 1e-6


def test_the_leading_columns_of_a_decomposed_state_are_the_nearest_of_each_smaller_rank(
    context: Context,
) -> None:
    training = Training(context, plan("flexlora", ranks=[1, 2, 4]))
    training.round(changes(training.manifest, number=1, ranks=training.ranks))
    state = training.started_from()
    whole = SCALE * state[B].double() @ state[A].double()
    for rank in (1, 2):
        cut = SCALE * state[B].double()[:, :rank] @ state[A].double()[:rank]
        values = torch.linalg.svdvals(whole)
        assert float((whole - cut).norm()) == pytest.approx(float(values[rank:].norm()), rel=1e-4)


def test_an_energy_threshold_releases_fewer_directions_and_lets_the_others_be_trained(
    context: Context,
) -> None:
    training = Training(context, plan("flexlora", energy=0.6))
    start, updates = training.started_from(), changes(training.manifest, number=1, ranks=training.ranks)
    training.round(updates)
    energy = torch.linalg.svdvals(target(start, updates, training.ranks)).square()
    kept = int((energy.cumsum(0) < 0.6 * energy.sum()).sum()) + 1
    files, config = training.release()
    assert 1 <= kept < RANK
    assert files[A].shape[0] == kept == next(iter(config["rank_pattern"].values()))
    state = training.started_from()
    assert not state[B][:, kept:].any()
    assert bool(state[A][kept:].any(dim=1).all())


@pytest.mark.parametrize("rule", ["krum", "multi_krum", "mda", "geometric_median"])
def test_a_hostile_product_does_not_move_a_round_of_decompositions(context: Context, rule: str) -> None:
    """Every hostile factor is small; only their product is large."""
    manifest = plan("flexlora", clients=7)
    manifest["aggregation"] |= {"rule": rule, "faulty": 1}
    training = Training(context, manifest)
    updates = changes(manifest, number=1, ranks=training.ranks[:6])
    for one in updates:
        one[B] *= 0.1
    hostile = {name: 0.0 * tensor for name, tensor in updates[0].items()}
    hostile[B], hostile[A] = 3.0 * torch.ones(ROWS, RANK), 3.0 * torch.ones(RANK, COLUMNS)
    training.round([*updates, hostile])
    assert float(weight_change(training.release()).norm()) < 0.1 * SCALE * float(
        (hostile[B] @ hostile[A]).norm()
    )


@pytest.mark.parametrize("method", ["flexlora", "flora", "fedex"])
def test_an_update_that_is_not_finite_leaves_no_trace_in_a_round_of_products(
    context: Context, method: str
) -> None:
    states = []
    for broken in (False, True):
        training = Training(context, plan(method, clients=4 if broken else 3))
        updates = changes(training.manifest, number=1, ranks=[RANK] * 3)
        if broken:
            bad = {name: tensor.clone() for name, tensor in updates[0].items()}
            bad[B][-1, -1] = torch.nan
            updates = [*updates, bad]
        training.round(updates)
        states.append(training.state)
    assert states[0] == states[1]


def test_two_rounds_of_a_run_are_independent(context: Context) -> None:
    """An accumulator that is not emptied would add the first round to the second."""
    alone = Training(context, plan("fedex"))
    first = changes(alone.manifest, number=1, ranks=alone.ranks)
    alone.round([{name: 0.0 * one for name, one in update.items()} for update in first])
    assert float(weight_change(alone.release()).norm()) < 1e-6
    alone.round(first)
    once = weight_change(alone.release())
    other = Training(context, plan("fedex"))
    other.round(first)
    assert off(once, weight_change(other.release())) < 1e-6


def test_rounds_give_every_client_the_largest_rank_that_fits_what_it_declared(context: Context) -> None:
    """16 bytes for each of 42, 64 and 108 numbers at ranks 1, 2 and 4, heads included."""
    manifest = plan("flexlora", clients=3, ranks=[1, 2, 4])
    with context.database.run_tx("test") as session:
        run = build_run(session, clients=3, manifest=manifest)
        run.start_adapter_sha256 = "a" * 64
        for client_id, memory_bytes in zip(clients_of(session, run), (100, 700, 10**6), strict=True):
            session.execute(
                sa.text(
                    "UPDATE clients SET capability = jsonb_set(capability, '{memory_bytes}', to_jsonb(:n)) "
                    "WHERE id = :id"
                ),
                {"n": memory_bytes, "id": client_id},
            )
        session.expire_all()
        open_next(session, session.get_one(Run, run.id), actor="test")
        opened = rounds_of(session, run.id)[0]
        given = session.scalars(
            sa.select(Assignment.rank).where(Assignment.round_id == opened.id).order_by(Assignment.client_id)
        ).all()
    assert list(given) == [1, 1, 4]
