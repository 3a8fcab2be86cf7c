"""The daily check of the ledger: a changed entry or sum, or a price that does not come out, is reported."""

from __future__ import annotations

from pathlib import Path
from typing import Any
from uuid import UUID

import pytest
import sqlalchemy as sa
from structlog.testing import capture_logs

from app.budget.models import PrivacyViolation
from app.core.db import Database
from app.jobs import leases
from app.jobs.models import Job, JobState
from app.jobs.queue import enqueue
from app.runs.manifest import Manifest
from tests.builders import build_account, build_client, tiny_manifest
from tests.central import CENTRAL
from tests.federation import Federation
from tests.worker_bench import LEASE_S, context_for
from workers.context import Context
from workers.handlers import recheck
from workers.handlers.price import price_of

PLAN: dict[str, Any] = {"noise_multiplier": 2.0}


@pytest.fixture
def context(database: Database, tmp_path: Path) -> Context:
    return context_for(database, tmp_path)


def start(context: Context, *, order: float | None = None, change: dict[str, Any] | None = None) -> UUID:
    """A started run of two clients, one with a Renyi account if asked; the price is real but for `change`."""
    with context.database.run_tx("test") as session:
        federation = Federation(session, context.settings, epsilon=50.0, delta=1e-3)
        orders = ()
        if order is not None:
            client = build_client(session, federation.organisation)
            build_account(session, client, epsilon=50.0, order=order)
            federation.clients.append(client)
            orders = (order,)
        price = price_of(Manifest.model_validate(tiny_manifest(privacy=PLAN)), orders=orders)
        run = federation.running(price=price | (change or {}), privacy=PLAN)
        assert run.state == "running", run.reason
        return run.id


def work(context: Context) -> list[dict[str, Any]]:
    """Run the job; return what it wrote to the error log."""
    with context.database.run_tx("test") as session:
        enqueue(session, "recheck", key="asked", payload={})
        session.execute(sa.update(Job).values(state=JobState.QUEUED, lease_until=None, run_at=sa.func.now()))
        job_id = session.scalar(sa.select(Job.id).where(Job.kind == "recheck"))
    assert job_id is not None
    claim = leases.claim(context.database, job_id, ceiling_s=LEASE_S)
    assert claim is not None
    with capture_logs() as lines:
        recheck.run(context, claim)
    assert all(line["log_level"] == "error" for line in lines)
    return [dict(line) for line in lines]


def violations(context: Context) -> list[PrivacyViolation]:
    with context.database.run_tx("test") as session:
        return list(session.scalars(sa.select(PrivacyViolation).order_by(PrivacyViolation.id)))


def tamper(context: Context, table: str, change: str) -> None:
    with context.database.run_tx("test") as session:
        session.execute(sa.text(f"ALTER TABLE {table} DISABLE TRIGGER USER"))
        session.execute(sa.text(change))


def test_a_ledger_that_is_as_it_was_booked_gives_no_word(context: Context) -> None:
    start(context, order=16.0)
    assert work(context) == []
    assert violations(context) == []
    with context.database.run_tx("test") as session:
        assert session.scalar(sa.select(Job.state).where(Job.kind == "recheck")) is JobState.DONE


@pytest.mark.parametrize("change", [{"epsilon": 0.5, "epsilon_by_round": [0.2, 0.5]}, {"delta": 1e-6}])
def test_a_price_that_does_not_come_out_is_a_violation_of_the_run_once(
    context: Context, change: dict[str, Any]
) -> None:
    run_id = start(context, change=change)
    lines = work(context)
    assert {line["event"] for line in lines} == {"ledger_differs"}
    (found,) = violations(context)
    assert (found.kind.value, found.run_id, found.client_id) == ("price_differs", run_id, None)
    assert found.detail["booked"] != found.detail["computed"]
    assert work(context) != []
    assert len(violations(context)) == 1


def test_a_divergence_that_does_not_come_out_is_found(context: Context) -> None:
    run_id = start(context, order=16.0, change={"rdp": {"16.0": 0.001}})
    work(context)
    (found,) = violations(context)
    assert (found.run_id, found.detail["order"]) == (run_id, 16.0)


def test_an_entry_that_was_changed_is_named(context: Context) -> None:
    start(context)
    tamper(context, "ledger_entries", "UPDATE ledger_entries SET amount = amount - 1 WHERE kind = 'grant'")
    work(context)
    assert [(row.detail["seq"], row.detail["fault"]) for row in violations(context)] == [
        (1, "the entry was changed")
    ] * 2


def test_a_sum_that_is_not_that_of_its_entries_is_found(context: Context) -> None:
    start(context)
    tamper(context, "accounts", "UPDATE accounts SET reserved = reserved - 1")
    work(context)
    assert {row.detail["fault"] for row in violations(context)} == {
        "the account's sums are not those of its entries"
    }


def test_an_event_without_a_price_is_no_agreement(context: Context) -> None:
    reservation = recheck.Reservation(
        account_id=UUID(int=1),
        organisation_id=UUID(int=2),
        order=None,
        ref="run:1",
        amount=0,
        delta_amount=0,
        event={},
    )
    found = recheck._difference(reservation, {})
    assert found is not None
    assert found["computed"] is None


def test_a_central_round_with_a_cut_cohort_is_priced_as_it_was_booked() -> None:
    privacy = CENTRAL | {"cohort": {"kind": "poisson", "rate": 0.1, "cap": 25, "n_max": 100}}
    terms = {"relation": "zero_out", "noise_multiplier": 2.0, "steps": 2, "delta": 1e-5, "order": None}
    cut = recheck._price(privacy | terms)
    whole = recheck._price(
        privacy | terms | {"cohort": {"kind": "poisson", "rate": 0.1, "cap": 100, "n_max": 100}}
    )
    assert isinstance(cut, tuple)
    assert isinstance(whole, tuple)
    assert cut[0] > whole[0]
