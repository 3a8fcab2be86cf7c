"""Booking on many accounts at once: the same entries as one by one, all or none, whoever races."""

from concurrent.futures import ThreadPoolExecutor
from uuid import UUID

import pytest
import sqlalchemy as sa
from sqlalchemy.orm import Session

from app.budget import bulk, chain, ledger
from app.budget.errors import BudgetExceeded, LedgerConflict, NotReserved
from app.budget.models import Account, Entry, EntryKind
from app.budget.queries import account_view
from app.core.db import Database
from app.core.errors import NotFound
from app.core.ids import new_id
from tests.builders import build_account, build_client, build_organisation
from tests.system.driver import eventually

PARTS = [(7, 4), (3, 0), (2, 0)]
WHOLE = (12, 4)
EVENT = {"noise_multiplier": 1.1292, "unit": "client"}


def build_accounts(session: Session, count: int, *, epsilon: float = 8.0) -> list[UUID]:
    organisation = build_organisation(session)
    return sorted(
        build_account(session, build_client(session, organisation), epsilon=epsilon)
        for _number in range(count)
    )


@pytest.fixture
def account_ids(session: Session) -> list[UUID]:
    return build_accounts(session, 5)


def reserve(session: Session, account_ids: list[UUID], amounts: tuple[int, int] = WHOLE) -> int:
    charges = dict.fromkeys(account_ids, amounts)
    return bulk.reserve_run(session, charges=charges, ref="run:1", event=EVENT, actor="test")


def spend(session: Session, account_ids: list[UUID], ref: str = "round:1") -> int:
    return bulk.spend_round(
        session,
        account_ids=account_ids,
        ref=ref,
        reserve_ref="run:1",
        parts=PARTS,
        event=EVENT,
        actor="test",
    )


def spent(session: Session, account_id: UUID) -> tuple[int, int]:
    view = account_view(session, account_id)
    return view.spent, view.delta_spent


def test_a_round_charges_every_account_its_next_part_and_the_chains_hold(
    session: Session, account_ids: list[UUID]
) -> None:
    assert reserve(session, account_ids) == 5
    assert [spend(session, account_ids, f"round:{number}") for number in range(3)] == [5, 5, 5]
    for account_id in account_ids:
        view = account_view(session, account_id)
        assert (view.spent, view.reserved, view.delta_spent, view.delta_reserved) == (12, 0, 4, 0)
        check = chain.verify_chain(session, account_id)
        assert (check.holds, check.entries) == (True, 5)


def test_a_booking_in_bulk_is_the_entry_that_a_single_booking_would_be(
    session: Session, account_ids: list[UUID]
) -> None:
    one, other = account_ids[:2]
    reserve(session, [one])
    ledger.reserve(
        session, other, ref="run:1", amount=WHOLE[0], delta_amount=WHOLE[1], event=EVENT, actor="test"
    )
    spend(session, [one])
    ledger.spend_next(
        session, other, ref="round:1", reserve_ref="run:1", parts=PARTS, event=EVENT, actor="test"
    )
    rows = [
        session.execute(
            sa.select(
                Entry.seq,
                Entry.kind,
                Entry.ref,
                Entry.reserve_ref,
                Entry.amount,
                Entry.delta_amount,
                Entry.event,
            )
            .where(Entry.account_id == account_id, Entry.kind != EntryKind.GRANT)
            .order_by(Entry.seq)
        ).all()
        for account_id in (one, other)
    ]
    assert rows[0] == rows[1]
    assert len(rows[0]) == 2


def test_the_same_round_twice_charges_once(session: Session, account_ids: list[UUID]) -> None:
    reserve(session, account_ids)
    assert (spend(session, account_ids), spend(session, account_ids)) == (5, 0)
    assert {spent(session, account_id) for account_id in account_ids} == {(7, 4)}


def test_a_reservation_twice_is_one_and_other_amounts_are_a_conflict(
    session: Session, account_ids: list[UUID]
) -> None:
    assert (reserve(session, account_ids), reserve(session, account_ids)) == (5, 0)
    with pytest.raises(LedgerConflict):
        reserve(session, account_ids, (13, 4))


