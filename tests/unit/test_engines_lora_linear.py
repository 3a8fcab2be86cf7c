"""Methods that average what is sent as it is: ffa, rolora and fedsb, exact at any ranks and scales."""

import hashlib
import math

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from torch import Tensor

from engines.aggregation.mean import StreamingMean
from engines.lora import fedsb
from engines.lora.factors import dense
from engines.lora.scaling import Factor, LoraScale, fold_factor, unfold_factor
from tests.unit.lora_rounds import MIXED, MODULE, WEIGHTS, B, normal, off

RUN = LoraScale(32, 16.0)
scales = st.builds(LoraScale, st.integers(1, 8), st.floats(0.25, 64.0), st.booleans())


def other_factor(trained: Factor) -> Tensor:
    """The frozen one, of the run's rank: 50 columns, or 60 rows."""
    return normal(RUN.rank, 50, seed=77) if trained == "B" else normal(60, RUN.rank, seed=78)


def product(trained: Factor, factor: Tensor, *, frozen: Tensor, scale: LoraScale) -> Tensor:
    if trained == "B":
        return scale.factor * factor @ frozen[: scale.rank]
    return scale.factor * frozen[:, : scale.rank] @ factor


def drawn(trained: Factor, scale: LoraScale, *, seed: int) -> Tensor:
    return normal(60, scale.rank, seed=seed) if trained == "B" else normal(scale.rank, 50, seed=seed)


# ffa and rolora


@pytest.mark.parametrize("trained", ["A", "B"])
@given(clients=st.lists(st.tuples(scales, st.floats(0.01, 10.0)), min_size=1, max_size=5))
@settings(max_examples=40, deadline=None)
def test_the_mean_of_folded_factors_is_the_mean_of_products(
    trained: Factor, clients: list[tuple[LoraScale, float]]
) -> None:
    """Invariant I1, whichever factor the round trains."""
    frozen, total = other_factor(trained), sum(weight for _, weight in clients)
    wanted = torch.zeros(60, 50, dtype=torch.float64)
    mean = torch.zeros_like(drawn(trained, RUN, seed=0))
    for number, (scale, weight) in enumerate(clients):
        factor = drawn(trained, scale, seed=number)
        wanted += weight / total * product(trained, factor, frozen=frozen, scale=scale)
        mean += weight / total * fold_factor(factor, trained, client=scale, run=RUN)
    assert off(product(trained, mean, frozen=frozen, scale=RUN), wanted) <= 1e-12


@pytest.mark.parametrize("trained", ["A", "B"])
def test_the_field_s_mixture_of_ranks_and_alphas_is_exact(trained: Factor) -> None:
    """Invariant I4."""
    frozen, wanted, mean = other_factor(trained), torch.zeros(60, 50, dtype=torch.float64), None
    for number, (scale, weight) in enumerate(zip(MIXED, WEIGHTS, strict=True)):
        factor = drawn(trained, scale, seed=number)
        wanted += weight * product(trained, factor, frozen=frozen, scale=scale)
        folded = weight * fold_factor(factor, trained, client=scale, run=RUN)
        mean = folded if mean is None else mean + folded
    assert mean is not None
    assert off(product(trained, mean, frozen=frozen, scale=RUN), wanted) <= 1e-12


@pytest.mark.parametrize("trained", ["A", "B"])
@given(scale=scales)
@settings(max_examples=30, deadline=None)
def test_what_a_client_gets_and_sends_back_untrained_is_the_release_within_its_rank(
    trained: Factor, scale: LoraScale
) -> None:
    run, whole = LoraScale(8, 4.0), {"A": normal(8, 50, seed=1), "B": normal(60, 8, seed=2)}
    frozen = whole["A" if trained == "B" else "B"]
    mine = unfold_factor(whole[trained], trained, client=scale, run=run)
    seen = run.factor * whole["B"][:, : scale.rank] @ whole["A"][: scale.rank]
    assert off(product(trained, mine, frozen=frozen, scale=scale), seen) <= 1e-12
    back, axis = fold_factor(mine, trained, client=scale, run=run), 0 if trained == "A" else 1
    kept = whole[trained].narrow(axis, 0, scale.rank)
    assert torch.allclose(back.narrow(axis, 0, scale.rank), kept, rtol=1e-14)
    assert float(back.norm()) == pytest.approx(float(kept.norm()), rel=1e-14)


def test_a_larger_rank_another_shape_or_whole_numbers_are_refused() -> None:
    small = LoraScale(4, 4.0)
    with pytest.raises(ValueError, match="does not fit"):
        fold_factor(torch.ones(3, 64), "B", client=LoraScale(64, 1.0), run=RUN)
    with pytest.raises(ValueError, match="not a factor of rank 4"):
        fold_factor(torch.ones(4, 3), "B", client=small, run=small)
    with pytest.raises(ValueError, match="floating"):
        fold_factor(torch.ones(3, 4, dtype=torch.int64), "B", client=small, run=small)
    with pytest.raises(ValueError, match="cannot be cut"):
        unfold_factor(torch.ones(3, 4), "B", client=RUN, run=small)


