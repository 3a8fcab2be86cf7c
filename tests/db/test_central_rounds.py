"""Rounds that the server noises: charged before the noise, noised once, whoever dies and wherever."""

from __future__ import annotations

from pathlib import Path
from typing import Any
from uuid import UUID

import pytest
import sqlalchemy as sa
import torch
from safetensors.torch import load
from sqlalchemy.exc import DBAPIError
from sqlalchemy.orm import Session
from torch import Tensor

from app.budget import chain, ledger
from app.budget.errors import NotReserved
from app.budget.models import Account, Entry, EntryKind, PrivacyViolation
from app.budget.queries import accounts_of_clients, accounts_reserving
from app.core.db import Database
from app.core.errors import Conflict, IllegalTransition
from app.custody.keys import BlobRef
from app.jobs.models import Job
from app.releases.models import Release
from app.rounds import lifecycle, noise_secrets
from app.rounds.models import Assignment, Evidence, Round, RoundSecret, Standing
from app.rounds.queries import cohort_of, rounds_of
from app.rounds.states import RoundState
from app.runs import rounds, service
from app.runs.charges import round_ref, run_ref
from app.runs.models import Run, RunClient
from app.runs.queries import client_ids_of
from app.runs.rounds import open_next
from app.updates.models import Update
from tests.builders import HOME, build_client, build_round
from tests.central import (
    CLIENTS,
    EVERYONE,
    PRICE,
    first_round,
    price_central_run,
    send_and_seal,
    set_cohort,
    start_central_run,
)
from tests.http.accounts import VAULT
from tests.worker_bench import context_for, is_kept, round_of, run_of, trained, work
from workers.central import NoisedRound, noised_step
from workers.context import Context
from workers.handlers import aggregate, deadline, publish, validate
from workers.merging import Began
from workers.tensors import write_tensors

COHORT = (0, 2, 3)
POINTS = ("before_tx1", "after_tx1", "after_noise", "after_blob", "before_tx2", "after_tx2")


class Died(BaseException):
    """Stands for kill -9: nothing after this point runs."""


@pytest.fixture
def context(database: Database, tmp_path: Path) -> Context:
    return context_for(database, tmp_path)


def random_updates(count: int, *, size: float = 1.0) -> list[dict[str, Tensor]]:
    generator = torch.Generator().manual_seed(7)
    return [
        {name: size * torch.randn(tensor.shape, generator=generator) for name, tensor in trained(0.0).items()}
        for _client in range(count)
    ]


def sealed_round(
    context: Context,
    updates: list[dict[str, Tensor]],
    *,
    drawn: tuple[int, ...] = COHORT,
    **privacy: Any,
) -> UUID:
    """A sealed round of a started run, with these updates of its cohort."""
    start, _size = write_tensors(context.blobs.of(HOME), trained(0.25))
    with context.database.run_tx("test") as session:
        run = start_central_run(session, context.settings, start_adapter_sha256=start, **privacy)
        row = first_round(session, run, cohort=drawn)
        send_and_seal(session, context.blobs, row, updates)
        return row.id


def expected_digest(context: Context, round_id: UUID) -> str:
    """What the round's secret and its sealed updates say that its candidate is."""
    with context.database.run_tx("test") as session:
        row, run = session.get_one(Round, round_id), run_of(context.database, round_id)
        updates = session.execute(
            sa.select(Update.client_id, Update.blob_sha256)
            .where(Update.round_id == round_id)
            .order_by(Update.client_id)
        )
        noised = NoisedRound(
            round_id=round_id,
            clip_norm=row.clip_norm or 0.0,
            clients=CLIENTS,
            secret=noise_secrets.unseal(session, context.vault, round_id),
        )
        manifest = aggregate.Manifest.model_validate(run.manifest)
        began = Began(round_id=row.id, number=row.number, adapter=BlobRef(HOME, row.adapter_sha256), ranks={})
        sealed = tuple((client_id, BlobRef(HOME, str(digest))) for client_id, digest in updates)
    step = noised_step(context.blobs, manifest, noised, sealed, began=began).update
    start = load(context.blobs.of(HOME).read(row.adapter_sha256))
    return write_tensors(context.blobs.of(HOME), {name: start[name] + step[name] for name in step})[0]


