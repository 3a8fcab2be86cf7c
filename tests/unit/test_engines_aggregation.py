"""The streaming mean and its gate: invariants of a mean, and updates that must not pass."""

import math
from fractions import Fraction

import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st
from torch import Tensor

from engines.aggregation import checks, mean
from engines.aggregation.checks import clip_update, is_finite
from engines.aggregation.mean import StreamingMean

SHAPES = {"b": (3, 4), "a": (5,)}
FLOATS = st.floats(-1e6, 1e6, width=32)


def update(seed: int) -> dict[str, Tensor]:
    generator = torch.Generator().manual_seed(seed)
    return {name: torch.randn(shape, generator=generator) for name, shape in SHAPES.items()}


def mean_of(updates: list[tuple[dict[str, Tensor], float]]) -> dict[str, Tensor]:
    running = StreamingMean(SHAPES)
    for one, weight in updates:
        running.add(one, weight=weight)
    return running.result()


def equal(one: dict[str, Tensor], other: dict[str, Tensor]) -> bool:
    return one.keys() == other.keys() and all(torch.equal(one[name], other[name]) for name in one)


@given(st.lists(st.tuples(FLOATS, st.integers(0, 100)), min_size=1, max_size=10))
def test_the_mean_is_the_rational_mean_rounded_to_float32(entries: list[tuple[float, int]]) -> None:
    total = sum(weight for _, weight in entries)
    running = StreamingMean({"x": (1,)})
    for value, weight in entries:
        running.add({"x": torch.tensor([value])}, weight=float(weight))
    if total == 0:
        with pytest.raises(ValueError, match="more than 0"):
            running.result()
        return
    exact = sum(Fraction(value) * weight for value, weight in entries) / total
    largest = max(abs(value) for value, _ in entries)
    assert abs(running.result()["x"].item() - exact) <= abs(exact) * 2.0**-23 + largest * 2.0**-48 + 2.0**-149


def test_files_in_any_order_give_the_same_bits_once_sorted_by_client() -> None:
    clients = {f"client-{number}": (update(number), 1.0 + number) for number in range(8)}
    forward = mean_of([clients[name] for name in sorted(clients)])
    shuffled = dict(reversed(clients.items()))
    assert equal(forward, mean_of([shuffled[name] for name in sorted(shuffled)]))


def test_a_client_split_in_two_halves_changes_nothing() -> None:
    whole = mean_of([(update(1), 1.0), (update(2), 3.0)])
    split = mean_of([(update(1), 1.0), (update(2), 1.5), (update(2), 1.5)])
    assert all(torch.allclose(whole[name], split[name], rtol=1e-6, atol=0) for name in SHAPES)


def test_only_the_ratios_of_weights_matter() -> None:
    once = mean_of([(update(1), 1.0), (update(2), 3.0)])
    seven_times = mean_of([(update(1), 7.0), (update(2), 21.0)])
    assert all(torch.allclose(once[name], seven_times[name], rtol=1e-6, atol=0) for name in SHAPES)


@pytest.mark.parametrize("weight", [1.0, 0.3, 1e-9, 1e12])
def test_one_client_is_its_own_mean(weight: float) -> None:
    assert equal(mean_of([(update(1), weight)]), update(1))


def test_a_client_of_weight_zero_has_no_influence() -> None:
    assert equal(mean_of([(update(1), 1.0), (update(2), 0.0)]), update(1))


def test_many_small_values_are_not_lost_beside_a_large_one() -> None:
    """In float32 the sum 2**24 + 1 + 1 + ... stays at 2**24."""
    running = StreamingMean({"x": (1,)})
    running.add({"x": torch.tensor([2.0**24])}, weight=1.0)
    for _ in range(2**10 - 1):
        running.add({"x": torch.tensor([1.0])}, weight=1.0)
    running.add({"x": torch.tensor([-(2.0**24)])}, weight=1.0)
    assert running.updates == 2**10 + 1
    assert running.result()["x"].item() == pytest.approx((2**10 - 1) / (2**10 + 1), rel=1e-7)