def test_an_account_that_was_charged_alone_before_is_charged_no_second_time(
    session: Session, account_ids: list[UUID]
) -> None:
    reserve(session, account_ids)
    ledger.spend_next(
        session, account_ids[2], ref="round:1", reserve_ref="run:1", parts=PARTS, event=EVENT, actor="test"
    )
    assert spend(session, account_ids) == 4
    assert {spent(session, account_id) for account_id in account_ids} == {(7, 4)}


def test_one_account_that_cannot_pay_leaves_nothing_on_any(session: Session, account_ids: list[UUID]) -> None:
    poor = build_accounts(session, 1, epsilon=1e-9)
    with pytest.raises(BudgetExceeded) as refusal:
        reserve(session, sorted(account_ids + poor))
    assert refusal.value.members == {"accounts": 1}
    assert session.scalar(sa.select(sa.func.count()).where(Entry.kind == EntryKind.RESERVE)) == 0
    assert all(account_view(session, account_id).reserved == 0 for account_id in account_ids)


def test_a_delta_that_is_not_covered_is_refused_by_itself(session: Session, account_ids: list[UUID]) -> None:
    with pytest.raises(BudgetExceeded):
        reserve(session, account_ids, (1, 10**13 + 1))


def test_nothing_is_spent_that_was_not_reserved_on_every_account(
    session: Session, account_ids: list[UUID]
) -> None:
    reserve(session, account_ids[1:])
    with pytest.raises(NotReserved):
        spend(session, account_ids)
    assert {spent(session, account_id) for account_id in account_ids} == {(0, 0)}


def test_nothing_is_spent_beyond_the_last_part_or_the_reservation(
    session: Session, account_ids: list[UUID]
) -> None:
    reserve(session, account_ids, (9, 4))
    spend(session, account_ids, "round:1")
    with pytest.raises(NotReserved):  # 7 + 3 of 9
        spend(session, account_ids, "round:2")
    whole = build_accounts(session, 2)
    reserve(session, whole)
    for number in range(3):
        spend(session, whole, f"round:{number}")
    with pytest.raises(NotReserved):
        spend(session, whole, "round:4")


def test_a_reservation_that_was_given_back_cannot_be_spent(session: Session, account_ids: list[UUID]) -> None:
    reserve(session, account_ids)
    ledger.void(session, account_ids[0], ref="disclaimer:1", reserve_ref="run:1", event={}, actor="test")
    with pytest.raises(NotReserved):
        spend(session, account_ids)


def test_not_even_nothing_is_spent_from_a_reservation_that_was_given_back(
    session: Session, account_ids: list[UUID]
) -> None:
    reserve(session, account_ids)
    ledger.void(session, account_ids[0], ref="disclaimer:1", reserve_ref="run:1", event={}, actor="test")
    with pytest.raises(NotReserved):
        bulk.spend_round(
            session,
            account_ids=account_ids[:1],
            ref="round:1",
            reserve_ref="run:1",
            parts=[(0, 0)],
            event=EVENT,
            actor="test",
        )


def test_a_round_that_was_charged_leaves_no_way_to_give_the_reservation_back(
    session: Session, account_ids: list[UUID]
) -> None:
    reserve(session, account_ids)
    spend(session, account_ids)
    for account_id in account_ids:
        with pytest.raises(NotReserved):
            ledger.void(session, account_id, ref="disclaimer:1", reserve_ref="run:1", event={}, actor="test")


def test_an_unknown_account_is_not_found(session: Session, account_ids: list[UUID]) -> None:
    with pytest.raises(NotFound):
        reserve(session, [*account_ids, new_id()])


def test_entries_replayed_give_every_stored_total_bit_for_bit(
    session: Session, account_ids: list[UUID]
) -> None:
    reserve(session, account_ids)
    spend(session, account_ids)
    replayed = session.execute(
        sa.select(
            Entry.account_id,
            sa.func.sum(Entry.amount).filter(Entry.kind == EntryKind.RESERVE)
            - sa.func.sum(Entry.amount).filter(Entry.kind == EntryKind.SPEND),
            sa.func.sum(Entry.amount).filter(Entry.kind == EntryKind.SPEND),
            sa.func.sum(Entry.delta_amount).filter(Entry.kind == EntryKind.SPEND),
        )
        .group_by(Entry.account_id)
        .order_by(Entry.account_id)
    ).all()
    stored = session.execute(
        sa.select(Account.id, Account.reserved, Account.spent, Account.delta_spent).order_by(Account.id)
    ).all()
    assert [tuple(row) for row in replayed] == [tuple(row) for row in stored]