def spends(session: Session, round_id: UUID) -> dict[UUID, int]:
    """How often each account of the run was charged for a round."""
    run_id = session.get_one(Round, round_id).run_id
    rows = session.execute(
        sa.select(Entry.account_id, sa.func.count())
        .where(Entry.kind == EntryKind.SPEND, Entry.ref == round_ref(round_id))
        .group_by(Entry.account_id)
    )
    found = dict.fromkeys((account.id for account in accounts_reserving(session, run_ref(run_id))), 0)
    return found | {row[0]: row[1] for row in rows}


def require_right_accounts(database: Database, round_id: UUID, *, charged: bool) -> None:
    """Every account of the run is charged once, or none is; every chain holds."""
    with database.run_tx("test") as session:
        found = spends(session, round_id)
        assert set(found.values()) == {int(charged)}
        assert len(found) == CLIENTS
        for account_id in found:
            assert chain.verify_chain(session, account_id).holds
            account = session.get_one(Account, account_id)
            assert (account.spent, account.reserved) == (
                (2_500_000_000, 1_400_000_000) if charged else (0, 3_900_000_000)
            )


def die_at(monkeypatch: pytest.MonkeyPatch, handler: Any, point: str) -> None:
    def die(reached: str) -> None:
        if reached == point:
            raise Died

    monkeypatch.setattr(handler, "reach", die)


def test_a_start_reserves_on_every_account_and_draws_the_first_cohort(context: Context) -> None:
    with context.database.run_tx("test") as session:
        run = start_central_run(session, context.settings)
        row = first_round(session, run)
        assert (row.cohort_secret, row.clip_norm, row.min_updates) == (True, 1.0, 0)
        assert {view.reserved for view in accounts_reserving(session, run_ref(run.id))} == {3_900_000_000}
        assert set(cohort_of(session, row.id)) <= set(
            session.scalars(sa.select(RunClient.client_id).where(RunClient.run_id == run.id))
        )


def test_a_start_that_dies_after_its_reservations_leaves_none_and_the_next_reserves_once(
    context: Context, monkeypatch: pytest.MonkeyPatch
) -> None:
    def die(*_arguments: Any, **_options: Any) -> None:
        raise Died

    def start() -> None:
        with context.database.run_tx("test") as session:
            service.start(session, coordinator, run.id, region=None)

    def amounts() -> set[tuple[int, int, int]]:
        with context.database.run_tx("test") as session:
            views = accounts_of_clients(session, client_ids_of(session, run.id)).values()
            assert all(chain.verify_chain(session, view.id).holds for view in views)
            return {(view.reserved, view.spent, view.entries) for view in views}

    with context.database.run_tx("test") as session:
        run, coordinator = price_central_run(session, context.settings)
    monkeypatch.setattr(rounds, "open_next", die)
    with pytest.raises(Died):
        start()
    monkeypatch.undo()
    assert amounts() == {(0, 0, 1)}
    start()
    assert amounts() == {(3_900_000_000, 0, 2)}
    with pytest.raises(IllegalTransition):
        start()


def test_the_cohorts_of_many_rounds_differ(context: Context) -> None:
    with context.database.run_tx("test") as session:
        cohorts = set()
        for _run in range(6):
            run = start_central_run(session, context.settings)
            ids = sorted(session.scalars(sa.select(RunClient.client_id).where(RunClient.run_id == run.id)))
            cohorts.add(tuple(ids.index(one) for one in cohort_of(session, first_round(session, run).id)))
    assert len(cohorts) > 1


def test_a_pool_over_what_the_plan_is_priced_for_opens_no_round(context: Context) -> None:
    with context.database.run_tx("test") as session:
        run = start_central_run(session, context.settings)
        session.add(RunClient(run_id=run.id, client_id=build_client(session).id))
        session.flush()
        with pytest.raises(Conflict):
            open_next(session, run, actor="test")


