"""Rows in tiles, the loops below them, sums, the gate and the Gram matrix: invariants and refusals."""

import importlib.util
import math
from collections.abc import Callable
from fractions import Fraction
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from hypothesis.extra import numpy as arrays
from numpy.typing import NDArray
from safetensors.torch import load_file, save_file

from engines.aggregation import gram as gram_module
from engines.aggregation import kernels, linear, rows
from engines.aggregation.coordinates import mean_around_median, median, trimmed_mean, trimmed_sum
from engines.aggregation.gate import NoneFinite, admit
from engines.aggregation.gram import gram, product_gram, squared_distances
from engines.aggregation.linear import plain_sum, weighted_mean, weighted_sum
from engines.aggregation.network import comparators
from engines.aggregation.rows import Anchored, Held, Mixed, Rows, Scaled, Streamed, Vectors

Matrix = NDArray[Any]
FLOATS = st.floats(-1e6, 1e6, width=32)


def matrices(*, most: int = 9) -> st.SearchStrategy[Matrix]:
    shapes = st.tuples(st.integers(1, most), st.integers(1, 7))
    return shapes.flatmap(lambda shape: arrays.arrays(np.float32, shape, elements=FLOATS))


def sample(clients: int, dimension: int, *, seed: int = 1, dtype: type = np.float32) -> Matrix:
    return np.random.default_rng(seed).normal(size=(clients, dimension)).astype(dtype)


class Counted:
    """A source over a matrix that counts what is read."""

    def __init__(self, matrix: Matrix) -> None:
        self.matrix, self.reads, self.largest = matrix, 0, 0
        self.clients, self.dimension = matrix.shape
        self.dtype = matrix.dtype

    def read(self, client: int, start: int, stop: int, out: Matrix) -> None:
        self.reads, self.largest = self.reads + 1, max(self.largest, stop - start)
        out[:] = self.matrix[client, start:stop]

    def cut(self, stop: int) -> int:
        return stop


@pytest.fixture(params=["compiled", "numpy"])
def loops(request: pytest.FixtureRequest, monkeypatch: pytest.MonkeyPatch) -> str:
    monkeypatch.setattr(kernels, "COMPILED_AFTER", -1)
    if request.param == "numpy":
        monkeypatch.setattr(kernels, "compiled", lambda: None)
    elif importlib.util.find_spec("numba") is None:
        pytest.skip("numba is not installed")
    return request.param


