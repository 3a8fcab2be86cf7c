"""Projections: integers that never promise more than the ledger would grant."""

from __future__ import annotations

from dataclasses import replace
from datetime import UTC, datetime
from uuid import uuid4

import pytest
from hypothesis import given
from hypothesis import strategies as st

from app.budget.projection import MOST_ROUNDS, affordable, cost_of, implied, project, refusal
from app.budget.queries import AccountView

PARTS = [(2_500_000_000, 10**13), (1_400_000_000, 0)]
"""A plan of two rounds: epsilon 2.5, then 3.9 in all, delta 1e-5."""


def account(**changes: object) -> AccountView:
    view = AccountView(
        id=uuid4(),
        organisation_id=uuid4(),
        client_id=None,
        population="mails",
        kind="basic",
        unit="example",
        order=None,
        epsilon=8.0,
        delta=1e-5,
        ceiling=8 * 10**9,
        reserved=0,
        spent=0,
        delta_ceiling=10**15,
        delta_reserved=0,
        delta_spent=0,
        entries=1,
        head_hash="",
        created_at=datetime.now(UTC),
    )
    return replace(view, **changes)  # type: ignore[arg-type]  # names and types are those of the view


def test_rounds_beyond_the_plan_are_those_of_further_runs() -> None:
    assert cost_of(PARTS, 1) == (2_500_000_000, 10**13)
    assert cost_of(PARTS, 2) == (3_900_000_000, 10**13)
    assert cost_of(PARTS, 3) == (6_400_000_000, 2 * 10**13)
    assert cost_of(PARTS, 0) == (0, 0)


def test_a_run_that_fits_partly_affords_its_first_rounds() -> None:
    assert affordable(PARTS, left=8 * 10**9, delta_left=10**15) == 4
    assert affordable(PARTS, left=7_799_999_999, delta_left=10**15) == 3
    assert affordable(PARTS, left=2_499_999_999, delta_left=10**15) == 0


def test_the_delta_alone_can_be_what_is_not_afforded() -> None:
    assert affordable(PARTS, left=10**12, delta_left=10**13) == 2
    assert affordable(PARTS, left=10**12, delta_left=10**13 - 1) == 0


def test_a_plan_that_costs_almost_nothing_is_not_looked_at_for_ever() -> None:
    assert affordable([(1, 0)], left=2**62, delta_left=0) == MOST_ROUNDS


parts = st.lists(st.tuples(st.integers(1, 10**6), st.integers(0, 50)), min_size=1, max_size=6)


@given(parts=parts, left=st.integers(0, 10**7), delta_left=st.integers(0, 500))
def test_what_is_affordable_fits_and_one_round_more_does_not(
    parts: list[tuple[int, int]], left: int, delta_left: int
) -> None:
    rounds = affordable(parts, left=left, delta_left=delta_left)
    amount, delta = cost_of(parts, rounds)
    assert amount <= left
    assert delta <= delta_left
    amount, delta = cost_of(parts, rounds + 1)
    assert rounds == MOST_ROUNDS or amount > left or delta > delta_left


def test_reserved_rounds_come_first_and_move_from_reserved_to_spent() -> None:
    view = account(reserved=1_400_000_000, spent=2_500_000_000, delta_spent=10**13)
    found = project(view, PARTS, held=PARTS[1:], rounds=1)
    assert (found.cost, found.covered, found.reserved_rounds) == ((0, 0), True, 1)
    assert found.spent == (3_900_000_000, 10**13)
    assert found.committed == (3_900_000_000, 10**13)


def test_of_several_reserved_rounds_only_those_asked_for_are_spent() -> None:
    view = account(reserved=3_900_000_000, delta_reserved=10**13)
    found = project(view, PARTS, held=PARTS, rounds=1)
    assert (found.cost, found.spent) == ((0, 0), (2_500_000_000, 10**13))
    assert found.committed == (3_900_000_000, 10**13)


def test_rounds_after_the_reserved_ones_are_paid_anew() -> None:
    view = account(reserved=1_400_000_000, spent=2_500_000_000, delta_spent=10**13)
    found = project(view, PARTS, held=PARTS[1:], rounds=4)
    assert found.cost == (6_400_000_000, 2 * 10**13)
    assert (found.covered, found.affordable) == (False, 3)
    assert found.committed == (10_300_000_000, 3 * 10**13)
    assert found.spent == found.committed


def test_a_renyi_account_projects_its_own_amounts_and_says_what_they_imply() -> None:
    view = account(kind="renyi", order=8.0, delta_ceiling=0)
    found = project(view, [(500_000_000, 0)] * 2, held=[], rounds=2)
    assert found.cost == (10**9, 0)
    epsilon, delta = implied(view, found.committed)
    # By hand: 1 + log1p(-1/8) - log(8e-5)/7 = 1 - 0.1335314 + 1.3476410.
    assert float(epsilon) == pytest.approx(2.2141096, abs=1e-6)
    assert delta == 1e-5


def test_a_refusal_says_what_was_asked_what_is_left_and_the_ceiling() -> None:
    told = refusal(account(spent=5_000_000_001), asked=(3_900_000_001, 0)).members
    assert (told["asked"], told["left"], told["ceiling"]) == (3.9001, 2.9999, 8.0)
    assert told["amounts_in"] == "epsilon"


def test_where_only_the_delta_is_short_the_refusal_speaks_of_the_delta() -> None:
    told = refusal(account(delta_spent=10**15 - 10**12), asked=(1, 10**13)).members
    assert (told["amounts_in"], told["asked"], told["left"], told["ceiling"]) == ("delta", 1e-5, 1e-6, 1e-3)


def test_where_both_are_short_the_refusal_speaks_of_epsilon() -> None:
    told = refusal(account(spent=8 * 10**9, delta_spent=10**15), asked=(10**9, 10**13)).members
    assert (told["amounts_in"], told["asked"], told["left"]) == ("epsilon", 1.0, 0.0)
