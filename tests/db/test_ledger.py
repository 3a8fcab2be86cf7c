"""The privacy ledger: what it refuses, what it keeps, and that its chain tells."""

from uuid import UUID

import pytest
import sqlalchemy as sa
from sqlalchemy.exc import DBAPIError
from sqlalchemy.orm import Session

from app.budget import arithmetic, chain, ledger
from app.budget.errors import (
    BudgetExceeded,
    CeilingOverOrganisation,
    LedgerConflict,
    NotReserved,
    PopulationTaken,
)
from app.budget.models import Entry, EntryKind
from app.budget.queries import account_of_client, account_view
from app.core.errors import Invalid, NotFound
from app.core.ids import new_id
from app.identity.models import Client, ClientState
from tests.builders import build_account, build_client, build_organisation

EVENT = {"noise_multiplier": 0.9345, "sampling_rate": 0.1231, "steps": 64}


@pytest.fixture
def client(session: Session) -> Client:
    return build_client(session, build_organisation(session))


@pytest.fixture
def account_id(session: Session, client: Client) -> UUID:
    return build_account(session, client)


def reserve(session: Session, account_id: UUID, amount: int, *, ref: str = "run:1", delta: int = 0) -> Entry:
    return ledger.reserve(
        session, account_id, ref=ref, amount=amount, delta_amount=delta, event=EVENT, actor="test"
    )


def spend(
    session: Session, account_id: UUID, amount: int, *, ref: str = "round:1", reserve_ref: str = "run:1"
) -> Entry:
    return ledger.spend(
        session,
        account_id,
        ref=ref,
        reserve_ref=reserve_ref,
        amount=amount,
        delta_amount=0,
        event=EVENT,
        actor="test",
    )


def test_a_reservation_over_the_ceiling_is_refused_and_leaves_no_entry(
    session: Session, account_id: UUID
) -> None:
    with pytest.raises(BudgetExceeded):
        reserve(session, account_id, arithmetic.cost(8.000000001))
    assert account_view(session, account_id).reserved == 0
    assert ledger.find(session, account_id, EntryKind.RESERVE, "run:1") is None


def test_a_delta_over_its_ceiling_is_refused_by_itself(session: Session, account_id: UUID) -> None:
    reserve(session, account_id, 1, delta=arithmetic.delta_cost(4e-6))
    with pytest.raises(BudgetExceeded) as refusal:
        reserve(session, account_id, 1, ref="run:2", delta=arithmetic.delta_cost(7e-6))
    told = refusal.value.members
    assert (told["amounts_in"], told["asked"], told["left"], told["ceiling"]) == ("delta", 7e-6, 6e-6, 1e-5)


def test_a_reservation_of_exactly_the_ceiling_is_taken(session: Session, account_id: UUID) -> None:
    reserve(session, account_id, arithmetic.cost(8.0), delta=arithmetic.delta_cost(1e-5))
    view = account_view(session, account_id)
    assert (view.left, view.delta_left) == (0, 0)


def test_what_is_spent_counts_against_the_ceiling_for_ever(session: Session, account_id: UUID) -> None:
    reserve(session, account_id, 5 * 10**9)
    spend(session, account_id, 5 * 10**9)
    with pytest.raises(BudgetExceeded):
        reserve(session, account_id, 4 * 10**9, ref="run:2")


def test_the_same_reference_twice_is_one_entry(session: Session, account_id: UUID) -> None:
    first = reserve(session, account_id, 10**9)
    again = reserve(session, account_id, 10**9)
    assert (first.seq, account_view(session, account_id).reserved) == (again.seq, 10**9)


def test_other_amounts_under_the_same_reference_are_a_conflict(session: Session, account_id: UUID) -> None:
    reserve(session, account_id, 10**9)
    with pytest.raises(LedgerConflict):
        reserve(session, account_id, 2 * 10**9)


def test_spending_beyond_the_own_reservation_is_refused_though_another_holds_enough(
    session: Session, account_id: UUID
) -> None:
    reserve(session, account_id, 10**9)
    reserve(session, account_id, 5 * 10**9, ref="run:2")
    with pytest.raises(NotReserved):
        spend(session, account_id, 10**9 + 1)


def test_spending_without_a_reservation_is_refused(session: Session, account_id: UUID) -> None:
    with pytest.raises(NotReserved):
        spend(session, account_id, 1)


def test_spending_the_same_round_twice_charges_once(session: Session, account_id: UUID) -> None:
    reserve(session, account_id, 10**9)
    spend(session, account_id, 10**8)
    spend(session, account_id, 10**8)
    assert account_view(session, account_id).spent == 10**8


def test_parts_are_spent_in_their_order_whatever_they_are_for_and_not_beyond_the_last(
    session: Session, account_id: UUID
) -> None:
    reserve(session, account_id, 10, delta=4)
    common = {"reserve_ref": "run:1", "parts": [(7, 4), (3, 0)], "event": {}, "actor": "test"}
    amounts = [
        ledger.spend_next(session, account_id, ref=ref, **common).amount
        for ref in ("round:5", "round:5", "round:9")
    ]
    assert amounts == [7, 7, 3]
    with pytest.raises(NotReserved):
        ledger.spend_next(session, account_id, ref="round:10", **common)


