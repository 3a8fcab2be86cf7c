"""What a period has cost an account: what was set aside or spent in it, and nothing else."""

from datetime import timedelta

import pytest
from sqlalchemy.orm import Session

from app.budget import ledger
from app.budget.periods import engaged_since
from app.core import clock
from tests.builders import build_account, build_client

LONG_AGO = timedelta(days=-40)
EVENT: dict[str, object] = {}


class Book:
    """An account that runs of some age were booked on."""

    def __init__(self, session: Session) -> None:
        self.session = session
        self.id = build_account(session, build_client(session))

    def reserve(self, ref: str, amount: int) -> None:
        ledger.reserve(
            self.session, self.id, ref=ref, amount=amount, delta_amount=0, event=EVENT, actor="test"
        )

    def spend(self, ref: str, amount: int, *, of: str) -> None:
        ledger.spend(
            self.session,
            self.id,
            ref=ref,
            reserve_ref=of,
            amount=amount,
            delta_amount=0,
            event=EVENT,
            actor="test",
        )

    def void(self, of: str) -> None:
        ledger.void(self.session, self.id, ref=f"void:{of}", reserve_ref=of, event=EVENT, actor="test")

    def engaged(self, *, beside: str = "run:none") -> int:
        since = clock.now() - timedelta(days=30)
        return engaged_since(self.session, [self.id], since=since, beside=beside).get(self.id, 0)


@pytest.fixture
def book(session: Session) -> Book:
    return Book(session)


def test_what_was_reserved_in_the_period_counts_whole_and_once(book: Book) -> None:
    assert book.engaged() == 0
    book.reserve("run:1", 100)
    book.spend("round:1", 30, of="run:1")
    assert book.engaged() == 100


def test_what_was_given_back_does_not_count(book: Book) -> None:
    book.reserve("run:1", 100)
    book.reserve("run:2", 20)
    book.void("run:1")
    assert book.engaged() == 20


def test_of_an_older_reservation_what_was_spent_in_the_period_counts(book: Book) -> None:
    with clock.shifted(LONG_AGO):
        book.reserve("run:1", 100)
        book.spend("round:1", 30, of="run:1")
        book.reserve("run:2", 1000)
    assert book.engaged() == 0
    book.spend("round:2", 25, of="run:1")
    assert book.engaged() == 25


def test_the_run_that_is_judged_is_left_out_and_other_accounts_are_not_mixed_in(
    book: Book, session: Session
) -> None:
    book.reserve("run:1", 100)
    book.reserve("run:2", 20)
    Book(session).reserve("run:2", 7)
    assert book.engaged(beside="run:1") == 20
