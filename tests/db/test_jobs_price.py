"""The price of a plan: calibrated, checked, refused with a code, and never claimed where nothing is."""

from __future__ import annotations

import signal
from pathlib import Path
from typing import Any
from uuid import UUID

import pytest
import sqlalchemy as sa
from safetensors.torch import load

from app.core.db import Database
from app.core.ids import new_id
from app.jobs import leases
from app.jobs.kinds import KINDS, time_limit_s
from app.jobs.models import Job, JobState
from app.jobs.queue import enqueue
from app.runs.explanation import greatest_true_positive_rate
from app.runs.manifest import Manifest
from app.runs.models import Run
from app.runs.states import RunState
from engines.privacy.accounting import CappedPoisson, GaussianRun, Relation, epsilon_pld
from tests.builders import HOME, build_run, tiny_manifest
from tests.central import CENTRAL
from tests.worker_bench import LEASE_S, context_for
from workers.canaries import canaries_of
from workers.context import Context
from workers.handlers import price, sweep

EVERYONE: dict[str, Any] = {"kind": "everyone"}
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


COHORT = {"kind": "poisson", "rate": 0.25, "cap": 82, "n_max": 202}


def central(*, rounds: int = 30, **privacy: Any) -> Manifest:
    """The client-level plan of 202 clients, priced by its rounds."""
    quorum = {"min_updates": 0, "max_updates": 82}
    return Manifest.model_validate(
        tiny_manifest(privacy=CENTRAL | {"cohort": COHORT} | privacy, quorum=quorum, rounds=rounds)
    )


def test_a_central_plan_is_priced_by_its_rounds_and_the_cut_cohort() -> None:
    few = COHORT | {"cap": 18, "n_max": 40}
    found = price.price_of(central(epsilon=None, noise_multiplier=1.1292, cohort=few, rounds=2), orders=())
    run = GaussianRun(
        noise_multiplier=1.1292,
        sampling_rate=0.25,
        steps=2,
        relation=Relation.ZERO_OUT,
        capped=CappedPoisson(population=40, cap=18),
    )
    assert found["epsilon"] == epsilon_pld([run], delta=1e-5)
    assert len(found["epsilon_by_round"]) == 2
    assert (found["epsilon_rdp"], found["rdp"], found["clip_noise_multiplier"]) == (None, {}, None)


def test_a_buffered_plan_is_priced_by_the_updates_that_one_client_may_send() -> None:
    buffered = tiny_manifest(
        buffered={"participations": 2, "staleness": 1}, rounds=5, privacy={"noise_multiplier": 1.5}
    )
    whole = tiny_manifest(rounds=2, privacy={"noise_multiplier": 1.5})
    found, expected = (
        price.price_of(Manifest.model_validate(one), orders=(8.0,)) for one in (buffered, whole)
    )
    assert found == expected
    assert len(found["epsilon_by_round"]) == 2


def test_an_account_by_order_cannot_pay_for_a_cut_cohort() -> None:
    assert refusal_of(central(epsilon=None, noise_multiplier=2.0), orders=(8.0,)) == "order_not_priceable"


def test_how_clients_draw_their_batches_changes_no_central_price() -> None:
    by_examples = [
        price.price_of(
            central(epsilon=None, noise_multiplier=4.0, cohort=EVERYONE, examples=examples), orders=()
        )
        for examples in ({"kind": "all"}, {"kind": "poisson", "rate": 0.01})
    ]
    assert by_examples[0] == by_examples[1]
    closed = price.price_of(central(epsilon=None, noise_multiplier=4.0, cohort=EVERYONE), orders=(8.0,))
    assert closed["rdp"]["8.0"] == pytest.approx(8.0 * 30 / (2 * 16.0), rel=1e-6)


