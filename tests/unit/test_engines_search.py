"""The integer search under every calibration."""

import pytest
from hypothesis import given
from hypothesis import strategies as st

from engines.privacy.search import smallest_that_holds


@given(turn=st.integers(-50, 1_050), start=st.integers(0, 1_000), step=st.integers(1, 300))
def test_the_smallest_integer_that_holds_is_found_from_anywhere(turn: int, start: int, step: int) -> None:
    asked: list[int] = []

    def holds(number: int) -> bool:
        asked.append(number)
        return number >= turn

    found = smallest_that_holds(holds, start=start, step=step, low=0, high=1_000)
    assert found == (None if turn > 1_000 else max(turn, 0))
    assert all(0 <= number <= 1_000 for number in asked)
    assert found is None or found in asked


@pytest.mark.parametrize(("start", "step"), [(-1, 1), (11, 1), (5, 0)])
def test_a_search_without_sense_is_refused(start: int, step: int) -> None:
    with pytest.raises(ValueError, match="start"):
        smallest_that_holds(lambda _: True, start=start, step=step, low=0, high=10)