def void(session: Session, account_id: UUID, *, ref: str = "disclaimer:1") -> Entry:
    return ledger.void(session, account_id, ref=ref, reserve_ref="run:1", event={}, actor="test")


def test_a_void_gives_an_untouched_reservation_back_whole(session: Session, account_id: UUID) -> None:
    reserve(session, account_id, 10**9, delta=10)
    void(session, account_id)
    view = account_view(session, account_id)
    assert (view.reserved, view.delta_reserved, view.spent) == (0, 0, 0)


def test_a_void_after_any_spend_is_refused(session: Session, account_id: UUID) -> None:
    reserve(session, account_id, 10**9)
    spend(session, account_id, 1)
    with pytest.raises(NotReserved):
        void(session, account_id)


def test_nothing_can_be_spent_from_a_voided_reservation(session: Session, account_id: UUID) -> None:
    reserve(session, account_id, 10**9)
    void(session, account_id)
    with pytest.raises(NotReserved):
        spend(session, account_id, 1)
    with pytest.raises(NotReserved):
        void(session, account_id, ref="disclaimer:2")


@pytest.mark.parametrize("amount", [-1, 2**63])
def test_an_amount_outside_the_ledgers_integers_is_refused(
    session: Session, account_id: UUID, amount: int
) -> None:
    with pytest.raises(Invalid):
        reserve(session, account_id, amount)


def test_an_unknown_account_is_not_found(session: Session) -> None:
    with pytest.raises(NotFound):
        reserve(session, new_id(), 1)
    with pytest.raises(NotFound):
        chain.verify_chain(session, new_id())


def test_a_grant_lifts_the_ceiling_of_both_sums(session: Session, account_id: UUID) -> None:
    ledger.grant(session, account_id, ref="grant:1", epsilon=1.5, delta=1e-6, reason="more", actor="test")
    view = account_view(session, account_id)
    assert (view.ceiling, view.delta_ceiling) == (9_500_000_000, 11 * 10**12)
    assert (view.epsilon, view.delta) == (9.5, pytest.approx(1.1e-5))


def test_a_grant_of_nothing_is_refused(session: Session, account_id: UUID) -> None:
    with pytest.raises(Invalid):
        ledger.grant(session, account_id, ref="g", epsilon=0.0, delta=0.0, reason="none", actor="test")


def test_a_renyi_account_holds_the_divergence_of_its_order(session: Session, client: Client) -> None:
    account_id = build_account(session, client, order=8.0)
    view = account_view(session, account_id)
    assert view.ceiling == arithmetic.renyi_ceiling(8.0, 1e-5, order=8.0)
    with pytest.raises(Invalid):
        ledger.grant(session, account_id, ref="g", epsilon=1.0, delta=1e-6, reason="delta", actor="test")
    ledger.grant(session, account_id, ref="g", epsilon=1.0, delta=0.0, reason="more", actor="test")
    assert account_view(session, account_id).ceiling == view.ceiling + 10**9


def test_enrolling_a_data_set_again_returns_its_account_with_what_was_spent(
    session: Session, client: Client, account_id: UUID
) -> None:
    reserve(session, account_id, 3 * 10**9)
    client.state = ClientState.SUSPENDED
    heir = build_client(session, build_organisation(session))
    again = _open(session, client, heir)
    view = account_of_client(session, heir.id)
    assert (again, view.id, view.reserved, view.ceiling) == (account_id, account_id, 3 * 10**9, 8 * 10**9)
    assert chain.verify_chain(session, account_id).holds


def test_a_data_set_of_an_active_client_is_not_taken_over(
    session: Session, client: Client, account_id: UUID
) -> None:
    heir = build_client(session, build_organisation(session))
    with pytest.raises(PopulationTaken):
        _open(session, client, heir)


def test_the_kinds_of_account_never_mix(session: Session, client: Client, account_id: UUID) -> None:
    client.state = ClientState.SUSPENDED
    with pytest.raises(PopulationTaken):
        _open(session, client, client, kind="renyi", order=8.0)


def _open(
    session: Session, former: Client, heir: Client, *, kind: str = "basic", order: float | None = None
) -> UUID:
    population = account_of_client(session, former.id).population
    return ledger.open_account(
        session,
        organisation_id=former.organisation_id,
        client_id=heir.id,
        population=population,
        kind=kind,
        epsilon=100.0,
        delta=1e-5,
        order=order,
        actor="test",
    )


def test_an_order_belongs_to_a_renyi_account_and_only_there(session: Session, client: Client) -> None:
    with pytest.raises(Invalid):
        ledger.open_account(
            session,
            organisation_id=client.organisation_id,
            client_id=client.id,
            population="p",
            kind="basic",
            epsilon=1.0,
            delta=1e-5,
            order=8.0,
            actor="test",
        )