def test_sealing_draws_the_secret_in_the_same_transaction_and_no_update_of_it_is_possible(
    context: Context,
) -> None:
    round_id = sealed_round(context, random_updates(3))
    with context.database.run_tx("test") as session:
        row = session.get_one(RoundSecret, round_id)
        secret = noise_secrets.unseal(session, context.vault, round_id)
        assert len(secret) == 32
        assert secret not in row.sealed
        with pytest.raises(DBAPIError), session.begin_nested():
            session.execute(sa.update(RoundSecret).values(sealed=b"x"))
        with pytest.raises(DBAPIError), session.begin_nested():
            session.execute(sa.update(Round).values(cohort_secret=False))
        with pytest.raises(DBAPIError), session.begin_nested():
            session.execute(sa.update(Round).values(clip_norm=0.5))


def test_two_rounds_never_share_a_secret(context: Context) -> None:
    found = []
    for round_id in (sealed_round(context, []), sealed_round(context, [])):
        with context.database.run_tx("test") as session:
            found.append(noise_secrets.unseal(session, context.vault, round_id))
    assert found[0] != found[1]


def test_a_round_under_local_trust_has_no_secret(context: Context) -> None:
    with context.database.run_tx("test") as session:
        lifecycle.seal(session, build_round(session, updates=2).id, actor="test", vault=VAULT)
        assert not session.scalars(sa.select(RoundSecret)).all()


def test_every_client_is_charged_in_every_round_whether_it_was_drawn_or_not(context: Context) -> None:
    round_id = sealed_round(context, random_updates(3))
    require_right_accounts(context.database, round_id, charged=False)
    work(context, aggregate.run, "aggregate", round_id)
    require_right_accounts(context.database, round_id, charged=True)
    with context.database.run_tx("test") as session:
        events = session.scalars(sa.select(Entry.event).where(Entry.kind == EntryKind.SPEND)).all()
    assert len({str(sorted(event.items())) for event in events}) == 1
    assert (events[0]["unit"], events[0]["steps"], events[0]["round"], events[0]["part"]) == (
        "client",
        2,
        1,
        1,
    )


