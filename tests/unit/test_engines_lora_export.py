"""Cuts of a spectrum, ranks by energy and by hardware, and releases in other forms: each with its error."""

import math

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from engines.lora.export import SERVED_RANKS, for_ranks, merged, uniform, without_heads
from engines.lora.factors import Pair, dense, pairs_of, tensors_of
from engines.lora.patterns import LoraPattern
from engines.lora.ranks import RANKS, Capability, NoRankFits, elements, largest_rank, needs
from engines.lora.scaling import LoraScale
from engines.lora.seeding import seeded_a
from engines.lora.spectrum import (
    Spectrum,
    cut,
    numerical_rank,
    projection,
    rank_by_energy,
    spectrum_of,
    together,
)
from tests.unit.lora_rounds import HEAD, MODULE, A, B, normal, off

OTHER = MODULE.replace("query", "value")


def pair(rank: int, *, rows: int = 70, columns: int = 80, seed: int = 0, scale: float = 0.5) -> Pair:
    return Pair(normal(rows, rank, seed=2 * seed), normal(rank, columns, seed=2 * seed + 1), scale)


def of_values(*values: float) -> Spectrum:
    size = len(values)
    eye = torch.eye(size, dtype=torch.float64)
    return Spectrum(u=eye, values=torch.tensor(values, dtype=torch.float64), vt=eye)


# Spectrum


def test_a_decomposition_has_orthonormal_sides_falling_values_and_fixed_signs() -> None:
    spectrum = spectrum_of(pair(12))
    eye = torch.eye(12, dtype=torch.float64)
    assert float((spectrum.u.T @ spectrum.u - eye).abs().max()) <= 1e-13
    assert float((spectrum.vt @ spectrum.vt.T - eye).abs().max()) <= 1e-13
    assert bool((spectrum.values[:-1] >= spectrum.values[1:]).all())
    heaviest = spectrum.vt.abs().argmax(dim=1, keepdim=True)
    assert bool((spectrum.vt.gather(1, heaviest) > 0.0).all())
    turned = Pair(-pair(12).b, -pair(12).a, 0.5)
    assert torch.allclose(spectrum_of(turned).u, spectrum.u, atol=1e-12)


def test_a_negative_scale_keeps_the_product() -> None:
    spectrum = spectrum_of(pair(3, scale=-2.0))
    assert off((spectrum.u * spectrum.values) @ spectrum.vt, dense(pair(3, scale=-2.0))) <= 1e-13


def test_factors_without_rank_or_with_nan_are_not_decomposed() -> None:
    with pytest.raises(ValueError, match="rank 1"):
        spectrum_of(Pair(torch.ones(3, 0), torch.ones(0, 3), 1.0))
    with pytest.raises(ValueError, match="finite"):
        spectrum_of(Pair(torch.full((3, 1), math.nan), torch.ones(1, 3), 1.0))


def test_a_cut_beyond_the_rank_is_exact_and_its_spare_rows_can_be_trained() -> None:
    spectrum, spare = spectrum_of(pair(3)), normal(8, 80, seed=9)
    wide, cost = cut(spectrum, 8, scale=2.0, spare_a=spare)
    assert off(dense(wide), dense(pair(3))) <= 1e-13
    assert cost.error_norm == 0.0
    assert torch.equal(wide.a[3:], spare[3:])
    assert float(wide.b[:, 3:].abs().max()) == 0.0
    assert float(cut(spectrum, 8)[0].a[3:].abs().max()) == 0.0
    with pytest.raises(ValueError, match="spare rows"):
        cut(spectrum, 8, spare_a=spare[:5])


@pytest.mark.parametrize(("rank", "scale"), [(0, 1.0), (2, 0.0), (2, math.nan), (2, math.inf)])
def test_a_cut_out_of_range_is_refused(rank: int, scale: float) -> None:
    with pytest.raises(ValueError, match="rank of at least 1"):
        cut(of_values(1.0, 0.5), rank, scale=scale)