def test_an_axis_is_that_of_the_factor_where_the_width_is_the_rank() -> None:
    square, small, run = torch.arange(16.0).reshape(4, 4), LoraScale(4, 4.0), LoraScale(5, 5.0)
    assert fold_factor(square, "B", client=small, run=run).shape == (4, 5)
    assert fold_factor(square, "A", client=small, run=run).shape == (5, 4)


def test_folded_updates_go_through_the_streaming_mean() -> None:
    frozen, mean = other_factor("B"), StreamingMean({B: (60, RUN.rank)})
    wanted = torch.zeros(60, 50, dtype=torch.float64)
    for number, (scale, weight) in enumerate(zip(MIXED, WEIGHTS, strict=True)):
        sent = drawn("B", scale, seed=number).float()
        mean.add({B: fold_factor(sent, "B", client=scale, run=RUN)}, weight=weight)
        wanted += weight * product("B", sent.double(), frozen=frozen, scale=scale)
    assert off(product("B", mean.result()[B].double(), frozen=frozen, scale=RUN), wanted) <= 1e-6


# fedsb


@given(clients=st.lists(st.tuples(scales, st.floats(0.01, 10.0)), min_size=1, max_size=5))
@settings(max_examples=30, deadline=None)
def test_the_mean_of_folded_cores_is_the_mean_of_products(clients: list[tuple[LoraScale, float]]) -> None:
    """Invariant I1: nested corners on nested bases."""
    run, shape, total = LoraScale(8, 3.0), (25, 20), sum(weight for _, weight in clients)
    wanted = torch.zeros(shape, dtype=torch.float64)
    mean = torch.zeros(8, 8, dtype=torch.float64)
    for number, (scale, weight) in enumerate(clients):
        core = normal(scale.rank, scale.rank, seed=number)
        pair = fedsb.as_pair(core, seed=3, module=MODULE, shape=shape, scale=scale.factor)
        wanted += weight / total * dense(pair)
        mean += weight / total * fedsb.fold_core(core, client=scale, run=run)
    merged = fedsb.as_pair(mean, seed=3, module=MODULE, shape=shape, scale=run.factor)
    assert off(dense(merged), wanted) <= 1e-12


def test_the_bases_have_the_same_bits_on_every_machine() -> None:
    basis = fedsb.orthonormal_rows(1, MODULE, rank=8, length=384)
    digest = hashlib.sha256(basis.numpy().astype("<f4").tobytes()).hexdigest()
    assert digest == "40ed5238fffa5b70223d3cea97e3c7a3d7d6c9bae2ff0bdb35067346883d9b82"


@pytest.mark.parametrize(("rank", "length"), [(1, 1), (4, 4), (16, 384), (64, 1024)])
def test_the_bases_are_orthonormal(rank: int, length: int) -> None:
    basis = fedsb.orthonormal_rows(2, MODULE, rank=rank, length=length).double()
    off_by = basis @ basis.T - torch.eye(rank, dtype=torch.float64)
    assert float(off_by.abs().max()) <= 1e-6


def test_a_smaller_basis_is_the_top_of_a_larger_one_and_other_names_differ() -> None:
    large = fedsb.orthonormal_rows(2, MODULE, rank=16, length=100)
    assert torch.equal(fedsb.orthonormal_rows(2, MODULE, rank=5, length=100), large[:5])
    other = fedsb.orthonormal_rows(2, "other", rank=16, length=100)
    assert float((other @ large.T).abs().max()) < 5 / math.sqrt(100)


def test_noise_on_a_core_is_as_long_as_the_change_it_makes() -> None:
    """Frobenius norm of U E V equals that of E: a clip of the core is a clip of the weight change."""
    noise = normal(16, 16, seed=4)
    pair = fedsb.as_pair(noise, seed=2, module=MODULE, shape=(384, 300), scale=1.0)
    assert float(dense(pair).norm()) == pytest.approx(float(noise.norm()), rel=1e-6)


def test_a_client_gets_the_corner_that_folding_puts_back() -> None:
    run, client = LoraScale(8, 4.0), LoraScale(3, 5.0)
    core = normal(8, 8, seed=1)
    mine = fedsb.unfold_core(core, client=client, run=run)
    back = fedsb.fold_core(mine, client=client, run=run)
    assert torch.allclose(back[:3, :3], core[:3, :3], rtol=1e-14)
    assert float(back.norm()) == pytest.approx(float(core[:3, :3].norm()), rel=1e-14)


def test_cores_and_bases_that_do_not_fit_are_refused() -> None:
    small, run = LoraScale(3, 1.0), LoraScale(8, 1.0)
    with pytest.raises(ValueError, match="does not fit"):
        fedsb.fold_core(torch.ones(3, 4), client=small, run=run)
    with pytest.raises(ValueError, match="does not fit"):
        fedsb.fold_core(torch.ones(8, 8), client=run, run=small)
    with pytest.raises(ValueError, match="floating"):
        fedsb.fold_core(torch.ones(3, 3, dtype=torch.int32), client=small, run=run)
    with pytest.raises(ValueError, match="does not fit"):
        fedsb.unfold_core(torch.ones(3, 3), client=small, run=run)
    with pytest.raises(ValueError, match="orthogonal"):
        fedsb.orthonormal_rows(1, MODULE, rank=5, length=4)