@pytest.mark.parametrize("point", POINTS)
def test_a_worker_that_dies_anywhere_leaves_every_account_right_and_the_same_noise(
    context: Context, point: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    round_id = sealed_round(context, random_updates(3))
    expected = expected_digest(context, round_id)
    die_at(monkeypatch, aggregate, f"aggregate.{point}")
    with pytest.raises(Died):
        work(context, aggregate.run, "aggregate", round_id)
    require_right_accounts(context.database, round_id, charged=point != "before_tx1")
    monkeypatch.undo()
    work(context, aggregate.run, "aggregate", round_id)
    require_right_accounts(context.database, round_id, charged=True)
    row = round_of(context.database, round_id)
    assert (row.state, row.candidate_sha256) == (RoundState.VALIDATING, expected)


@pytest.mark.parametrize("point", ["before_read", "after_blob", "after_tx"])
def test_a_publication_that_dies_leaves_one_release_right_accounts_and_no_secret(
    context: Context, point: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    round_id = sealed_round(context, random_updates(3))
    for handler, kind in ((aggregate, "aggregate"), (validate, "validate")):
        work(context, handler.run, kind, round_id)
    die_at(monkeypatch, publish, f"publish.{point}")
    with pytest.raises(Died):
        work(context, publish.run, "publish", round_id)
    monkeypatch.undo()
    work(context, publish.run, "publish", round_id)
    require_right_accounts(context.database, round_id, charged=True)
    with context.database.run_tx("test") as session:
        assert session.scalar(sa.select(sa.func.count()).select_from(Release)) == 1
        assert session.get(RoundSecret, round_id) is None
        assert [row.state for row in rounds_of(session, session.get_one(Round, round_id).run_id)] == [
            RoundState.PUBLISHED,
            RoundState.OPEN,
        ]


def test_a_seal_that_is_rolled_back_leaves_no_secret(context: Context) -> None:
    with context.database.run_tx("test") as session:
        row = first_round(session, start_central_run(session, context.settings), cohort=COHORT)

    def seal_and_die() -> None:
        with context.database.run_tx("test") as session:
            lifecycle.seal(session, row.id, actor="test", vault=VAULT)
            raise Died

    with pytest.raises(Died):
        seal_and_die()
    with context.database.run_tx("test") as session:
        assert session.get(RoundSecret, row.id) is None
        assert session.get_one(Round, row.id).state is RoundState.OPEN


def test_after_the_spend_nothing_can_be_given_back_even_when_the_round_is_aborted(
    context: Context, monkeypatch: pytest.MonkeyPatch
) -> None:
    round_id = sealed_round(context, random_updates(3))
    die_at(monkeypatch, aggregate, "aggregate.after_tx1")
    with pytest.raises(Died):
        work(context, aggregate.run, "aggregate", round_id)
    with context.database.run_tx("test") as session:
        lifecycle.abort(session, round_id, code="by_hand", reason="why", actor="test")
        run_id = session.get_one(Round, round_id).run_id
        for view in accounts_reserving(session, run_ref(run_id)):
            with pytest.raises(NotReserved):
                ledger.void(
                    session, view.id, ref="void:1", reserve_ref=run_ref(run_id), event={}, actor="test"
                )
        assert session.get(RoundSecret, round_id) is None
    require_right_accounts(context.database, round_id, charged=True)


def test_an_empty_cohort_is_closed_at_once_noised_and_charged_like_any_other(context: Context) -> None:
    start, _size = write_tensors(context.blobs.of(HOME), trained(0.25))
    with context.database.run_tx("test") as session:
        run = start_central_run(session, context.settings, start_adapter_sha256=start)
        round_id = first_round(session, run, cohort=()).id
        assert session.scalar(sa.select(Job.id).where(Job.key == f"{round_id}:opened")) is not None
    work(context, deadline.run, "deadline", round_id)
    assert round_of(context.database, round_id).state is RoundState.SEALED
    work(context, aggregate.run, "aggregate", round_id)
    require_right_accounts(context.database, round_id, charged=True)
    row = round_of(context.database, round_id)
    candidate = load(context.blobs.of(HOME).read(str(row.candidate_sha256)))
    assert all(bool((tensor != 0.25).any()) for tensor in candidate.values())


def test_the_job_of_every_opened_round_closes_none_that_waits_for_somebody(context: Context) -> None:
    with context.database.run_tx("test") as session:
        row = first_round(session, start_central_run(session, context.settings), cohort=(1,))
        assert session.scalar(sa.select(Job.id).where(Job.key == f"{row.id}:opened")) is not None
    work(context, deadline.run, "deadline", row.id)
    assert round_of(context.database, row.id).state is RoundState.OPEN


def step_of(context: Context, round_id: UUID) -> Tensor:
    """How far the candidate is from the start, as one vector."""
    row = round_of(context.database, round_id)
    candidate = load(context.blobs.of(HOME).read(str(row.candidate_sha256)))
    return torch.cat([(candidate[name].double() - 0.25).reshape(-1) for name in sorted(candidate)])


QUIET: dict[str, Any] = {"noise_multiplier": 1e-3, "epsilon": None, "divisor": 1.0}


@pytest.fixture
def quiet(monkeypatch: pytest.MonkeyPatch) -> None:
    """Price every run at hardly any noise, so that sums can be seen."""
    monkeypatch.setitem(PRICE, "noise_multiplier", 1e-3)


@pytest.mark.usefixtures("quiet")
def test_a_client_that_sends_a_million_moves_the_sum_by_at_most_the_clip_norm(context: Context) -> None:
    round_id = sealed_round(context, [trained(1e6)], **QUIET)
    work(context, aggregate.run, "aggregate", round_id)
    assert float(step_of(context, round_id).norm()) == pytest.approx(1.0, abs=0.02)


@pytest.mark.usefixtures("quiet")
@pytest.mark.parametrize("broken", [torch.nan, torch.inf])
def test_an_update_that_is_not_finite_counts_as_zero_and_nobody_is_told(
    context: Context, broken: float
) -> None:
    round_id = sealed_round(context, [trained(broken), trained(0.1)], **QUIET)
    work(context, aggregate.run, "aggregate", round_id)
    assert float((step_of(context, round_id) - 0.1).abs().max()) < 0.01
    with context.database.run_tx("test") as session:
        states = session.execute(sa.select(Update.state, Update.reject_code).distinct()).all()
        assert [tuple(state) for state in states] == [("received", None)]
        assert not session.scalars(sa.select(PrivacyViolation)).all()


def test_with_everyone_in_every_round_the_cohort_is_public_and_noise_is_the_same(context: Context) -> None:
    round_id = sealed_round(context, random_updates(CLIENTS), drawn=tuple(range(CLIENTS)), **EVERYONE)
    expected = expected_digest(context, round_id)
    work(context, aggregate.run, "aggregate", round_id)
    row = round_of(context.database, round_id)
    assert (row.cohort_secret, row.clip_norm, row.candidate_sha256) == (False, 1.0, expected)
    require_right_accounts(context.database, round_id, charged=True)


def test_an_adaptive_clip_norm_follows_the_noised_bits_into_the_next_round(context: Context) -> None:
    bound = {"quantile": 0.5, "learning_rate": 0.2, "bit_noise": 2.0}
    round_id = sealed_round(context, random_updates(3), adaptive_clip=bound)
    for handler, kind in ((aggregate, "aggregate"), (validate, "validate"), (publish, "publish")):
        work(context, handler.run, kind, round_id)
    with context.database.run_tx("test") as session:
        first, second = rounds_of(session, session.get_one(Round, round_id).run_id)
        assert first.next_clip_norm is not None
        assert first.next_clip_norm != 1.0
        assert second.clip_norm == first.next_clip_norm
        with pytest.raises(DBAPIError), session.begin_nested():
            session.execute(sa.update(Round).where(Round.id == first.id).values(next_clip_norm=9.0))


def test_the_run_ends_with_all_reserved_spent_and_the_second_cohort_is_its_own(context: Context) -> None:
    round_id = sealed_round(context, random_updates(3))
    stages = ((aggregate, "aggregate"), (validate, "validate"), (publish, "publish"))
    for handler, kind in stages:
        work(context, handler.run, kind, round_id)
    with context.database.run_tx("test") as session:
        second = rounds_of(session, session.get_one(Round, round_id).run_id)[1]
        ids = session.scalars(sa.select(RunClient.client_id).where(RunClient.run_id == second.run_id)).all()
        set_cohort(session, second.id, ids[:1])
        send_and_seal(session, context.blobs, second, random_updates(1))
    for handler, kind in stages:
        work(context, handler.run, kind, second.id)
    with context.database.run_tx("test") as session:
        run = session.scalars(sa.select(Run)).one()
        assert run.state == "finished"
        views = accounts_reserving(session, run_ref(run.id))
        assert {(view.spent, view.reserved, view.delta_spent) for view in views} == {
            (3_900_000_000, 0, 10**13)
        }
        assert session.scalars(sa.select(Assignment.client_id).where(Assignment.round_id == second.id)).all()


TRIMMED: dict[str, Any] = {"rule": "trimmed_mean", "faulty": 1}


def test_a_trimmed_central_round_is_charged_like_a_sum_and_keeps_no_evidence(context: Context) -> None:
    """The candidate is what the trimmed sum, its secret and the sealed updates say."""
    updates = [trained(0.1)] * 4 + [trained(-1000.0)]
    round_id = sealed_round(
        context, updates, drawn=tuple(range(CLIENTS)), aggregation=TRIMMED, divisor=4.0, **EVERYONE
    )
    expected = expected_digest(context, round_id)
    work(context, aggregate.run, "aggregate", round_id)
    row = round_of(context.database, round_id)
    assert row.candidate_sha256 == expected
    require_right_accounts(context.database, round_id, charged=True)
    with context.database.run_tx("test") as session:
        assert session.scalar(sa.select(sa.func.count()).select_from(Evidence)) == 0
        assert session.scalar(sa.select(sa.func.count()).select_from(Standing)) == 0


@pytest.mark.parametrize("kind", ["fedavgm", "fedyogi"])
def test_a_server_optimizer_steps_on_the_noised_output_of_a_central_round(
    context: Context, kind: str
) -> None:
    optimizer = {"server_optimizer": {"kind": kind, "adaptivity": 1.0}}
    round_id = sealed_round(context, random_updates(3), aggregation=optimizer)
    work(context, aggregate.run, "aggregate", round_id)
    row = round_of(context.database, round_id)
    assert row.optimizer_sha256 is not None
    assert is_kept(context, row.optimizer_sha256)
    work(context, validate.run, "validate", round_id)
    assert round_of(context.database, round_id).state is RoundState.VALIDATING
