"""The noise source: exact rounding, the ideal's moments and tails, and streams that never repeat."""

import copy
import hashlib
import math
import os
import pickle
import random

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from numpy.typing import NDArray
from scipy import stats

from engines.privacy import noise
from engines.privacy.noise import (
    NoiseStream,
    exact_rounded_normal,
    grid_for,
    integer_gaussian,
    truncate_to_grid,
)

KEY = bytes(range(32))
WIDTH = 2.0**24 * 1.7


class ChosenWords(NoiseStream):
    """A stream whose words the test chooses, to reach corners that random words never show."""

    def __init__(self, words: list[int]) -> None:
        super().__init__(KEY)
        self._words = np.array(words, dtype=np.uint64)

    def words(self, count: int) -> NDArray[np.uint64]:
        assert count == len(self._words)
        return self._words


@given(st.floats(min_value=1e-200, max_value=1e200))
def test_the_grid_is_a_power_of_two_and_the_noise_at_least_2_to_24_steps_wide(noise_std: float) -> None:
    grid = grid_for(noise_std)
    assert math.frexp(grid)[0] == 0.5
    assert 2.0**24 <= noise_std / grid < 2.0**25


@pytest.mark.parametrize("noise_std", [0.0, -1.0, math.nan, math.inf, 1e-300])
def test_noise_without_a_positive_size_has_no_grid(noise_std: float) -> None:
    with pytest.raises(ValueError, match="standard deviation"):
        grid_for(noise_std)


@given(st.lists(st.floats(-1e6, 1e6, width=32), min_size=1, max_size=40), st.integers(-30, 3))
def test_truncation_goes_toward_zero_and_never_raises_the_norm(entries: list[float], exponent: int) -> None:
    grid = 2.0**exponent
    values = torch.tensor(entries, dtype=torch.float64)
    multiples = truncate_to_grid(values, grid)
    back = multiples.to(torch.float64) * grid
    assert bool((back.abs() <= values.abs()).all())
    assert bool(((values - back).abs() < grid).all())
    assert bool((back * values >= 0).all())


@pytest.mark.parametrize("value", [math.nan, math.inf, -math.inf, 2.0**62, -(2.0**62)])
def test_truncation_refuses_what_no_integer_can_hold(value: float) -> None:
    with pytest.raises(ValueError, match="not finite, or too large"):
        truncate_to_grid(torch.tensor([0.0, value], dtype=torch.float64), 1.0)


@pytest.mark.parametrize("grid", [0.0, -0.5, 0.3, math.nan, math.inf])
def test_truncation_refuses_a_grid_that_is_no_power_of_two(grid: float) -> None:
    with pytest.raises(ValueError, match="power of two"):
        truncate_to_grid(torch.zeros(1), grid)


def test_every_fast_value_equals_the_exact_rounding(monkeypatch: pytest.MonkeyPatch) -> None:
    fast = integer_gaussian(NoiseStream.from_key(KEY), 1_001, std_over_grid=WIDTH)
    monkeypatch.setattr(noise, "_DOUBT", 1.0)  # every value is now in doubt, so every one is recomputed
    exact = integer_gaussian(NoiseStream.from_key(KEY), 1_001, std_over_grid=WIDTH)
    assert torch.equal(fast, exact)


TOP = 2**64 - 1
CORNERS = [0, 1, 2**32, 2**63 - 1, 2**63, 2**63 + 1, TOP - 2**20, TOP - 1, TOP]


@pytest.mark.parametrize("radius", CORNERS)
@pytest.mark.parametrize("angle", CORNERS)
def test_corner_uniforms_round_exactly_and_stay_under_the_largest_noise(radius: int, angle: int) -> None:
    words = [radius, radius, angle, angle]
    drawn = integer_gaussian(ChosenWords(words), 2, std_over_grid=WIDTH)
    exact = [exact_rounded_normal(words, use_sine=sine, std_over_grid=WIDTH) for sine in (False, True)]
    assert drawn.tolist() == exact
    assert max(abs(value) for value in exact) <= noise.largest_noise(WIDTH)


@given(words=st.lists(st.integers(0, TOP), min_size=4, max_size=4), width=st.floats(2.0**24, 2.0**32))
@settings(max_examples=300)
def test_the_fast_path_stays_within_the_bound_the_proof_uses(words: list[int], width: float) -> None:
    """docs/privacy-proof.md states 2**-43 standard deviations; here against 90 digits."""
    fast = noise._fast_normals(np.array(words, dtype=np.uint64).reshape(4, 1)).reshape(-1)
    huge = 2.0**90  # so that rounding to an integer keeps 90 bits
    for value, sine in zip(fast, (False, True), strict=True):
        exact = exact_rounded_normal(words, use_sine=sine, std_over_grid=huge) / huge
        assert abs(value - exact) <= 2.0**-43