def test_errors_of_modules_add_up_as_one_vector() -> None:
    total = together([projection(of_values(4.0, 3.0), 1), projection(of_values(12.0, 4.0), 1)])
    assert total.error_norm == pytest.approx(5.0)
    assert total.whole_norm == pytest.approx(math.sqrt(25.0 + 160.0))
    assert total.relative_error == pytest.approx(5.0 / math.sqrt(185.0))
    assert projection(of_values(0.0), 1).relative_error == 0.0


# Ranks by energy


@pytest.mark.parametrize(
    ("threshold", "rank"), [(0.01, 1), (0.5, 1), (0.51, 2), (0.625, 2), (0.75, 3), (0.9999, 5), (1.0, 5)]
)
def test_the_smallest_rank_that_keeps_the_energy(threshold: float, rank: int) -> None:
    """Squares 4, 1, 1, 1 and 1: shares of 1/2, 5/8, 3/4, 7/8 and 1."""
    assert rank_by_energy(of_values(2.0, 1.0, 1.0, 1.0, 1.0), threshold) == rank


@given(
    values=st.lists(st.floats(0.0, 100.0), min_size=1, max_size=8),
    thresholds=st.tuples(st.floats(0.01, 1.0), st.floats(0.01, 1.0)),
)
@settings(deadline=None)
def test_a_higher_threshold_never_keeps_less(values: list[float], thresholds: tuple[float, float]) -> None:
    spectrum = of_values(*sorted(values, reverse=True))
    low, high = sorted(thresholds)
    assert 1 <= rank_by_energy(spectrum, low) <= rank_by_energy(spectrum, high) <= len(values)


def test_a_threshold_of_one_keeps_the_rank_and_not_the_rounding() -> None:
    stacked = Pair(torch.cat([pair(5).b] * 2, dim=1), torch.cat([pair(5).a] * 2), 1.0)
    assert len(spectrum_of(stacked).values) == 10
    assert rank_by_energy(spectrum_of(stacked), 1.0) == numerical_rank(spectrum_of(stacked)) == 5
    assert rank_by_energy(of_values(0.0, 0.0), 1.0) == 1
    assert numerical_rank(of_values()) == 0
    assert numerical_rank(of_values(1e-10, 1e-20), beside=1e6) == 0


@pytest.mark.parametrize("threshold", [0.0, -0.1, 1.1, math.nan, math.inf])
def test_a_threshold_out_of_range_is_refused(threshold: float) -> None:
    with pytest.raises(ValueError, match="threshold"):
        rank_by_energy(of_values(1.0), threshold)


# Ranks by hardware


SHAPES = [(4096, 4096)] * 64
PLENTY = Capability(memory_bytes=1e12, upload_bytes_per_s=1e9, deadline_s=600.0)


def test_bytes_follow_the_formula() -> None:
    """sum r (d + k) (4 + 8 + 4 batch): rank 8 on 64 weights of 4096 x 4096 is 4.2 million numbers."""
    parameters = 8 * 8192 * 64
    plain = needs("fedit", 8, shapes=SHAPES, upload_bytes_per_s=1e6)
    assert plain.memory_bytes == parameters * 16
    assert plain.upload_s == pytest.approx(parameters * 4 / 1e6)
    assert needs("fedit", 8, shapes=SHAPES, upload_bytes_per_s=1e6, per_sample_batch=32).memory_bytes == (
        parameters * (12 + 4 * 32)
    )


@pytest.mark.parametrize(
    ("method", "trained", "frozen", "sent"),
    [
        ("ffa", 8 * 30, 8 * 20, 8 * 30),
        ("rolora", 8 * 30, 8 * 20, 8 * 30),
        ("fedsb", 64, 8 * 50, 64),
        ("flexlora", 8 * 50, 0, 8 * 50),
        ("fedit", 8 * 50, 0, 8 * 50),
        ("fedsa", 8 * 50, 0, 8 * 20),
        ("fedask", 8 * 50, 0, 12 * 30),
    ],
)
def test_what_is_trained_held_and_sent(method: str, trained: int, frozen: int, sent: int) -> None:
    counted = elements(method, 8, shapes=[(30, 20)], sketch_width=12)
    assert (counted.trained, counted.frozen, counted.sent) == (trained, frozen, sent)