@pytest.mark.parametrize("count", [1, 2, 3, 4, 5, 7, 8, 10, 16, 17, 31])
def test_a_network_sorts_every_pattern_of_zeros_and_ones(count: int) -> None:
    """By the zero-one principle (Knuth 5.3.4) it then sorts everything."""
    generator = np.random.default_rng(count)
    patterns = (
        np.array([[bit >> at & 1 for bit in range(2**count)] for at in range(count)])
        if count <= 10
        else generator.integers(0, 2, size=(count, 4096))
    )
    for low, high in {(0, count), ((count - 1) // 2, count // 2 + 1), (0, 1)}:
        values = patterns.copy()
        for lower, upper in comparators(count, low, high):
            values[[lower, upper]] = np.sort(values[[lower, upper]], axis=0)
        assert (values[low:high] == np.sort(patterns, axis=0)[low:high]).all()


def test_a_pruned_network_is_as_small_as_known() -> None:
    """n = 10: 29 comparators, the best known for the median of ten by pruning."""
    assert len(comparators(10, 4, 6)) == 29
    assert len(comparators(100, 49, 51)) < len(comparators(100, 0, 100))
    with pytest.raises(ValueError, match="do not exist"):
        comparators(3, 2, 4)


@pytest.mark.parametrize("dtype", [np.float32, np.float64, np.int64])
@pytest.mark.parametrize("clients", [1, 2, 7, 40])
@pytest.mark.usefixtures("loops")
def test_sorted_rows_are_numpys(clients: int, dtype: type) -> None:
    wide = (sample(clients, 700, seed=clients, dtype=np.float64) * 100).astype(dtype)
    for view in (wide, wide[:, 3:601], wide[:, ::2]):
        before = view.copy()
        assert (kernels.sorted_rows(view, 0, clients) == np.sort(view, axis=0)).all()
        assert (view == before).all()


@pytest.mark.skipif(importlib.util.find_spec("numba") is None, reason="numba is not installed")
@pytest.mark.parametrize(
    "rule",
    [
        weighted_mean,
        median,
        gram,
        lambda x: trimmed_mean(x, trimmed=3),
        lambda x: mean_around_median(x, kept=5),
        lambda x: weighted_sum(x, np.linspace(-1, 1, x.clients)),
    ],
)
def test_the_compiled_loops_and_numpy_agree_bit_for_bit(
    rule: Callable[[Rows], Matrix], monkeypatch: pytest.MonkeyPatch
) -> None:
    updates = Held(sample(11, 5000) * np.float32(1e3))
    monkeypatch.setattr(kernels, "COMPILED_AFTER", -1)
    fast = rule(updates)
    monkeypatch.setattr(kernels, "compiled", lambda: None)
    assert fast.tobytes() == rule(updates).tobytes()


@settings(max_examples=60, deadline=None)
@given(matrices(), st.data())
def test_the_weighted_mean_is_the_rational_one(matrix: Matrix, data: st.DataObject) -> None:
    weights = np.array(
        data.draw(st.lists(st.integers(0, 50), min_size=len(matrix), max_size=len(matrix))), float
    )
    if not weights.any():
        with pytest.raises(ValueError, match="more than 0"):
            weighted_mean(Held(matrix), weights)
        return
    found, largest = weighted_mean(Held(matrix), weights), np.abs(matrix).max()
    for column, value in enumerate(found):
        exact = sum(Fraction(float(x)) * int(w) for x, w in zip(matrix[:, column], weights, strict=True))
        exact /= int(weights.sum())
        assert (
            abs(Fraction(float(value)) - exact)
            <= abs(exact) * 2.0**-23 + float(largest) * 2.0**-46 + 2.0**-149
        )


@settings(max_examples=40, deadline=None)
@given(matrices(), st.integers(1, 12))
def test_the_mean_of_equal_updates_is_that_update_whatever_the_cohort(matrix: Matrix, clients: int) -> None:
    copies = np.repeat(matrix[:1], clients, axis=0)
    for _ in range(2):  # nothing is left over from the round before
        assert (weighted_mean(Held(copies)) == matrix[0]).all()
        assert (weighted_mean(Held(copies), np.full(clients, 7.0)) == matrix[0]).all()


def test_two_clients_of_equal_weight_meet_in_the_middle() -> None:
    assert weighted_mean(Held(np.array([[2.0], [4.0]]))).tolist() == [3.0]


def test_a_client_split_in_two_halves_and_scaled_weights_change_nothing() -> None:
    matrix = sample(4, 300, dtype=np.float64)
    weights = np.array([1.0, 2.0, 0.5, 3.0])
    whole = weighted_mean(Held(matrix), weights)
    split = weighted_mean(Held(matrix[[0, 1, 1, 2, 3]]), np.array([1.0, 1.0, 1.0, 0.5, 3.0]))
    assert np.allclose(whole, split, rtol=1e-14, atol=1e-15)
    assert np.allclose(whole, weighted_mean(Held(matrix), weights * 7), rtol=1e-14, atol=1e-15)


@pytest.mark.parametrize("bad", [-1.0, math.nan, math.inf, 1e13])
def test_a_weight_that_is_none_is_refused(bad: float) -> None:
    with pytest.raises(ValueError, match="weight"):
        weighted_mean(Held(sample(2, 3)), np.array([1.0, bad]))


def test_a_mean_without_any_weight_is_refused_instead_of_dividing_by_zero() -> None:
    with pytest.raises(ValueError, match="more than 0"):
        weighted_mean(Held(sample(2, 3)), np.zeros(2))


@pytest.mark.parametrize(
    ("dtype", "value"), [(torch.bfloat16, 1.0), (torch.float16, 1.0), (torch.float16, 60000.0)]
)
def test_narrow_updates_are_added_in_wide_numbers(dtype: torch.dtype, value: float) -> None:
    """In bfloat16 a sum of ones sticks at 256, in float16 at 2,048, and 60,000 twice is infinite."""
    vectors = [torch.full((5,), value, dtype=dtype)] * 1000
    assert weighted_mean(Streamed(Vectors(vectors))).tolist() == [float(vectors[0][0])] * 5


def test_bfloat16_survives_its_file_and_is_averaged_exactly(tmp_path: Path) -> None:
    """It has no counterpart in NumPy; averaging through one would fail or reinterpret its bytes."""
    values = torch.tensor([1.0, -2.5, 3.0e38, 2.0**-126], dtype=torch.bfloat16)
    save_file({"update": values}, tmp_path / "update.safetensors")
    read = load_file(tmp_path / "update.safetensors")["update"]
    assert read.dtype == torch.bfloat16
    assert weighted_mean(Streamed(Vectors([read] * 3))).tolist() == values.float().tolist()


def test_integer_tensors_are_refused_and_never_scaled() -> None:
    with pytest.raises(ValueError, match="integer"):
        Vectors([torch.tensor([10]), torch.tensor([20])])
    with pytest.raises(ValueError, match="float"):
        Held(np.ones((2, 2), dtype=np.int32))
    steps = Held(np.array([[10], [20]], dtype=np.int64))
    for average in (weighted_mean, median, lambda x: trimmed_mean(x, trimmed=0)):
        with pytest.raises(ValueError, match="grid"):
            average(steps)
    assert plain_sum(steps).tolist() == [30]


def test_sums_of_grid_steps_are_exact_where_floats_are_not() -> None:
    steps = np.array([[2**60], [1], [-(2**60)], [5], [2**61]], dtype=np.int64)
    assert plain_sum(Held(steps)).tolist() == [6 + 2**61]
    assert trimmed_sum(Held(steps), trimmed=1).tolist() == [6 + 2**60]


@pytest.mark.parametrize("vectors", [[], [torch.ones(2), torch.ones(3)], [torch.ones(1, 2)]])
def test_vectors_of_different_lengths_are_refused(vectors: list[torch.Tensor]) -> None:
    with pytest.raises(ValueError, match="one length"):
        Vectors(vectors)


@pytest.mark.parametrize("clients", [3, 50])
def test_a_source_is_read_in_long_pieces_into_a_buffer_that_does_not_grow(
    clients: int, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(rows, "SLAB_BYTES", 1 << 16)
    source = Counted(sample(clients, 5000))
    for rule in (weighted_mean, median):
        assert rule(Streamed(source)).tobytes() == rule(Held(source.matrix)).tobytes()
    assert source.largest * clients * 4 <= 1 << 16
    assert source.reads == 2 * clients * -(-5000 // source.largest)


def test_results_do_not_depend_on_tiles(monkeypatch: pytest.MonkeyPatch) -> None:
    updates = Held(sample(6, 900))
    whole = weighted_mean(updates), gram(updates)
    monkeypatch.setattr(linear, "TILE_VALUES", 42)
    monkeypatch.setattr(gram_module, "_TILE_VALUES", 6)
    assert weighted_mean(updates).tobytes() == whole[0].tobytes()
    assert np.allclose(gram(updates), whole[1], rtol=1e-13, atol=1e-12)


@settings(max_examples=60, deadline=None)
@given(matrices(), st.floats(1e-3, 1e4))
def test_what_passes_the_gate_is_never_longer_than_the_bound(matrix: Matrix, bound: float) -> None:
    admission = admit(Held(matrix), clip_norm=bound)
    for _, tile in admission.rows.tiles(1 << 16):
        for row in tile:
            assert sum(Fraction(float(value)) ** 2 for value in row) <= Fraction(bound) ** 2
    assert np.allclose(admission.norms, np.linalg.norm(matrix.astype(float), axis=1), rtol=1e-12)
    assert list(admission.clipped) == [
        i for i, norm in enumerate(admission.norms) if norm > bound * (1 - 1e-9)
    ]


@pytest.mark.parametrize("bad", [math.nan, math.inf, -math.inf])
@pytest.mark.parametrize("at", [0, 4500, 8999])
def test_an_update_that_is_not_finite_leaves_no_trace(bad: float, at: int) -> None:
    matrix = sample(5, 9000)
    broken = matrix.copy()
    broken[2, at] = bad
    admission = admit(Held(broken), clip_norm=None)
    assert (admission.kept, admission.turned_away) == ((0, 1, 3, 4), (2,))
    healthy = Held(matrix[[0, 1, 3, 4]])
    for rule in (weighted_mean, median, gram):
        assert rule(admission.rows).tobytes() == rule(healthy).tobytes()
    as_zero = admit(Held(broken), clip_norm=None, absent_is_zero=True).rows
    matrix[2] = 0.0
    assert weighted_mean(as_zero).tobytes() == weighted_mean(Held(matrix)).tobytes()


def test_an_update_whose_squares_overflow_is_turned_away_and_nobody_left_is_an_error() -> None:
    matrix = np.array([[1e200, 0.0], [1.0, 1.0]])
    assert admit(Held(matrix), clip_norm=1.0).turned_away == (0,)
    with pytest.raises(NoneFinite):
        admit(Held(matrix[:1]), clip_norm=1.0)


def test_a_gate_with_nothing_to_do_hands_the_rows_on_uncopied() -> None:
    updates = Held(sample(3, 4))
    assert admit(updates, clip_norm=100.0).rows is updates


def test_the_callers_updates_stay_as_they_were() -> None:
    matrix = sample(4, 600) * np.float32(50)
    before = matrix.copy()
    clipped = admit(Held(matrix), clip_norm=1.0).rows
    for rule in (weighted_mean, median, gram):
        rule(Mixed(Anchored(clipped, np.zeros(600, np.float32)), np.full((2, 5), 0.2)))
    assert matrix.tobytes() == before.tobytes()


def test_distances_between_large_and_nearly_equal_updates_keep_their_digits() -> None:
    """Values near 10 that differ by a thousandth: norms less products lose all digits in float32."""
    matrix = (10.0 + sample(30, 20_000, dtype=np.float64) * 1e-3).astype(np.float32)
    exact = ((matrix[:, None, :2000].astype(float) - matrix[None, :, :2000]) ** 2).sum(axis=2)
    found = squared_distances(gram(Held(matrix[:, :2000])))
    assert np.abs(found - exact).max() <= exact.max() * 1e-9
    assert (found >= 0.0).all()


def test_copies_of_one_update_are_at_distance_zero() -> None:
    matrix = sample(9, 3000)
    matrix[[3, 8]] = matrix[1]
    found = squared_distances(gram(Held(matrix)))
    assert found[1, 3] == found[1, 8] == found[3, 8] == 0.0
    assert (found[0, 1:] > 0.0).all()
    assert (found == found.T).all()


@settings(max_examples=40, deadline=None)
@given(st.integers(0, 1000))
def test_the_gram_matrix_of_mixed_rows_follows_from_that_of_the_clients(seed: int) -> None:
    generator = np.random.default_rng(seed)
    updates = Held(generator.normal(size=(6, 40)) + 5.0)
    weights = generator.dirichlet(np.ones(6), size=4)
    known = Mixed(updates, weights, base_gram=gram(updates))
    direct = gram(Held(weights @ updates._matrix))
    assert np.allclose(squared_distances(gram(known)), squared_distances(direct), rtol=1e-9, atol=1e-12)
    shares = generator.dirichlet(np.ones(4))
    assert np.allclose(weighted_sum(known, shares), shares @ weights @ updates._matrix)


def test_inner_products_of_lora_products_need_no_dense_matrix() -> None:
    """|BA|_F = sqrt(tr((B^T B)(A A^T))), ranks and scales of the clients' own."""
    generator = np.random.default_rng(3)
    scales = [2.0, 0.5, 1.0]
    factors = [
        {name: (generator.normal(size=(12, r)), generator.normal(size=(r, 9))) for name in ("q", "v")}
        for r in (2, 4, 3)
    ]
    dense = np.array(
        [
            np.concatenate([(s * b @ a).ravel() for b, a in one.values()])
            for s, one in zip(scales, factors, strict=True)
        ]
    )
    assert np.allclose(product_gram(factors, scales), dense @ dense.T, rtol=1e-12)
    with pytest.raises(ValueError, match="modules"):
        product_gram([factors[0], {"q": factors[1]["q"]}], scales[:2])
    with pytest.raises(ValueError, match="scale"):
        product_gram(factors, [1.0, math.nan, 1.0])


@pytest.mark.parametrize(
    "build",
    [
        lambda: Held(np.ones((0, 3))),
        lambda: Held(np.ones(3)),
        lambda: Scaled(Held(np.ones((2, 2))), [0], np.array([math.inf])),
        lambda: Scaled(Held(np.ones((2, 2))), [], np.ones(0)),
        lambda: Mixed(Held(np.ones((2, 2))), np.ones((2, 3))),
        lambda: Anchored(Held(np.ones((2, 2))), np.ones(3)),
        lambda: Anchored(Held(np.ones((2, 2))), np.array([1.0, math.nan])),
        lambda: weighted_sum(Held(np.ones((2, 2))), np.ones(3)),
        lambda: weighted_sum(Held(np.ones((2, 2))), np.ones(2), divisor=0.0),
        lambda: trimmed_mean(Held(np.ones((2, 2))), trimmed=1),
        lambda: trimmed_sum(Held(np.ones((2, 2))), trimmed=-1),
        lambda: mean_around_median(Held(np.ones((2, 2))), kept=3),
    ],
)
def test_shapes_and_numbers_that_do_not_fit_are_refused(build: Callable[[], object]) -> None:
    with pytest.raises(ValueError, match=r"update|weight|mixture|centre|divisor|leaves|median"):
        build()
