"""Methods that average what is sent as it is: ffa, rolora and fedsb, exact at any ranks and scales."""

import hashlib
import math

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from torch import Tensor

from engines.aggregation.mean import StreamingMean
from engines.lora import alternating, fedsb
from engines.lora.factors import Pair, dense, pairs_of
from engines.lora.patterns import LoraPattern
from engines.lora.scaling import Factor, LoraScale, fold_factor, unfold_factor
from tests.unit.lora_rounds import HEAD, MIXED, MODULE, WEIGHTS, A, B, normal, off

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


def test_rolora_trains_b_first_and_then_each_in_turn() -> None:
    assert [alternating.trained_factor(number) for number in range(1, 5)] == ["B", "A", "B", "A"]
    with pytest.raises(ValueError, match="from 1"):
        alternating.trained_factor(0)


@pytest.mark.parametrize("trained", ["A", "B"])
@given(scale=scales)
@settings(max_examples=30, deadline=None)
def test_what_a_client_gets_and_sends_back_untrained_is_the_release_within_its_rank(
    trained: Factor, scale: LoraScale
) -> None:
    run = LoraScale(8, 4.0)
    release = {A: normal(8, 50, seed=1), B: normal(60, 8, seed=2), HEAD: torch.ones(2, 3)}
    mine = alternating.unfold(release, trained=trained, client=scale, run=run)
    own = pairs_of(mine, scale)[MODULE]
    seen = run.factor * release[B][:, : scale.rank] @ release[A][: scale.rank]
    assert off(dense(own), seen) <= 1e-12
    frozen = A if trained == "B" else B
    assert torch.equal(mine[frozen], release[A][: scale.rank] if frozen == A else release[B][:, : scale.rank])
    sent = {name: tensor for name, tensor in mine.items() if name != frozen}
    back = alternating.fold(sent, trained=trained, client=scale, run=run)
    axis = 0 if trained == "A" else 1
    name = A if trained == "A" else B
    assert torch.allclose(
        back[name].narrow(axis, 0, scale.rank), release[name].narrow(axis, 0, scale.rank), rtol=1e-14
    )
    assert torch.equal(back[HEAD], release[HEAD])


def test_what_a_smaller_client_misses_of_a_nested_release_is_stated() -> None:
    whole = Pair(normal(60, 16, seed=1), normal(16, 50, seed=2), 0.5)
    for rank in (4, 8, 16):
        seen = Pair(whole.b[:, :rank], whole.a[:rank], 0.5)
        missed = float((dense(whole) - dense(seen)).norm())
        stated = alternating.cut_off(whole, rank)
        assert stated.error_norm == pytest.approx(missed, rel=1e-12, abs=1e-12)
        assert stated.whole_norm == pytest.approx(float(dense(whole).norm()), rel=1e-12)
    with pytest.raises(ValueError, match="not cut"):
        alternating.cut_off(whole, 17)


def test_each_module_is_folded_in_its_own_rank_and_alpha() -> None:
    other = MODULE.replace("query", "value")
    run = LoraPattern(8, 16.0, rank_pattern={"value": 4}, alpha_pattern={"layer.1.attention.self.value": 2.0})
    client = LoraPattern(4, 16.0, rank_pattern={"value": 2})
    sent = {B: torch.ones(3, 4), f"{other}.lora_B.weight": torch.ones(3, 2)}
    folded = alternating.fold(sent, trained="B", client=client, run=run)
    assert folded[B].tolist() == [[2.0] * 4 + [0.0] * 4] * 3  # 16 / 4 over 16 / 8
    assert folded[f"{other}.lora_B.weight"].tolist() == [[16.0] * 2 + [0.0] * 2] * 3  # 16 / 2 over 2 / 4


def test_a_factor_of_the_other_kind_a_larger_rank_or_whole_numbers_are_refused() -> None:
    small = LoraScale(4, 4.0)
    with pytest.raises(ValueError, match="trains B"):
        alternating.fold({A: torch.ones(4, 3)}, trained="B", client=small, run=small)
    with pytest.raises(ValueError, match="does not fit"):
        alternating.fold({B: torch.ones(3, 64)}, trained="B", client=LoraScale(64, 1.0), run=RUN)
    with pytest.raises(ValueError, match="not a factor of rank 4"):
        alternating.fold({B: torch.ones(4, 3)}, trained="B", client=small, run=small)
    with pytest.raises(ValueError, match="floating"):
        fold_factor(torch.ones(3, 4, dtype=torch.int64), "B", client=small, run=small)
    with pytest.raises(ValueError, match="cannot be cut"):
        unfold_factor(torch.ones(3, 4), "B", client=RUN, run=small)


def test_an_axis_is_known_by_the_name_where_the_width_is_the_rank() -> None:
    square = torch.arange(16.0).reshape(4, 4)
    small, run = LoraScale(4, 4.0), LoraScale(5, 5.0)
    assert alternating.fold({B: square}, trained="B", client=small, run=run)[B].shape == (4, 5)
    assert alternating.fold({A: square}, trained="A", client=small, run=run)[A].shape == (5, 4)


def test_folded_updates_go_through_the_streaming_mean() -> None:
    frozen, mean = other_factor("B"), StreamingMean({B: (60, RUN.rank)})
    wanted = torch.zeros(60, 50, dtype=torch.float64)
    for number, (scale, weight) in enumerate(zip(MIXED, WEIGHTS, strict=True)):
        sent = {B: drawn("B", scale, seed=number).float()}
        mean.add(alternating.fold(sent, trained="B", client=scale, run=RUN), weight=weight)
        wanted += weight * product("B", sent[B].double(), frozen=frozen, scale=scale)
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