def test_of_racing_workers_and_clients_each_account_is_charged_once_a_round(database: Database) -> None:
    with database.run_tx("set up") as session:
        account_ids = build_accounts(session, 20)
        reserve(session, account_ids)

    def bulk_round(_number: int) -> int:
        with database.run_tx("spend") as session:
            return spend(session, account_ids)

    def alone(number: int) -> int:
        with database.run_tx("spend") as session:
            ledger.spend_next(
                session,
                account_ids[-1 - number],
                ref="round:1",
                reserve_ref="run:1",
                parts=PARTS,
                event=EVENT,
                actor="test",
            )
            return 0

    with ThreadPoolExecutor(8) as pool:
        done = [pool.submit(work, number) for number in range(8) for work in (bulk_round, alone)]
        added = sum(one.result() for one in done)
    assert 12 <= added <= 20
    with database.run_tx("check") as session:
        assert {spent(session, account_id) for account_id in account_ids} == {(7, 4)}
        assert all(chain.verify_chain(session, account_id).holds for account_id in account_ids)


def is_waiting(database: Database) -> bool:
    """Say whether somebody waits for a lock."""
    with database.run_tx("look") as session:
        waiting = sa.text(
            "SELECT count(*) FROM pg_stat_activity "
            "WHERE wait_event_type = 'Lock' AND datname = current_database()"
        )
        return bool(session.scalar(waiting))


def test_accounts_are_locked_in_the_order_of_their_ids_wherever_their_rows_lie(database: Database) -> None:
    with database.run_tx("set up") as session:
        account_ids = build_accounts(session, 6)
        reserve(session, account_ids)
    with database.run_tx("move the first row behind all others") as session:
        ledger.grant(session, account_ids[0], ref="g", epsilon=1.0, delta=0.0, reason="more", actor="test")

    def bulk_round() -> int:
        with database.run_tx("spend") as session:
            return spend(session, account_ids[::-1])

    with ThreadPoolExecutor(1) as pool:
        with database.run_tx("hold the first") as session:
            session.execute(sa.select(Account.id).where(Account.id == account_ids[0]).with_for_update())
            waiter = pool.submit(bulk_round)
            eventually(lambda: is_waiting(database), what="the round waits for the first account")
            with database.run_tx("take the others") as other:
                free = sa.select(Account.id).where(Account.id.in_(account_ids[1:]))
                assert len(other.scalars(free.with_for_update(nowait=True)).all()) == 5
        assert waiter.result() == 6


def test_runs_that_race_for_one_budget_reserve_whole_or_not_at_all(database: Database) -> None:
    with database.run_tx("set up") as session:
        account_ids = build_accounts(session, 10)

    def attempt(number: int) -> bool:
        try:
            with database.run_tx("reserve") as session:
                bulk.reserve_run(
                    session,
                    charges=dict.fromkeys(account_ids, (3 * 10**9, 0)),
                    ref=f"run:{number}",
                    event=EVENT,
                    actor="test",
                )
        except BudgetExceeded:
            return False
        return True

    with ThreadPoolExecutor(8) as pool:
        assert sum(pool.map(attempt, range(8))) == 2
    with database.run_tx("check") as session:
        assert {account_view(session, one).reserved for one in account_ids} == {6 * 10**9}


def statements_of(session: Session, count: int) -> int:
    """How many statements one round of so many accounts takes."""
    account_ids = build_accounts(session, count)
    charges = dict.fromkeys(account_ids, WHOLE)
    seen: list[str] = []

    def note(*event: object) -> None:
        seen.append(str(event[2]))

    bind = session.get_bind()
    sa.event.listen(bind, "before_cursor_execute", note)
    bulk.reserve_run(session, charges=charges, ref="run:1", event=EVENT, actor="test")
    assert spend(session, account_ids) == count
    sa.event.remove(bind, "before_cursor_execute", note)
    return len(seen)


def test_the_statements_of_a_round_do_not_grow_with_its_accounts(session: Session) -> None:
    assert statements_of(session, 200) == statements_of(session, 2) < 20