def test_the_largest_rank_that_fits_memory_and_deadline_is_chosen() -> None:
    assert largest_rank(PLENTY, "ffa", shapes=SHAPES).rank == 64
    exact = needs("ffa", 16, shapes=SHAPES, upload_bytes_per_s=1e6)
    memory = Capability(float(exact.memory_bytes), 1e6, 1e9)
    assert largest_rank(memory, "ffa", shapes=SHAPES) == exact
    upload = Capability(1e12, 1e6, exact.upload_s)
    assert largest_rank(upload, "ffa", shapes=SHAPES) == exact
    less = Capability(exact.memory_bytes - 1.0, 1e6, 1e9)
    assert largest_rank(less, "ffa", shapes=SHAPES).rank == 8


def test_gradients_of_single_examples_make_the_rank_smaller() -> None:
    exact = needs("ffa", 64, shapes=SHAPES, upload_bytes_per_s=1e6)
    tight = Capability(float(exact.memory_bytes), 1e6, 1e9)
    assert largest_rank(tight, "ffa", shapes=SHAPES, per_sample_batch=16).rank < 64


def test_no_rank_exceeds_the_smallest_weight() -> None:
    assert largest_rank(PLENTY, "fedsb", shapes=[(384, 384), (20, 384)]).rank == 16
    with pytest.raises(ValueError, match="as small as"):
        largest_rank(PLENTY, "ffa", shapes=[(3, 384)])
    with pytest.raises(ValueError, match="as small as"):
        largest_rank(PLENTY, "ffa", shapes=[])


def test_where_no_rank_fits_the_reason_is_told() -> None:
    with pytest.raises(NoRankFits, match="bytes") as memory:
        largest_rank(Capability(1e3, 1e9, 1e3), "ffa", shapes=SHAPES)
    assert memory.value.is_memory
    with pytest.raises(NoRankFits, match="to send") as upload:
        largest_rank(Capability(1e12, 1e3, 1.0), "ffa", shapes=SHAPES)
    assert not upload.value.is_memory
    assert upload.value.smallest.rank == RANKS[0]


@pytest.mark.parametrize("value", [0.0, -1.0, math.nan, math.inf])
def test_a_capability_out_of_range_is_refused(value: float) -> None:
    for numbers in ((value, 1.0, 1.0), (1.0, value, 1.0), (1.0, 1.0, value)):
        with pytest.raises(ValueError, match="positive"):
            Capability(*numbers)
    with pytest.raises(ValueError, match="positive"):
        needs("ffa", 8, shapes=SHAPES, upload_bytes_per_s=value)


def test_counts_out_of_range_are_refused() -> None:
    with pytest.raises(ValueError, match="no method"):
        elements("average", 8, shapes=SHAPES)
    with pytest.raises(ValueError, match="does not fit"):
        elements("ffa", 0, shapes=SHAPES)
    with pytest.raises(ValueError, match="sketch"):
        elements("fedask", 8, shapes=SHAPES)
    with pytest.raises(ValueError, match="at least one example"):
        needs("ffa", 8, shapes=SHAPES, upload_bytes_per_s=1.0, per_sample_batch=0)


# Export


def test_a_release_is_projected_to_each_clients_ranks_with_the_error_stated() -> None:
    release = {MODULE: pair(16), OTHER: pair(16, seed=5)}
    client = LoraPattern(4, 8.0, rank_pattern={"value": 8})
    projected, cost = for_ranks(release, client)
    errors = [float((dense(release[name]) - dense(projected[name])).norm()) for name in release]
    assert {name: one.rank for name, one in projected.items()} == {MODULE: 4, OTHER: 8}
    assert {name: one.scale for name, one in projected.items()} == {MODULE: 2.0, OTHER: 1.0}
    assert cost.error_norm == pytest.approx(math.hypot(*errors), rel=1e-10)
    assert 0.0 < cost.relative_error < 1.0
    exact, nothing = for_ranks(release, LoraScale(16, 16.0))
    assert nothing.error_norm == 0.0
    assert off(dense(exact[MODULE]), dense(release[MODULE])) <= 1e-13
    with pytest.raises(ValueError, match="at least one module"):
        for_ranks({}, client)