def test_adaptive_clipping_takes_its_part_of_the_multiplier_and_costs_nothing_more() -> None:
    bound = {"quantile": 0.5, "learning_rate": 0.2, "bit_noise": 2.525}
    plain = price.price_of(central(epsilon=None, noise_multiplier=4.0, cohort=EVERYONE), orders=())
    found = price.price_of(
        central(epsilon=None, noise_multiplier=4.0, cohort=EVERYONE, adaptive_clip=bound), orders=()
    )
    assert found["epsilon"] == plain["epsilon"]
    assert found["clip_noise_multiplier"] == pytest.approx((4.0**-2 - 5.05**-2) ** -0.5)
    spent = bound | {"bit_noise": 2.0}
    assert refusal_of(central(epsilon=None, noise_multiplier=4.0, adaptive_clip=spent)) == "not_priceable"


def test_a_person_in_several_data_sets_is_priced_for_one_and_for_all() -> None:
    person = {"id_field": "author", "records_cap": 4, "silos": 3}
    found = price.price_of(plan(unit="person", person=person, epsilon=None, noise_multiplier=2.0), orders=())
    whole = GaussianRun(noise_multiplier=2.0, sampling_rate=0.1, steps=12, relation=Relation.ZERO_OUT)
    assert found["epsilon_by_silos"] == {"1": found["epsilon"], "3": epsilon_pld([whole], delta=1e-5)}
    assert found["epsilon_by_silos"]["3"] > found["epsilon"]


def test_the_best_attack_is_stored_and_is_weaker_than_epsilon_alone_allows() -> None:
    found = price.price_of(plan(epsilon=None, noise_multiplier=2.0), orders=())
    by_epsilon = greatest_true_positive_rate(epsilon=found["epsilon"], delta=found["delta"])
    assert 0.01 < found["attack_tpr_at_1_percent"] < by_epsilon


def test_the_renyi_epsilon_stands_beside_the_claim_and_is_never_lower() -> None:
    found = price.price_of(plan(epsilon=None, noise_multiplier=2.0), orders=())
    assert found["epsilon_rdp"] > found["epsilon"]
    assert found["epsilon_by_silos"] == {}


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
    start = load(context.blobs.of(HOME).read(digest))
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


def test_an_audit_that_could_refute_nothing_is_refused_with_the_number_of_canaries_that_could() -> None:
    asked = {"epsilon": None, "noise_multiplier": 1.0}
    with pytest.raises(price.Refused) as refused:
        price.price_of(plan(audit={"canaries": 200}, **asked), orders=())
    assert refused.value.code == "audit_cannot_refute"
    (enough,) = [int(word) for word in refused.value.reason.split() if word.isdecimal() and word != "200"]
    assert 200 < enough <= 400
    assert price.price_of(plan(audit={"canaries": enough}, **asked), orders=())["noise_multiplier"] == 1.0
    assert refusal_of(plan(audit={"canaries": enough - 10}, **asked)) == "audit_cannot_refute"


def test_where_no_number_of_canaries_can_refute_the_refusal_says_so() -> None:
    little = plan(audit={"canaries": 1000}, epsilon=None, noise_multiplier=0.7)
    with pytest.raises(price.Refused) as refused:
        price.price_of(little, orders=())
    assert refused.value.code == "audit_cannot_refute"
    assert refused.value.reason.startswith("No audit that a plan can ask for refutes")


def test_a_plan_with_canaries_in_its_rounds_is_priced_with_a_commitment_to_them(context: Context) -> None:
    asked = CENTRAL | {
        "cohort": EVERYONE,
        "audit": {"canaries": 200},
        "noise_multiplier": 2.0,
        "epsilon": None,
    }
    run_id, claim = ask(context, **asked)
    price.run(context, claim)
    row = run_row(context, run_id)
    assert row.price is not None
    manifest = Manifest.model_validate(row.manifest)
    commitment = canaries_of(manifest, context.vault, run_id).commitment
    assert (row.price["canaries"], row.price["canaries_commitment"]) == (200, commitment)
    other = canaries_of(manifest, context.vault, new_id()).commitment
    assert other != commitment
