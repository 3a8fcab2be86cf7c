"""The price of a plan: calibrated, checked, refused with a code, and never claimed where nothing is."""

from __future__ import annotations

import signal
from pathlib import Path
from typing import Any
from uuid import UUID

import pytest
import sqlalchemy as sa
from safetensors.torch import load_file

from app.core.db import Database
from app.jobs import leases
from app.jobs.kinds import KINDS, time_limit_s
from app.jobs.models import Job, JobState
from app.jobs.queue import enqueue
from app.runs.manifest import Manifest
from app.runs.models import Run
from app.runs.states import RunState
from tests.builders import build_run, tiny_manifest
from tests.worker_bench import LEASE_S, context_for
from workers.context import Context
from workers.handlers import price, sweep

NO_DP: dict[str, Any] = {
    "trust": "none",
    "clip_norm": None,
    "noise_multiplier": None,
    "epsilon": None,
    "delta": None,
}


@pytest.fixture
def context(database: Database, tmp_path: Path) -> Context:
    return context_for(database, tmp_path)


def plan(**privacy: Any) -> Manifest:
    return Manifest.model_validate(tiny_manifest(privacy=privacy))


def refusal_of(manifest: Manifest, orders: tuple[float, ...] = ()) -> str:
    with pytest.raises(price.Refused) as refused:
        price.price_of(manifest, orders=orders)
    return refused.value.code


def ask(context: Context, **privacy: Any) -> tuple[UUID, leases.Claim]:
    """A run in pricing without accounts to check, and the claim of its job."""
    with context.database.run_tx("test") as session:
        run = build_run(session, clients=0, state=RunState.PRICING, manifest=tiny_manifest(privacy=privacy))
        payload = {"run_id": str(run.id), "version": run.version}
        enqueue(session, "price", key=f"{run.id}:{run.version}", payload=payload)
        job_id = session.scalar(sa.select(Job.id).where(Job.kind == "price"))
    assert job_id is not None
    claim = leases.claim(context.database, job_id, ceiling_s=LEASE_S)
    assert claim is not None
    return run.id, claim


def run_row(context: Context, run_id: UUID) -> Run:
    with context.database.run_tx("test") as session:
        return session.get_one(Run, run_id)


def test_a_calibrated_price_is_at_most_its_target_and_cheaper_by_round() -> None:
    found = price.price_of(plan(epsilon=4.0), orders=(8.0,))
    assert 3.9 < found["epsilon"] <= 4.0
    assert found["epsilon_by_round"] == sorted(found["epsilon_by_round"])
    assert len(found["epsilon_by_round"]) == 2
    assert found["epsilon_by_round"][-1] == found["epsilon"]
    assert "PLD" in found["accountant"]
    assert found["rdp"]["8.0"] > 0


def test_a_named_multiplier_is_priced_and_not_changed() -> None:
    found = price.price_of(plan(epsilon=None, noise_multiplier=2.0), orders=())
    assert found["noise_multiplier"] == 2.0
    assert 0 < found["epsilon"] < 4


def test_a_named_multiplier_that_costs_more_than_the_named_epsilon_is_refused() -> None:
    assert refusal_of(plan(epsilon=0.5, noise_multiplier=0.7)) == "epsilon_exceeded"


def test_an_unreachable_epsilon_is_refused() -> None:
    assert refusal_of(plan(epsilon=1e-6, delta=1e-10, examples={"kind": "all"})) == "impossible_plan"


def test_a_plan_without_a_trustworthy_bound_is_refused() -> None:
    assert refusal_of(plan(epsilon=None, noise_multiplier=0.001)) == "not_priceable"


def test_an_account_whose_order_has_no_price_is_refused() -> None:
    manifest = plan(epsilon=None, noise_multiplier=2.0, relation="replace_one")
    assert refusal_of(manifest, orders=(8.0,)) == "order_not_priceable"


def test_without_dp_nothing_is_claimed(context: Context) -> None:
    run_id, claim = ask(context, **NO_DP)
    price.run(context, claim)
    run = run_row(context, run_id)
    assert run.state is RunState.PRICED
    assert run.price == price.NOTHING_CLAIMED


def test_the_first_adapter_holds_zeros_in_exactly_the_trained_tensors(context: Context) -> None:
    run_id, claim = ask(context, **NO_DP)
    price.run(context, claim)
    digest = run_row(context, run_id).start_adapter_sha256
    assert digest is not None
    start = load_file(context.blobs.path(digest))
    assert sorted(start) == [tensor["name"] for tensor in tiny_manifest()["tensors"] if tensor["trained"]]
    assert all(not tensor.any() for tensor in start.values())


def test_a_refused_plan_says_why(context: Context) -> None:
    run_id, claim = ask(context, epsilon=0.5, noise_multiplier=0.7)
    price.run(context, claim)
    run = run_row(context, run_id)
    assert (run.state, run.reason_code) == (RunState.REFUSED, "epsilon_exceeded")
    assert run.reason


def test_a_plan_that_takes_too_long_to_price_is_refused_at_the_first_attempt(
    context: Context, monkeypatch: pytest.MonkeyPatch
) -> None:
    price.price_of(plan(epsilon=None, noise_multiplier=2.0), orders=())  # nothing is imported from here on
    run_id, claim = ask(context, epsilon=3.3)
    monkeypatch.setattr(price, "LONGEST_S", 0.01)
    price.run(context, claim)
    run = run_row(context, run_id)
    assert (run.state, run.reason_code) == (RunState.REFUSED, "pricing_too_long")
    assert signal.getitimer(signal.ITIMER_REAL) == (0.0, 0.0)


def test_a_price_may_take_as_long_as_its_job_is_not_killed_for() -> None:
    assert time_limit_s(KINDS["price"], ceiling_s=300.0) > price.LONGEST_S


def test_a_run_that_has_moved_on_is_left_alone(context: Context) -> None:
    run_id, claim = ask(context, **NO_DP)
    with context.database.run_tx("test") as session:
        session.execute(sa.update(Run).values(version=Run.version + 1))
    price.run(context, claim)
    assert run_row(context, run_id).state is RunState.PRICING


def test_a_price_job_that_is_dead_refuses_the_run(context: Context) -> None:
    run_id, _claim = ask(context, **NO_DP)
    with context.database.run_tx("test") as session:
        session.execute(sa.update(Job).values(state=JobState.DEAD, finished_at=sa.func.now()))
    with context.database.run_tx("test") as session:
        ((kind, payload),) = sweep._dead(session)
        sweep._end(session, kind, payload)
    run = run_row(context, run_id)
    assert (run.state, run.reason_code) == (RunState.REFUSED, "job_failed")