def test_a_rank_beyond_the_release_gets_seeded_rows_that_change_nothing_yet() -> None:
    projected, cost = for_ranks({MODULE: pair(4)}, LoraScale(8, 8.0), seed=3)
    assert cost.error_norm == 0.0
    assert off(dense(projected[MODULE]), dense(pair(4))) <= 1e-13
    assert torch.equal(projected[MODULE].a[4:], seeded_a(3, A, (8, 80))[4:].double())


@pytest.mark.parametrize(("ranks", "chosen"), [((4, 8), 8), ((4, 9), 16), ((33, 2), 64), ((64, 64), 64)])
def test_modules_of_several_ranks_are_padded_exactly_to_one_that_is_served(
    ranks: tuple[int, int], chosen: int
) -> None:
    release = {MODULE: pair(ranks[0]), OTHER: pair(ranks[1], seed=5)}
    form = uniform(release)
    assert (form.scale, form.projection.error_norm) == (LoraScale(chosen, float(chosen)), 0.0)
    for name, one in form.pairs.items():
        assert (one.rank, one.scale) == (chosen, 1.0)
        assert off(dense(one), dense(release[name])) <= 1e-14
    file = tensors_of(form.pairs, form.scale, dtype=torch.float32)
    assert {name.rsplit(".", 2)[1] for name in file} == {"lora_A", "lora_B"}
    assert off(dense(pairs_of(file, form.scale)[MODULE]), dense(release[MODULE])) <= 1e-6


@pytest.mark.parametrize("rank", [8, 16, None])
def test_a_cut_to_a_served_rank_states_its_error(rank: int | None) -> None:
    release = {MODULE: pair(70, columns=90), OTHER: pair(4, seed=5)}
    form = uniform(release, rank=rank)
    assert form.scale.rank == (rank or 64)
    errors = [float((dense(release[name]) - dense(form.pairs[name])).norm()) for name in release]
    assert form.projection.error_norm == pytest.approx(errors[0], rel=1e-10)
    assert errors[1] <= 1e-13


@pytest.mark.parametrize("rank", [0, 4, 12, 128])
def test_a_rank_that_is_not_served_is_refused(rank: int) -> None:
    assert rank not in SERVED_RANKS
    with pytest.raises(ValueError, match="not served"):
        uniform({MODULE: pair(4)}, rank=rank)
    with pytest.raises(ValueError, match="at least one module"):
        uniform({}, rank=8)


def test_heads_are_left_out_by_name() -> None:
    factors, left_out = without_heads({A: torch.ones(1, 1), HEAD: torch.ones(1), B: torch.ones(1, 1)})
    assert (list(factors), left_out) == ([A, B], [HEAD])


@pytest.mark.parametrize("is_transposed", [False, True])
def test_a_merged_weight_is_the_base_and_the_change(is_transposed: bool) -> None:
    """Over several blocks of rows, and transposed as GPT-2 keeps it."""
    change = pair(8, rows=1100, columns=30)
    base = normal(30, 1100, seed=8) if is_transposed else normal(1100, 30, seed=8)
    weight, cost = merged(base, change, is_transposed=is_transposed)
    wanted = base + (dense(change).T if is_transposed else dense(change))
    assert off(weight, wanted) <= 1e-14
    assert cost.error_norm <= 1e-12


def test_what_a_narrow_dtype_takes_of_a_small_change_is_stated() -> None:
    base = torch.ones(40, 30, dtype=torch.bfloat16)
    small = Pair(torch.full((40, 1), 1e-4), torch.ones(1, 30), 1.0)
    weight, cost = merged(base, small)
    assert torch.equal(weight, base)
    assert cost.relative_error == pytest.approx(1.0, rel=1e-6)
    assert merged(base.float(), small)[1].relative_error < 1e-3


def test_a_base_that_does_not_fit_is_refused() -> None:
    with pytest.raises(ValueError, match="does not go into"):
        merged(torch.ones(80, 70), pair(4))
    with pytest.raises(ValueError, match="does not go into"):
        merged(torch.ones(70, 80, dtype=torch.int8), pair(4))
    with pytest.raises(ValueError, match="finite"):
        merged(torch.full((70, 80), math.inf), pair(4))
