"""The draw of a secret cohort: each by itself, with exactly the rate, and of too many a random subset."""

import itertools
import math
import random
from uuid import UUID, uuid4

import pytest

from app.rounds import selection
from app.rounds.selection import draw_cohort

IDS = [uuid4() for _number in range(12)]
DRAWS = 4000


def draws(rate: float, cap: int = len(IDS), population: int = len(IDS)) -> list[list[UUID]]:
    return [draw_cohort(IDS, rate=rate, cap=cap, population=population).clients for _time in range(DRAWS)]


def is_near(count: int, *, chance: float, of: int) -> bool:
    """Within five standard deviations of what is expected."""
    return abs(count - of * chance) <= 5.0 * math.sqrt(of * chance * (1.0 - chance))


def test_each_client_comes_with_the_rate_and_each_pair_with_its_square() -> None:
    found = draws(0.25)
    for one in IDS:
        assert is_near(sum(one in cohort for cohort in found), chance=0.25, of=DRAWS)
    for one, other in itertools.combinations(IDS, 2):
        assert is_near(sum({one, other} <= set(cohort) for cohort in found), chance=0.0625, of=DRAWS)


def test_at_rate_one_everybody_comes_and_a_cohort_may_be_empty() -> None:
    assert draw_cohort(IDS, rate=1.0, cap=len(IDS), population=len(IDS)).clients == IDS
    assert draw_cohort([], rate=0.5, cap=3, population=5).clients == []
    assert [] in draws(0.1)


def test_above_the_cap_every_client_is_cut_with_the_same_chance() -> None:
    found = draws(1.0, cap=3)
    assert all(len(set(cohort)) == 3 for cohort in found)
    for one in IDS:
        assert is_near(sum(one in cohort for cohort in found), chance=0.25, of=DRAWS)


def test_a_place_that_nobody_holds_takes_part_in_the_cut_and_comes_empty() -> None:
    found = draws(1.0, cap=6, population=4 * len(IDS))
    for one in IDS:
        assert is_near(sum(one in cohort for cohort in found), chance=0.125, of=DRAWS)
    assert {0, 1, 2} <= {len(cohort) for cohort in found}


def test_canaries_are_drawn_with_the_rate_and_cut_together_with_the_clients() -> None:
    """Of 12 clients and 36 canaries 24 are kept: each place with the same chance, and always 24 in all."""
    found = [draw_cohort(IDS, rate=1.0, cap=24, population=12, canaries=36) for _time in range(DRAWS)]
    assert {len(one.clients) + len(one.canaries) for one in found} == {24}
    for canary in range(36):
        assert is_near(sum(canary in one.canaries for one in found), chance=0.5, of=DRAWS)
    for client in IDS:
        assert is_near(sum(client in one.clients for one in found), chance=0.5, of=DRAWS)
    uncut = [draw_cohort(IDS[:5], rate=0.25, cap=48, population=12, canaries=36) for _time in range(DRAWS)]
    for canary in (0, 17, 35):
        assert is_near(sum(canary in one.canaries for one in uncut), chance=0.25, of=DRAWS)
    assert all(one.canaries == sorted(one.canaries) for one in uncut)


def test_no_seed_fixes_who_is_drawn() -> None:
    found = []
    for _time in range(2):
        random.seed(0)
        found.append(draws(0.5)[:50])
    assert found[0] != found[1]


def test_a_cohort_keeps_the_order_of_the_clients() -> None:
    assert all(cohort == sorted(cohort, key=IDS.index) for cohort in draws(0.9, cap=5)[:100])


@pytest.mark.parametrize("rate", [0.1, 0.25, 1e-9, 1.0, 1 / 3])
def test_the_chance_is_the_rate_itself_and_not_a_neighbour(
    rate: float, monkeypatch: pytest.MonkeyPatch
) -> None:
    numerator, denominator = rate.as_integer_ratio()
    for drawn, comes in ((numerator - 1, True), (numerator, False)):
        monkeypatch.setattr(selection.secrets, "randbelow", lambda below, drawn=drawn: drawn % below)
        assert selection._comes(rate) is (comes if drawn < denominator else True)
