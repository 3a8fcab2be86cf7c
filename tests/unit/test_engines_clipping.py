"""Clipping: the exact norm, in rational arithmetic, is never above the bound."""

import math
from fractions import Fraction

import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st
from torch import Tensor

from engines.privacy.clipping import clip_per_sample, clip_to_norm

ENTRIES_32 = st.lists(st.floats(allow_nan=False, allow_infinity=False, width=32), min_size=1, max_size=30)
ENTRIES_64 = st.lists(st.floats(-1e100, 1e100), min_size=1, max_size=30)
BOUNDS = st.floats(1e-12, 1e12)


def exact_square(values: Tensor) -> Fraction:
    return sum((Fraction(value) ** 2 for value in values.to(torch.float64).tolist()), Fraction(0))


@given(ENTRIES_32, BOUNDS)
def test_a_float32_update_never_leaves_with_a_norm_above_the_bound(
    entries: list[float], bound: float
) -> None:
    clipped, _ = clip_to_norm(torch.tensor(entries, dtype=torch.float32), bound)
    assert clipped.dtype == torch.float32
    assert exact_square(clipped) <= Fraction(bound) ** 2


@given(ENTRIES_64, BOUNDS)
def test_a_float64_update_never_leaves_with_a_norm_above_the_bound(
    entries: list[float], bound: float
) -> None:
    clipped, _ = clip_to_norm(torch.tensor(entries, dtype=torch.float64), bound)
    assert exact_square(clipped) <= Fraction(bound) ** 2


@given(ENTRIES_32)
def test_an_update_at_its_own_norm_still_obeys_it(entries: list[float]) -> None:
    update = torch.tensor(entries, dtype=torch.float32)
    norm = float(torch.linalg.vector_norm(update.to(torch.float64)))
    if 1e-12 <= norm <= 1e12:
        assert exact_square(clip_to_norm(update, norm)[0]) <= Fraction(norm) ** 2


@given(st.lists(ENTRIES_64, min_size=1, max_size=4), BOUNDS)
def test_no_sample_leaves_with_a_norm_above_the_bound(rows: list[list[float]], bound: float) -> None:
    width = max(len(row) for row in rows)
    gradients = torch.tensor([row + [0.0] * (width - len(row)) for row in rows], dtype=torch.float64)
    for row in clip_per_sample([gradients], bound):
        assert exact_square(row) <= Fraction(bound) ** 2


def test_an_update_under_the_bound_is_returned_unchanged_and_not_the_same_memory() -> None:
    update = torch.tensor([3.0, 4.0])
    clipped, norm = clip_to_norm(update, 6.0)
    assert torch.equal(clipped, update)
    assert norm == 5.0
    assert clipped.data_ptr() != update.data_ptr()


def test_clipping_keeps_the_direction_and_almost_all_of_the_bound() -> None:
    clipped, norm = clip_to_norm(torch.tensor([30.0, 40.0]), 1.0)
    assert norm == 50.0
    assert clipped.tolist() == pytest.approx([0.6, 0.8], rel=1e-6)


def test_one_flat_norm_binds_all_tensors_together() -> None:
    gradients = [torch.full((1, 3), 2.0), torch.full((1, 1, 1), 2.0)]  # flat norm 4
    assert clip_per_sample(gradients, 1.0).tolist()[0] == pytest.approx([0.5] * 4, rel=1e-9)


def test_samples_are_clipped_apart() -> None:
    clipped = clip_per_sample([torch.tensor([[0.3], [-7.0], [0.0]])], 1.0)
    assert clipped.flatten().tolist() == pytest.approx([0.3, -1.0, 0.0], rel=1e-7)


@pytest.mark.parametrize("bad", [math.nan, math.inf, -math.inf])
def test_a_sample_that_is_not_finite_becomes_zero_and_changes_no_other(bad: float) -> None:
    good = torch.tensor([[1.0, 2.0], [0.1, 0.2]])
    broken = torch.tensor([[1.0, 2.0], [0.5, bad], [0.1, 0.2]])
    clipped = clip_per_sample([broken], 1.0)
    assert clipped[1].tolist() == [0.0, 0.0]
    assert torch.equal(clipped[[0, 2]], clip_per_sample([good], 1.0))


def test_a_finite_sample_whose_squares_overflow_counts_as_not_finite() -> None:
    clipped = clip_per_sample([torch.tensor([[1e200, 1e200]], dtype=torch.float64)], 1.0)
    assert clipped.tolist() == [[0.0, 0.0]]


def test_the_gradients_handed_in_stay_as_they_were() -> None:
    gradients = torch.tensor([[3.0, 4.0], [math.nan, 0.0]], dtype=torch.float64)
    clip_per_sample([gradients], 1.0)
    assert gradients[0].tolist() == [3.0, 4.0]
    assert math.isnan(gradients[1, 0])


def test_an_empty_batch_gives_an_empty_matrix() -> None:
    assert clip_per_sample([torch.zeros(0, 2, 3), torch.zeros(0, 4)], 1.0).shape == (0, 10)


@pytest.mark.parametrize("dtype", [torch.bfloat16, torch.float16])
def test_half_precision_gradients_are_clipped_in_float64(dtype: torch.dtype) -> None:
    """In bfloat16 itself the largest norm over the bound was measured at 1.00846."""
    row = clip_per_sample([torch.randn(1, 999, generator=torch.Generator().manual_seed(1)).to(dtype)], 1.0)[0]
    assert exact_square(row) <= 1


@pytest.mark.parametrize("bound", [0.0, -1.0, math.nan, math.inf, 1e-13, 1e13])
def test_a_bound_that_is_not_an_ordinary_positive_number_is_refused(bound: float) -> None:
    with pytest.raises(ValueError, match="clip norm"):
        clip_to_norm(torch.ones(2), bound)
    with pytest.raises(ValueError, match="clip norm"):
        clip_per_sample([torch.ones(2, 2)], bound)


def test_an_update_that_is_not_finite_or_not_a_vector_is_refused() -> None:
    for value in (math.nan, math.inf):
        with pytest.raises(ValueError, match="finite"):
            clip_to_norm(torch.tensor([1.0, value]), 1.0)
    for update in (torch.ones(2, 2), torch.ones(2, dtype=torch.bfloat16), torch.ones(2, dtype=torch.int64)):
        with pytest.raises(ValueError, match="vector"):
            clip_to_norm(update, 1.0)


@pytest.mark.parametrize(
    "gradients",
    [[], [torch.tensor(1.0)], [torch.ones(2, 2, dtype=torch.int64)], [torch.ones(2, 1), torch.ones(3, 1)]],
)
def test_gradients_that_do_not_belong_together_are_refused(gradients: list[Tensor]) -> None:
    with pytest.raises(ValueError, match=r"gradient|samples"):
        clip_per_sample(gradients, 1.0)
