"""Robust rules in real rounds: a hostile update each, refusals after dropout, evidence and the ladder."""

from __future__ import annotations

from pathlib import Path
from typing import Any
from uuid import UUID

import numpy as np
import pytest
import sqlalchemy as sa
import torch
from safetensors.numpy import load
from safetensors.torch import load as load_tensors
from sqlalchemy.exc import IntegrityError
from torch import Tensor

from app.core.db import Database
from app.core.ids import new_id
from app.identity.roles import Principal, Role
from app.releases.models import Release
from app.rounds import standing
from app.rounds.models import Assignment, Evidence, Round, Standing
from app.rounds.queries import rounds_of
from app.rounds.states import RoundState, Step
from app.runs import robust as robust_rules
from app.runs.models import Run
from app.runs.rounds import open_next, optimizer_state
from tests.builders import HOME, build_round, build_run, build_update, clients_of, tiny_manifest
from tests.worker_bench import build_sealed, context_for, round_of, run_of, trained, work
from workers.context import Context
from workers.handlers import aggregate, publish, validate
from workers.tensors import write_tensors

CLIENTS = 8
RULES: dict[str, dict[str, Any]] = {
    "trimmed_mean": {},
    "median": {},
    "meamed": {},
    "krum": {},
    "multi_krum": {"chosen": 3},
    "bulyan": {},
    "mda": {},
    "dnc": {},
    "geometric_median": {},
    "centered_clipping": {"radius": 1.0, "iterations": 20},
}


@pytest.fixture
def context(database: Database, tmp_path: Path) -> Context:
    return context_for(database, tmp_path)


def robust(rule: str = "trimmed_mean", **changes: Any) -> dict[str, Any]:
    usual = {"rule": rule, "faulty": 1, "settings": RULES.get(rule, {})}
    return tiny_manifest(
        aggregation=usual | changes, quorum={"min_updates": 2, "max_updates": CLIENTS}, rounds=40
    )


def honest(count: int = CLIENTS - 1, *, seed: int = 1) -> list[dict[str, Tensor]]:
    """Updates near 1 in every coordinate."""
    generator = torch.Generator().manual_seed(seed)
    return [
        {name: 1.0 + 0.1 * torch.randn(one.shape, generator=generator) for name, one in trained(0.0).items()}
        for _client in range(count)
    ]


def change_of(context: Context, round_id: UUID) -> Tensor:
    """The step that a round made, as one vector."""
    row = round_of(context.database, round_id)
    assert row.candidate_sha256 is not None, row.abort_code
    after = load_tensors(context.blobs.of(HOME).read(row.candidate_sha256))
    before = load_tensors(context.blobs.of(HOME).read(row.adapter_sha256))
    return torch.cat([(after[name] - before[name]).reshape(-1) for name in sorted(after)])


def aggregated(context: Context, updates: list[dict[str, Tensor]], manifest: dict[str, Any]) -> UUID:
    round_id = build_sealed(context, updates, manifest=manifest)
    work(context, aggregate.run, "aggregate", round_id)
    return round_id


def evidence_of(context: Context, round_id: UUID) -> list[Evidence]:
    with context.database.run_tx("test") as session:
        return list(
            session.scalars(
                sa.select(Evidence).where(Evidence.round_id == round_id).order_by(Evidence.client_id)
            )
        )


