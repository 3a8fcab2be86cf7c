"""What runs on one data set claim together: only what each of them implies at its own price."""

from __future__ import annotations

from itertools import combinations, product

import pytest
import torch

from app.budget.joint import FINENESS, Paid, Terms, common_of
from app.budget.models import AccountUnit
from app.budget.queries import covers
from engines.privacy.clipping import clip_to_norm

ALL = [Terms(unit, relation) for unit, relation in product(FINENESS, ("zero_out", "replace_one"))]


def paid(
    unit: str | None, relation: str | None, trust: str | None = "local", *, secret: bool = False
) -> Paid:
    return Paid(unit, relation, trust, secret)


def test_the_units_are_those_of_accounts_the_finest_first() -> None:
    assert [unit.value for unit in AccountUnit] == list(FINENESS)


def test_zero_out_implies_itself_alone_and_replace_one_every_unit_that_is_no_coarser() -> None:
    for own, other in product(ALL, ALL):
        finer = FINENESS.index(own.unit) >= FINENESS.index(other.unit)
        assert own.implies(other) is (own == other or (own.relation == "replace_one" and finer))
    assert not Terms("client", "add_remove").implies(Terms("client", "zero_out"))
    assert not Terms("client", "replace_one").implies(Terms("client", "add_remove"))
    assert not Terms("client", "replace_one").implies(Terms("device", "zero_out"))


@pytest.mark.parametrize("account", FINENESS)
def test_whatever_an_account_takes_has_a_claim_together_for_its_own_unit_at_least(account: str) -> None:
    taken = [one for one in ALL if covers(one, account)]
    assert Terms(account, "zero_out") in taken
    assert Terms("client", "replace_one") in taken
    for number in range(1, len(taken) + 1):
        for some in combinations(taken, number):
            found = common_of([paid(one.unit, one.relation) for one in some])
            assert found is not None
            assert found.terms.implies(Terms(account, "zero_out"))
    for refused in set(ALL) - set(taken):
        beside = [paid(refused.unit, refused.relation), paid(account, "zero_out")]
        shared = common_of(beside)
        assert shared is None or not shared.terms.implies(Terms(account, "zero_out"))


def test_a_record_can_move_a_clients_clipped_update_by_twice_what_zeroing_it_does() -> None:
    with_record, _norm = clip_to_norm(torch.tensor([5.0, 0.0]), 1.0)
    without, _norm = clip_to_norm(torch.tensor([-5.0, 0.0]), 1.0)
    assert float((with_record - torch.zeros(2)).norm()) == pytest.approx(1.0)
    assert float((with_record - without).norm()) == pytest.approx(2.0)


@pytest.mark.parametrize(
    ("runs", "shared"),
    [
        ([("example", "zero_out")], ("example", "zero_out")),
        ([("example", "zero_out"), ("example", "replace_one")], ("example", "zero_out")),
        ([("person", "replace_one"), ("client", "replace_one")], ("person", "replace_one")),
        ([("example", "zero_out"), ("client", "replace_one")], ("example", "zero_out")),
        ([("example", "zero_out"), ("client", "zero_out")], None),
        ([("person", "zero_out"), ("example", "zero_out")], None),
        ([("client", "zero_out"), ("example", "replace_one")], None),
        ([], None),
    ],
)
def test_what_runs_share_is_the_weakest_of_their_own_terms_or_nothing(
    runs: list[tuple[str, str]], shared: tuple[str, str] | None
) -> None:
    found = common_of([paid(*one) for one in runs])
    assert (None if found is None else (found.terms.unit, found.terms.relation)) == shared


@pytest.mark.parametrize(
    "unknown",
    [paid(None, "zero_out"), paid("example", None), paid("example", "zero_out", None),
     paid("example", "zero_out", "distributed")],
)  # fmt: skip
def test_a_run_that_does_not_say_what_and_against_whom_takes_the_claim_away(unknown: Paid) -> None:
    assert common_of([paid("example", "zero_out"), unknown]) is None


def test_the_adversary_is_of_all_trusts_and_of_every_secret_cohort() -> None:
    found = common_of([paid("client", "replace_one", "central", secret=True), paid("example", "zero_out")])
    assert found is not None
    assert (found.trusts, found.secret_cohort) == (("local", "central"), True)
