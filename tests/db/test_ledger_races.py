"""The ledger under true concurrency, and as a sequence of arbitrary bookings."""

from concurrent.futures import ThreadPoolExecutor
from uuid import UUID

import hypothesis.strategies as st
from hypothesis import HealthCheck, given, settings
from sqlalchemy.orm import Session

from app.budget import arithmetic, chain, ledger
from app.budget.errors import BudgetExceeded
from app.budget.queries import account_view
from app.core.db import Database
from app.core.errors import Conflict, Invalid
from tests.builders import build_account, build_client, build_organisation


def test_of_200_concurrent_reservations_of_a_tenth_exactly_50_fit_into_5(database: Database) -> None:
    with database.run_tx("set up") as session:
        account_id = build_account(session, build_client(session, build_organisation(session)), epsilon=5.0)

    def attempt(number: int) -> bool:
        try:
            with database.run_tx("reserve") as session:
                ledger.reserve(
                    session,
                    account_id,
                    ref=f"run:{number}",
                    amount=arithmetic.cost(0.1),
                    delta_amount=0,
                    event={"epsilon": 0.1},
                    actor="test",
                )
        except BudgetExceeded:
            return False
        return True

    with ThreadPoolExecutor(16) as pool:
        granted = sum(pool.map(attempt, range(200)))
    with database.run_tx("check") as session:
        view = account_view(session, account_id)
        assert (granted, view.reserved, view.left) == (50, 5 * 10**9, 0)
        assert chain.verify_chain(session, account_id).holds


def test_the_same_booking_by_16_at_once_is_one_entry(database: Database) -> None:
    with database.run_tx("set up") as session:
        account_id = build_account(session, build_client(session, build_organisation(session)))

    def attempt(_number: int) -> int:
        with database.run_tx("reserve") as session:
            entry = ledger.reserve(
                session, account_id, ref="run:1", amount=7, delta_amount=0, event={}, actor="test"
            )
            return entry.seq

    with ThreadPoolExecutor(16) as pool:
        assert set(pool.map(attempt, range(16))) == {2}
    with database.run_tx("check") as session:
        assert account_view(session, account_id).reserved == 7


bookings = st.lists(
    st.tuples(
        st.sampled_from(["grant", "reserve", "spend", "void"]), st.integers(0, 3), st.integers(0, 4 * 10**9)
    ),
    max_size=25,
)


def book(session: Session, account_id: UUID, *, step: int, kind: str, run: int, amount: int) -> None:
    common = {"event": {}, "actor": "test"}
    match kind:
        case "grant":
            ledger.grant(
                session,
                account_id,
                ref=f"g{step}",
                epsilon=amount / 10**10,
                delta=0.0,
                reason="r",
                actor="test",
            )
        case "reserve":
            ledger.reserve(session, account_id, ref=f"run:{run}", amount=amount, delta_amount=0, **common)
        case "spend":
            ledger.spend(
                session,
                account_id,
                ref=f"s{step}",
                reserve_ref=f"run:{run}",
                amount=amount,
                delta_amount=0,
                **common,
            )
        case _:
            ledger.void(session, account_id, ref=f"void:{run}", reserve_ref=f"run:{run}", **common)


@settings(
    max_examples=40,
    deadline=None,
    suppress_health_check=[HealthCheck.function_scoped_fixture],
    derandomize=True,
)
@given(bookings)
def test_a_total_never_falls_except_by_a_void_and_never_passes_the_ceiling(
    session: Session, steps: list[tuple[str, int, int]]
) -> None:
    account_id = build_account(session, build_client(session, build_organisation(session)))
    before = account_view(session, account_id)
    for number, (kind, run, amount) in enumerate(steps):
        try:
            with session.begin_nested():
                book(session, account_id, step=number, kind=kind, run=run, amount=amount)
        except Conflict:
            pass
        except Invalid:
            assert kind == "grant"
        after = account_view(session, account_id)
        assert after.spent + after.reserved <= after.ceiling
        assert after.spent >= before.spent
        if kind != "void":
            assert after.spent + after.reserved >= before.spent + before.reserved
        before = after
    assert chain.verify_chain(session, account_id).holds