@pytest.mark.parametrize(
    ("rule", "mixing"),
    [
        (rule, mixing)
        for rule in sorted(RULES)
        for mixing in ("none", "nearest_neighbours", "buckets")
        if mixing != "buckets" or robust_rules.RULES[rule].holds(CLIENTS // 2, 1)
    ],
)
def test_one_hostile_update_does_not_move_a_robust_round(context: Context, rule: str, mixing: str) -> None:
    round_id = aggregated(context, [*honest(), trained(-100.0)], robust(rule, mixing=mixing))
    assert (change_of(context, round_id) - 1.0).abs().max() < 0.6


def test_the_plain_mean_is_moved_by_one_hostile_update(context: Context) -> None:
    round_id = aggregated(context, [*honest(), trained(-100.0)], tiny_manifest())
    assert change_of(context, round_id).mean() < -10.0


@pytest.mark.parametrize("mixing", ["none", "nearest_neighbours"])
@pytest.mark.parametrize("rule", ["mean", "trimmed_mean", "geometric_median"])
def test_the_order_of_arrival_changes_no_bit(context: Context, rule: str, mixing: str) -> None:
    manifest, updates = robust(rule, mixing=mixing, faulty=int(rule != "mean")), honest(CLIENTS)
    digests = set()
    for arrival in (range(CLIENTS), np.random.default_rng(3).permutation(CLIENTS).tolist()):
        with context.database.run_tx("test") as session:
            run = build_run(session, clients=CLIENTS, manifest=manifest)
            ids = clients_of(session, run)
            start, _size = write_tensors(context.blobs.of(HOME), trained(0.5))
            row = build_round(session, RoundState.OPEN, run=run, adapter_sha256=start)
            for number in arrival:
                digest, size = write_tensors(context.blobs.of(HOME), updates[number])
                build_update(session, row, ids[number], blob_sha256=digest, size_bytes=size)
            session.execute(sa.update(Round).where(Round.id == row.id).values(state=RoundState.SEALED))
        work(context, aggregate.run, "aggregate", row.id)
        digests.add(round_of(context.database, row.id).candidate_sha256)
    assert len(digests) == 1


def test_a_rejected_update_leaves_no_trace_in_a_robust_round(context: Context) -> None:
    broken = trained(1.0)
    next(iter(broken.values())).view(-1)[-1] = torch.nan
    manifest = robust(mixing="nearest_neighbours")
    alone = aggregated(context, honest(), manifest)
    beside = aggregated(context, [*honest(), broken], manifest)
    found = [round_of(context.database, one).candidate_sha256 for one in (alone, beside)]
    assert found[0] is not None
    assert found[0] == found[1]


@pytest.mark.parametrize(
    ("rule", "faulty"), [("trimmed_mean", 2), ("krum", 1), ("bulyan", 1), ("centered_clipping", 1)]
)
def test_a_rule_whose_precondition_fails_after_rejections_aborts_the_round(
    context: Context, rule: str, faulty: int
) -> None:
    updates = [*honest(4), trained(torch.inf), trained(torch.inf)]
    round_id = aggregated(context, updates, robust(rule, faulty=faulty))
    row, run = round_of(context.database, round_id), run_of(context.database, round_id)
    assert (row.state, row.abort_code, row.candidate_sha256) == (
        RoundState.ABORTED,
        "rule_precondition",
        None,
    )
    assert run.reason_code == "rule_precondition"
    assert [one.finite for one in evidence_of(context, round_id)] == [True] * 4 + [False] * 2


def test_a_published_state_is_what_the_next_round_goes_on_from(context: Context) -> None:
    """FedAvgM: m1 = 1, m2 = .5 m1 + 1; the second round's step is 1.5 (Hsu et al. 2019)."""
    optimizer = {"kind": "fedavgm", "momentum": 0.5}
    manifest = tiny_manifest(aggregation={"server_optimizer": optimizer}, rounds=3)
    round_id = aggregated(context, [trained(1.0), trained(1.0)], manifest)
    first = round_of(context.database, round_id)
    assert first.optimizer_sha256 is not None
    assert float(load(context.blobs.of(HOME).read(first.optimizer_sha256))["steps"]) == 1.0
    publish_now(context, round_id)
    second = next_round(context, round_id, [trained(1.0), trained(1.0)])
    work(context, aggregate.run, "aggregate", second)
    assert change_of(context, second) == pytest.approx(1.5)
    with context.database.run_tx("test") as session:
        release = session.scalar(sa.select(Release).where(Release.round_id == round_id))
        assert release is not None
        assert release.optimizer_sha256 == first.optimizer_sha256
        assert optimizer_state(session, session.get_one(Run, first.run_id)) == (HOME, first.optimizer_sha256)


@pytest.mark.parametrize(
    ("kind", "expected"), [("fedadagrad", 1.0), ("fedadam", 0.1 / 0.02**0.5), ("fedyogi", 0.1 / 0.02**0.5)]
)
def test_each_adaptive_optimizer_makes_its_first_step(context: Context, kind: str, expected: float) -> None:
    """With change 1, tau = 1e-8 and v0 = tau^2: Reddi et al. 2021, Algorithm 2."""
    optimizer = {"kind": kind, "decay": 0.98, "adaptivity": 1e-8}
    round_id = aggregated(
        context, [trained(1.0), trained(1.0)], tiny_manifest(aggregation={"server_optimizer": optimizer})
    )
    assert change_of(context, round_id) == pytest.approx(expected, rel=1e-4)


def test_fedexp_makes_the_step_as_long_as_updates_differ_less_their_own_noise(context: Context) -> None:
    """Changes 3 and -1: mean |Delta_i|^2 = 5 d, |Delta|^2 = d; noise of .5 in each of d coordinates."""
    manifest = tiny_manifest(
        aggregation={"server_optimizer": {"kind": "fedexp", "adaptivity": 1e-8}},
        privacy={"noise_multiplier": 8.0, "divisor": 8},
        training={"local_steps": 1, "learning_rate": 0.5, "momentum": 0.0},
    )
    round_id = aggregated(context, [trained(3.0), trained(-1.0)], manifest)
    assert change_of(context, round_id) == pytest.approx((5 - 0.25) / 2)
    assert round_of(context.database, round_id).optimizer_sha256 is None


@pytest.mark.parametrize("same", [True, False])
def test_a_run_from_a_release_goes_on_with_its_optimizer_only_if_it_is_the_same(
    context: Context, same: bool
) -> None:
    optimizer = {"kind": "fedavgm", "momentum": 0.5}
    manifest = tiny_manifest(aggregation={"server_optimizer": optimizer}, rounds=3)
    round_id = aggregated(context, [trained(1.0), trained(1.0)], manifest)
    publish_now(context, round_id)
    own = tiny_manifest(aggregation={"server_optimizer": optimizer if same else {"kind": "fedadam"}})
    with context.database.run_tx("test") as session:
        release = session.scalar(sa.select(Release).where(Release.round_id == round_id))
        assert release is not None
        following, clone = build_run(session, manifest=own), build_run(session, manifest=own)
        following.from_release_id, clone.clone_of_id = release.id, release.run_id
        session.flush()
        expected = (HOME, release.optimizer_sha256) if same else None
        assert optimizer_state(session, following) == expected
        assert optimizer_state(session, clone) is None


def publish_now(context: Context, round_id: UUID) -> None:
    with context.database.run_tx("test") as session:
        run = session.get_one(Run, session.get_one(Round, round_id).run_id)
        run.manifest_sha256, run.price = "e" * 64, {}
        run.manifest = run.manifest | {
            "privacy": run.manifest["privacy"]
            | {"trust": "none", "clip_norm": None, "epsilon": None, "delta": None}
        }
    work(context, validate.run, "validate", round_id)
    work(context, publish.run, "publish", round_id)
    assert round_of(context.database, round_id).state is RoundState.PUBLISHED


def next_round(context: Context, round_id: UUID, updates: list[dict[str, Tensor]]) -> UUID:
    """Seal the run's next round with these updates of its cohort, opened by the publication or now."""
    with context.database.run_tx("test") as session:
        former = session.get_one(Round, round_id)
        run = session.get_one(Run, former.run_id)
        row = rounds_of(session, run.id)[-1]
        if row.id == round_id:
            row = open_next(session, run, actor="test")
        ids = session.scalars(
            sa.select(Assignment.client_id)
            .where(Assignment.round_id == row.id)
            .order_by(Assignment.client_id)
        ).all()
        for client_id, tensors in zip(ids, updates, strict=True):
            digest, size = write_tensors(context.blobs.of(HOME), tensors)
            build_update(session, row, client_id, blob_sha256=digest, size_bytes=size)
        session.execute(sa.update(Round).where(Round.id == row.id).values(state=RoundState.SEALED))
        return row.id


def test_evidence_names_the_hostile_update_and_spares_the_others(context: Context) -> None:
    round_id = aggregated(
        context, [*honest(), trained(-100.0)], robust(mixing="nearest_neighbours", clip_norm=1000.0)
    )
    rows = evidence_of(context, round_id)
    assert len(rows) == CLIENTS
    assert [bool(row.odd) for row in rows] == [False] * (CLIENTS - 1) + [True]
    assert set(rows[-1].odd) >= {"norm", "distance", "direction"}
    assert rows[-1].norm == pytest.approx(400.0)
    assert rows[-1].weight == 1.0


def test_too_few_updates_say_nothing_about_anybody(context: Context) -> None:
    round_id = aggregated(context, [*honest(3), trained(-100.0)], robust())
    assert [(row.finite, row.odd, row.score) for row in evidence_of(context, round_id)] == [
        (True, [], None)
    ] * 4
    with context.database.run_tx("test") as session:
        assert session.scalar(sa.select(sa.func.count(Standing.id))) == 0


def test_a_client_that_is_odd_again_and_again_is_discounted_quarantined_and_not_invited(
    context: Context,
) -> None:
    manifest = robust()
    manifest["privacy"]["trust"] = "none"
    round_id = build_sealed(context, [*honest(), trained(-100.0)], manifest=manifest)
    steps, weights = [], []
    for _round in range(6):
        work(context, aggregate.run, "aggregate", round_id)
        rows = evidence_of(context, round_id)
        hostile = rows[-1].client_id
        with context.database.run_tx("test") as session:
            stand = standing.stands_of(session, [hostile])[hostile]
            session.execute(sa.update(Round).where(Round.id == round_id).values(state=RoundState.PUBLISHED))
            run = session.get_one(Run, session.get_one(Round, round_id).run_id)
            following = open_next(session, run, actor="test")
            invited = session.scalar(sa.select(sa.func.count()).where(Assignment.round_id == following.id))
            session.execute(sa.update(Round).where(Round.id == following.id).values(state=RoundState.ABORTED))
        steps.append(stand.step)
        weights.append(rows[-1].weight)
        assert invited == (CLIENTS - 1 if stand.step is Step.SUSPEND else CLIENTS)
        if stand.step is Step.SUSPEND:
            break
        with context.database.run_tx("test") as session:
            row = build_round(
                session,
                RoundState.OPEN,
                run=session.get_one(Run, run.id),
                number=len(rounds_of(session, run.id)) + 1,
                adapter_sha256=run_start(context),
            )
            for client_id, tensors in zip(
                clients_of(session, run), [*honest(), trained(-100.0)], strict=True
            ):
                digest, size = write_tensors(context.blobs.of(HOME), tensors)
                build_update(session, row, client_id, blob_sha256=digest, size_bytes=size)
            session.execute(sa.update(Round).where(Round.id == row.id).values(state=RoundState.SEALED))
            round_id = row.id
    assert steps == [Step.DISCOUNT, Step.QUARANTINE, Step.QUARANTINE, Step.SUSPEND]
    assert weights == [1.0, 0.5, 0.0, 0.0]


def run_start(context: Context) -> str:
    return write_tensors(context.blobs.of(HOME), trained(0.0))[0]


def test_one_update_that_is_not_finite_is_no_step_two_are_one_and_ordinary_rounds_end_it(
    context: Context,
) -> None:
    steps = []
    with context.database.run_tx("test") as session:
        run = build_run(session, clients=4, manifest=robust())
        last = clients_of(session, run)[-1]
    for number, value in enumerate([torch.nan, torch.nan, *[1.0] * 7], start=1):
        with context.database.run_tx("test") as session:
            row = build_round(
                session, run=session.get_one(Run, run.id), number=number, adapter_sha256=run_start(context)
            )
            for client_id, tensors in zip(
                clients_of(session, run), [*[trained(1.0)] * 3, trained(value)], strict=True
            ):
                digest, size = write_tensors(context.blobs.of(HOME), tensors)
                build_update(session, row, client_id, blob_sha256=digest, size_bytes=size)
            session.execute(sa.update(Round).where(Round.id == row.id).values(state=RoundState.SEALED))
        work(context, aggregate.run, "aggregate", row.id)
        with context.database.run_tx("test") as session:
            steps.append(standing.stands_of(session, [last])[last].step)
    assert steps == [Step.OBSERVE, *[Step.DISCOUNT] * 6, *[Step.OBSERVE] * 2]


@pytest.mark.parametrize(("faulty", "moved"), [(0, 0), (1, 1)])
def test_only_a_plan_that_names_hostile_clients_moves_anybody(
    context: Context, faulty: int, moved: int
) -> None:
    manifest = robust("trimmed_mean" if faulty else "mean", faulty=faulty)
    round_id = aggregated(context, [*honest(), trained(-100.0)], manifest)
    assert [bool(row.odd) for row in evidence_of(context, round_id)] == [False] * (CLIENTS - 1) + [True]
    with context.database.run_tx("test") as session:
        assert session.scalar(sa.select(sa.func.count(Standing.id))) == moved


def test_a_quarantined_update_counts_nothing_in_the_mean_and_a_discounted_one_half(context: Context) -> None:
    manifest = tiny_manifest(quorum={"min_updates": 2, "max_updates": 4})
    for step, expected in ((Step.DISCOUNT, 1.0), (Step.QUARANTINE, 0.0)):
        round_id = build_sealed(context, [*[trained(0.0)] * 3, trained(7.0)], manifest=manifest)
        with context.database.run_tx("test") as session:
            last = clients_of(session, run_of(context.database, round_id))[-1]
            session.add(Standing(client_id=last, step=step, suspicion=4.0, reason="a test", actor="test"))
        work(context, aggregate.run, "aggregate", round_id)
        assert change_of(context, round_id) == pytest.approx(expected)


def test_quarantined_updates_do_not_count_for_the_quorum(context: Context) -> None:
    round_id = build_sealed(context, [trained(1.0), trained(1.0)])
    with context.database.run_tx("test") as session:
        last = clients_of(session, run_of(context.database, round_id))[-1]
        session.add(
            Standing(client_id=last, step=Step.QUARANTINE, suspicion=7.0, reason="a test", actor="test")
        )
    work(context, aggregate.run, "aggregate", round_id)
    assert round_of(context.database, round_id).abort_code == "quorum_lost"


def test_a_standing_cannot_be_changed_or_deleted_from_psql(context: Context) -> None:
    round_id = build_sealed(context, [trained(1.0), trained(1.0)])
    with context.database.run_tx("test") as session:
        client_id = clients_of(session, run_of(context.database, round_id))[0]
        session.add(
            Standing(client_id=client_id, step=Step.DISCOUNT, suspicion=3.0, reason="why", actor="test")
        )
    for statement in ("UPDATE standings SET suspicion = 0", "DELETE FROM standings"):
        with (
            pytest.raises(IntegrityError, match="append-only"),
            context.database.run_tx("test") as session,
        ):
            session.execute(sa.text(statement))


def test_a_reversal_is_a_row_of_its_own_and_the_count_starts_anew(context: Context) -> None:
    round_id = build_sealed(context, [trained(1.0), trained(1.0)])
    admin = Principal(id=new_id(), organisation_id=new_id(), role=Role.ADMIN)
    with context.database.run_tx("test") as session:
        client_id = clients_of(session, run_of(context.database, round_id))[0]
        session.add(
            Standing(client_id=client_id, step=Step.QUARANTINE, suspicion=7.0, reason="x", actor="test")
        )
        session.flush()
        standing.put(session, admin, client_id, to=Step.OBSERVE, reason="a new scanner")
        assert standing.stands_of(session, [client_id])[client_id] == standing.Stand(Step.OBSERVE, 0.0)
        rows = session.scalars(sa.select(Standing).order_by(Standing.id)).all()
        assert [row.reason for row in rows] == ["x", "a new scanner"]
        with pytest.raises(standing.NothingToReverse):
            standing.put(session, admin, client_id, to=Step.DISCOUNT, reason="again")