def test_the_draws_of_a_key_are_the_same_on_every_machine() -> None:
    """Exact rounding makes the integers a function of the key alone; the digest pins them."""
    drawn = integer_gaussian(NoiseStream.from_key(KEY), 4_096, std_over_grid=WIDTH)
    digest = hashlib.sha256(drawn.numpy().astype("<i8").tobytes()).hexdigest()
    assert digest == "044a77cab98e593ab108e2ed306df23e22a3e0840f5e658721bd6a3ce5b01024"


def test_the_draws_follow_the_normal_distribution() -> None:
    """A fixed key, so the figures below are constants: 400,000 values against N(0, 1)."""
    drawn = integer_gaussian(NoiseStream.from_key(KEY), 400_000, std_over_grid=WIDTH).numpy() / WIDTH
    assert stats.kstest(drawn, "norm").pvalue > 0.01
    assert abs(drawn.mean()) < 4 / math.sqrt(drawn.size)
    assert abs(drawn.var() - 1) < 4 * math.sqrt(2 / drawn.size)
    assert abs((drawn**4).mean() - 3) < 4 * math.sqrt(96 / drawn.size)
    expected_beyond_3 = drawn.size * 2 * stats.norm.sf(3)
    assert abs(int((abs(drawn) > 3).sum()) - expected_beyond_3) < 4 * math.sqrt(expected_beyond_3)
    assert abs(np.corrcoef(drawn[0::2], drawn[1::2])[0, 1]) < 4 / math.sqrt(drawn.size / 2)


@pytest.mark.parametrize("size", [0, 1, 2, 7])
def test_any_number_of_values_can_be_drawn(size: int) -> None:
    drawn = integer_gaussian(NoiseStream.fresh(), size, std_over_grid=WIDTH)
    assert (drawn.shape, drawn.dtype) == ((size,), torch.int64)


@pytest.mark.parametrize("width", [0.0, 2.0**24 - 1, 2.0**33, math.nan, math.inf])
def test_noise_too_coarse_or_too_fine_for_the_bound_is_refused(width: float) -> None:
    with pytest.raises(ValueError, match="grid steps wide"):
        integer_gaussian(NoiseStream.fresh(), 1, std_over_grid=width)


def test_a_negative_number_of_values_is_refused() -> None:
    with pytest.raises(ValueError, match="at least 0"):
        integer_gaussian(NoiseStream.fresh(), -1, std_over_grid=WIDTH)
    with pytest.raises(ValueError, match="at least 0"):
        NoiseStream.fresh().take(-1)


def test_two_fresh_streams_differ_and_one_stream_never_repeats_a_byte_block() -> None:
    one, other = NoiseStream.fresh(), NoiseStream.fresh()
    blocks = [one.take(16) for _ in range(100)] + [other.take(16) for _ in range(100)]
    assert len(set(blocks)) == 200


def test_no_generators_seed_fixes_a_fresh_stream() -> None:
    taken = set()
    for _ in range(2):
        random.seed(0)
        np.random.seed(0)
        torch.manual_seed(0)
        taken.add(NoiseStream.fresh().take(32))
    assert len(taken) == 2


def test_a_key_gives_the_same_stream_however_it_is_cut() -> None:
    whole = NoiseStream.from_key(KEY).take(100)
    cut = NoiseStream.from_key(KEY)
    assert cut.take(1) + cut.take(0) + cut.take(40) + cut.take(59) == whole


@pytest.mark.parametrize("length", [0, 16, 31, 33])
def test_a_key_of_another_length_is_refused(length: int) -> None:
    with pytest.raises(ValueError, match="32 bytes"):
        NoiseStream.from_key(bytes(length))


def test_a_stream_is_neither_copied_nor_pickled() -> None:
    stream = NoiseStream.fresh()
    for duplicate in (copy.copy, copy.deepcopy, pickle.dumps):
        with pytest.raises(TypeError, match="not copied"):
            duplicate(stream)


@pytest.mark.filterwarnings("ignore:.*multi-threaded, use of fork:DeprecationWarning")  # what is tested here
def test_a_stream_refuses_to_work_in_a_forked_child() -> None:
    stream = NoiseStream.fresh()
    child = os.fork()
    if child == 0:  # the child only answers by its exit status
        try:
            stream.take(1)
        except RuntimeError:
            os._exit(7)
        os._exit(0)
    _, status = os.waitpid(child, 0)
    assert os.waitstatus_to_exitcode(status) == 7