@pytest.mark.parametrize(
    "statement",
    [
        "UPDATE ledger_entries SET amount = 0",
        "DELETE FROM ledger_entries",
        "TRUNCATE ledger_entries",
        "TRUNCATE accounts CASCADE",
        "DELETE FROM accounts",
        "UPDATE accounts SET spent = ceiling + 1",
        "UPDATE accounts SET reserved = -1",
        "UPDATE accounts SET spent = spent - 1",
        "UPDATE accounts SET ceiling = ceiling - 1",
        "UPDATE accounts SET kind = 'renyi', \"order\" = 8",
    ],
)
def test_the_database_itself_refuses_to_rewrite_the_ledger(
    session: Session, account_id: UUID, statement: str
) -> None:
    reserve(session, account_id, 10**9)
    spend(session, account_id, 10**9)
    with pytest.raises(DBAPIError), session.begin_nested():
        session.execute(sa.text(statement))


def test_a_whole_chain_holds(session: Session, account_id: UUID) -> None:
    for number in range(5):
        ref = f"run:{number}"
        event = {"steps": 8.0, "noise": 1e16, "nested": [1.5, None, {"text": "é"}], "small": 1e-300}
        ledger.reserve(
            session, account_id, ref=ref, amount=number + 1, delta_amount=0, event=event, actor="test"
        )
    session.expire_all()
    check = chain.verify_chain(session, account_id)
    assert (check.holds, check.entries) == (True, 6)


@pytest.mark.parametrize(
    ("statement", "broken_seq"),
    [
        ("UPDATE ledger_entries SET amount = amount - 1 WHERE seq = 3", 3),
        ("UPDATE ledger_entries SET event = '{}' WHERE seq = 2", 2),
        ("UPDATE ledger_entries SET actor = 'nobody' WHERE seq = 4", 4),
        ("DELETE FROM ledger_entries WHERE seq = 2", 2),
        ("DELETE FROM ledger_entries WHERE seq = 4", 4),
        ("UPDATE ledger_entries SET hash = 'x' WHERE seq = 3", 3),
        ("UPDATE accounts SET reserved = reserved - 1", 4),
        ("UPDATE accounts SET population = 'other'", 1),
    ],
)
def test_the_first_broken_entry_is_named_even_when_the_guards_were_switched_off(
    session: Session, account_id: UUID, statement: str, broken_seq: int
) -> None:
    for number in range(3):
        reserve(session, account_id, 10**9, ref=f"run:{number}")
    session.execute(sa.text("SET LOCAL session_replication_role = replica"))
    session.execute(sa.text(statement))
    session.expire_all()
    check = chain.verify_chain(session, account_id)
    assert (check.holds, check.broken_seq) == (False, broken_seq), check.fault


def test_an_account_stands_for_the_unit_that_it_was_opened_with(session: Session, client: Client) -> None:
    account_id = build_account(session, client, unit="client")
    assert account_view(session, account_id).unit == "client"
    assert chain.verify_chain(session, account_id).holds
    with pytest.raises(DBAPIError), session.begin_nested():
        session.execute(sa.text("UPDATE accounts SET unit = 'example'"))
    session.execute(sa.text("SET LOCAL session_replication_role = replica"))
    session.execute(sa.text("UPDATE accounts SET unit = 'example'"))
    assert chain.verify_chain(session, account_id).broken_seq == 1


def test_a_data_set_is_not_enrolled_again_with_another_unit(
    session: Session, client: Client, account_id: UUID
) -> None:
    client.state = ClientState.SUSPENDED
    with pytest.raises(PopulationTaken):
        ledger.open_account(
            session,
            organisation_id=client.organisation_id,
            client_id=client.id,
            population=account_of_client(session, client.id).population,
            kind="basic",
            epsilon=1.0,
            delta=1e-5,
            unit="client",
            actor="test",
        )


def test_no_account_is_granted_more_than_its_organisation_allows(session: Session) -> None:
    organisation = build_organisation(session)
    organisation.epsilon_ceiling = 6.0
    session.flush()
    with pytest.raises(CeilingOverOrganisation):
        build_account(session, build_client(session, organisation), epsilon=6.1)
    account_id = build_account(session, build_client(session, organisation), epsilon=4.0)

    def lift(ref: str, epsilon: float) -> None:
        ledger.grant(session, account_id, ref=ref, epsilon=epsilon, delta=1e-7, reason="more", actor="test")

    lift("g1", 2.0)
    with pytest.raises(CeilingOverOrganisation):
        lift("g2", 1e-9)
    lift("g3", 0.0)
    assert account_view(session, account_id).epsilon == 6.0


def test_a_refused_reservation_says_what_was_asked_what_is_left_and_the_ceiling(
    session: Session, account_id: UUID
) -> None:
    reserve(session, account_id, 3 * 10**9)
    with pytest.raises(BudgetExceeded) as refusal:
        reserve(session, account_id, 6 * 10**9, ref="run:2")
    members = refusal.value.members
    assert (members["asked"], members["left"], members["ceiling"]) == (6.0, 5.0, 8.0)