@pytest.mark.parametrize("weight", [-1.0, math.nan, math.inf, 1e13])
def test_a_weight_that_is_none_is_refused(weight: float) -> None:
    with pytest.raises(ValueError, match="weight"):
        mean_of([(update(1), weight)])


def test_a_mean_without_weight_or_updates_is_refused() -> None:
    with pytest.raises(ValueError, match="more than 0"):
        mean_of([])
    with pytest.raises(ValueError, match="more than 0"):
        mean_of([(update(1), 0.0)])
    with pytest.raises(ValueError, match="nothing to average"):
        StreamingMean({})


@pytest.mark.parametrize(
    "change",
    [
        {"b": None},
        {"c": torch.ones(1)},
        {"a": torch.ones(6)},
        {"a": torch.ones(5, dtype=torch.float64)},
        {"a": torch.tensor([1.0, 1.0, math.nan, 1.0, 1.0])},
        {"a": torch.tensor([1.0, 1.0, 1.0, 1.0, -math.inf])},
    ],
)
def test_a_refused_update_leaves_the_mean_as_it_was(change: dict[str, Tensor | None]) -> None:
    running = StreamingMean(SHAPES)
    running.add(update(1), weight=1.0)
    changed: dict[str, Tensor | None] = {**update(2), **change}
    with pytest.raises(ValueError, match=r"missing|expected float32|finite"):
        running.add({name: tensor for name, tensor in changed.items() if tensor is not None}, weight=1.0)
    assert running.updates == 1
    assert equal(running.result(), update(1))


def test_the_result_does_not_depend_on_the_block(monkeypatch: pytest.MonkeyPatch) -> None:
    whole = mean_of([(update(1), 1.0), (update(2), 3.0)])
    monkeypatch.setattr(mean, "BLOCK_ELEMENTS", 5)
    monkeypatch.setattr(checks, "BLOCK_ELEMENTS", 5)
    assert equal(whole, mean_of([(update(1), 1.0), (update(2), 3.0)]))


def test_the_updates_handed_in_stay_as_they_were() -> None:
    mine = update(1)
    mean_of([(mine, 5.0)])
    assert equal(mine, update(1))


@pytest.mark.parametrize("bad", [math.nan, math.inf, -math.inf])
@pytest.mark.parametrize("position", [0, 6, 11])
def test_one_value_that_is_not_finite_is_seen_in_any_block(
    bad: float, position: int, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(checks, "BLOCK_ELEMENTS", 5)
    broken = update(1)
    assert is_finite(broken)
    broken["b"].view(-1)[position] = bad
    assert not is_finite(broken)


@given(st.lists(FLOATS, min_size=12, max_size=12), st.floats(1e-6, 1e6))
def test_the_clipped_update_obeys_one_norm_over_all_its_tensors(entries: list[float], bound: float) -> None:
    values = torch.tensor(entries)
    clipped, _ = clip_update({"one": values[:8].reshape(2, 4), "two": values[8:]}, bound)
    square = sum(Fraction(value) ** 2 for tensor in clipped.values() for value in tensor.reshape(-1).tolist())
    assert square <= Fraction(bound) ** 2


def test_clipping_an_update_keeps_names_and_shapes_and_tells_the_norm() -> None:
    clipped, norm = clip_update({"one": torch.full((2, 2), 3.0), "two": torch.zeros(3)}, 1.0)
    assert norm == 6.0
    assert clipped["one"].shape == (2, 2)
    assert clipped["one"].flatten().tolist() == pytest.approx([0.5] * 4, rel=1e-6)
    assert clipped["two"].tolist() == [0.0, 0.0, 0.0]


def test_an_update_that_cannot_be_clipped_is_refused() -> None:
    for broken in ({}, {"x": torch.ones(2, dtype=torch.float64)}, {"x": torch.tensor([math.nan])}):
        with pytest.raises(ValueError, match="update"):
            clip_update(broken, 1.0)
