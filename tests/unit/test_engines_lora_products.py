"""Methods that combine products: exact against the dense target at any ranks, alphas and weights."""

import math
from collections.abc import Callable, Sequence

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from torch import Tensor

from engines.lora import fedask, fedit, fedsa, flexlora, flora
from engines.lora.cohort import Contribution, Weighted, by_module
from engines.lora.factors import Pair, dense, norm
from engines.lora.moves import by_residual
from engines.lora.scaling import LoraScale
from engines.lora.spectrum import Spectrum, cut
from engines.lora.target import target_of
from tests.unit.lora_rounds import (
    MIXED,
    MODULE,
    WEIGHTS,
    clients,
    gauged,
    module_of_round,
    normal,
    off,
    rounds,
    target,
    with_weight,
)

EIGHT = LoraScale(8, 16.0)


def written(spectrum: Spectrum) -> Tensor:
    return (spectrum.u * spectrum.values) @ spectrum.vt


def by_flora(contributions: Sequence[Contribution]) -> Tensor:
    return dense(flora.stack(module_of_round(contributions)))


def by_flexlora(contributions: Sequence[Contribution]) -> Tensor:
    return written(flexlora.combine(module_of_round(contributions)))


def mean_and_residual(weighted: Sequence[Weighted], *, scale: float) -> tuple[Pair, Pair]:
    """What a first round of `fedex` leaves: the adapter, and what the base weight takes up."""
    mean = fedit.mean_of_factors(weighted, scale=scale)
    rows, columns = mean.shape
    nothing = Pair(torch.zeros(rows, 0), torch.zeros(0, columns), 1.0)
    moved = by_residual(target_of(weighted, width=min(rows, columns)), mean=mean, base=nothing)
    assert moved.base is not None
    return moved.pair, moved.base


def by_fedex(contributions: Sequence[Contribution]) -> Tensor:
    mean, residual = mean_and_residual(module_of_round(contributions), scale=1.5)
    return dense(mean) + dense(residual)


def by_fedit(contributions: Sequence[Contribution]) -> Tensor:
    return dense(fedit.mean_of_factors(module_of_round(contributions), scale=1.5))


def by_fedask(contributions: Sequence[Contribution], width: int | None = None) -> Tensor:
    weighted = module_of_round(contributions)
    rows, columns = weighted[0].pair.shape
    width = width or min(rows, columns, sum(one.pair.rank for one in weighted))
    omega = fedask.test_matrix(5, MODULE, columns=columns, width=width)
    q = fedask.basis(sum_of([one.share * fedask.first_message(one.pair, omega) for one in weighted]))
    return written(
        fedask.combine(q, sum_of([one.share * fedask.second_message(one.pair, q) for one in weighted]))
    )


def sum_of(messages: list[Tensor]) -> Tensor:
    return torch.stack(messages).sum(dim=0)


ANY_RANKS: dict[str, Callable[[Sequence[Contribution]], Tensor]] = {
    "flora": by_flora,
    "flexlora": by_flexlora,
    "fedask": by_fedask,
}
EXACT = ANY_RANKS | {"fedex": by_fedex}


@pytest.mark.parametrize("method", ANY_RANKS)
@given(contributions=rounds())
@settings(max_examples=40, deadline=None)
def test_products_of_mixed_ranks_and_alphas_are_combined_exactly(
    method: str, contributions: list[Contribution]
) -> None:
    wanted = target(contributions)
    limit = 1e-8 if method == "fedask" else 1e-12  # a sketch of full width is badly conditioned by chance
    assert off(ANY_RANKS[method](contributions), wanted) <= limit


@given(contributions=rounds(one_rank=True))
@settings(max_examples=40, deadline=None)
def test_fedex_is_exact_with_a_residual_of_low_rank(contributions: list[Contribution]) -> None:
    weighted = module_of_round(contributions)
    mean, residual = mean_and_residual(weighted, scale=1.5)
    assert off(dense(mean) + dense(residual), target(contributions)) <= 1e-12
    assert residual.rank <= min((len(weighted) - 1) * mean.rank, *mean.shape)


@pytest.mark.parametrize("method", ANY_RANKS)
def test_the_scale_of_each_client_is_folded_in(method: str) -> None:
    """Invariant I4: ranks 4, 8, 16 and 32 with alphas 8, 16, 16 and 64."""
    contributions = clients(MIXED, WEIGHTS, shape=(80, 70))
    assert off(ANY_RANKS[method](contributions), target(contributions)) <= 1e-10


def test_one_scale_for_all_or_zero_padding_would_be_another_model() -> None:
    """Invariant I4: the ways of the field that the folding replaces are far off."""
    contributions = clients(MIXED, WEIGHTS, shape=(80, 70))
    wanted = target(contributions)
    pairs = [(one.weight, one.pairs[MODULE]) for one in contributions]
    global_scale = sum_of([weight * 2.0 * (pair.b @ pair.a) for weight, pair in pairs])
    padded_b, padded_a = torch.zeros(80, 32, dtype=torch.float64), torch.zeros(32, 70, dtype=torch.float64)
    for weight, pair in pairs:
        padded_b[:, : pair.rank] += weight * pair.b
        padded_a[: pair.rank] += weight * pair.a
    assert off(global_scale, wanted) > 0.1
    assert off(2.0 * padded_b @ padded_a, wanted) > 0.5


@pytest.mark.parametrize("method", EXACT)
def test_other_factors_of_the_same_change_give_the_same_result(method: str) -> None:
    """Invariant I5."""
    contributions = clients([EIGHT] * 3, [1.0, 2.0, 3.0])
    turned = [gauged(one, seed=50 + number) for number, one in enumerate(contributions)]
    assert off(target(turned), target(contributions)) <= 1e-12
    assert off(EXACT[method](turned), EXACT[method](contributions)) <= 1e-9


def test_the_mean_of_factors_depends_on_how_a_change_is_written() -> None:
    """Invariant I5, and why `fedit` is for compatibility only: identical changes, another mean."""
    same = clients([EIGHT], [1.0]) * 3
    named = [with_weight(one, 1.0, client_id=f"{number}") for number, one in enumerate(same)]
    turned = [gauged(one, seed=70 + number) for number, one in enumerate(named)]
    assert off(by_fedit(named), target(named)) <= 1e-12
    assert off(by_fedit(turned), target(named)) > 0.3


@pytest.mark.parametrize("method", [*EXACT, "fedit"])
def test_the_order_of_arrival_does_not_change_a_bit(method: str) -> None:
    """Invariant I6."""
    contributions = clients([EIGHT] * 5, [1.0, 2.0, 3.0, 0.0, 5.0])
    combine = EXACT.get(method, by_fedit)
    first = combine(contributions)
    for order in ([4, 3, 2, 1, 0], [2, 0, 4, 1, 3]):
        assert torch.equal(combine([contributions[number] for number in order]), first)


@pytest.mark.parametrize("method", [*EXACT, "fedit"])
def test_a_client_in_two_halves_and_scaled_weights_change_nothing(method: str) -> None:
    """Invariants I6 and I7."""
    contributions = clients([EIGHT] * 3, [1.0, 2.0, 3.0])
    combine = EXACT.get(method, by_fedit)
    first, last = combine(contributions), contributions[2]
    halves = [with_weight(last, 1.5), with_weight(last, 1.5, client_id="client-999")]
    # A sketch's basis is random where its width is over the rank, but not what lies in it.
    assert off(combine([*contributions[:2], *halves]), first) <= 1e-9
    assert off(combine([with_weight(one, 7.0 * one.weight) for one in contributions]), first) <= 1e-12


@pytest.mark.parametrize("method", [*EXACT, "fedit"])
def test_one_client_is_the_identity_and_so_are_identical_clients(method: str) -> None:
    """Invariant I7, and the mean of identical updates is that update for any cohort."""
    combine = EXACT.get(method, by_fedit)
    alone = clients([EIGHT], [3.0])
    wanted = dense(alone[0].pairs[MODULE])
    assert off(combine(alone), wanted) <= 1e-10
    same = [with_weight(alone[0], 0.3 + number, client_id=f"c{number}") for number in range(7)]
    assert off(combine(same), wanted) <= 1e-10
    assert off(combine(alone), wanted) <= 1e-10  # and a second round remembers nothing of the first


def test_two_clients_of_one_number_each_give_their_mean() -> None:
    """Both dimensions equal the rank, where an axis cannot be told from a shape: 2 and 4 give 3."""
    ones = torch.ones(1, 1, dtype=torch.float64)
    contributions = [
        Contribution("a", 1.0, {MODULE: Pair(ones * 2.0, ones, 1.0)}),
        Contribution("b", 1.0, {MODULE: Pair(ones * 4.0, ones, 1.0)}),
    ]
    for method, combine in EXACT.items():
        assert combine(contributions).item() == pytest.approx(3.0, rel=1e-14), method


# flexlora


@given(contributions=rounds(), data=st.data())
@settings(max_examples=40, deadline=None)
def test_flexlora_is_the_dense_truncated_decomposition(
    contributions: list[Contribution], data: st.DataObject
) -> None:
    """Invariant I3: singular values, the cut and its error, against a decomposition of the dense target."""
    wanted = target(contributions)
    u, values, vt = torch.linalg.svd(wanted, full_matrices=False)
    spectrum = flexlora.combine(module_of_round(contributions))
    size, kept = float(values[0]), len(spectrum.values)
    assert float((spectrum.values - values[:kept]).abs().max()) <= 1e-12 * max(size, 1.0)
    assert float(values[kept:].norm()) <= 1e-12 * max(size, 1.0)
    rank = data.draw(st.integers(1, min(wanted.shape)))
    pair, cost = cut(spectrum, rank, scale=0.5)
    best = (u[:, :rank] * values[:rank]) @ vt[:rank]
    assert float((wanted - dense(pair)).norm()) == pytest.approx(cost.error_norm, abs=1e-10 * max(size, 1.0))
    assert float((wanted - dense(pair)).norm()) <= float((wanted - best).norm()) + 1e-10 * max(size, 1.0)
    if rank == len(values) or float(values[rank - 1] - values[rank]) > 1e-2 * size:  # else it is not unique
        assert float((dense(pair) - best).norm()) <= 1e-10 * max(size, 1.0)


def test_each_client_gets_the_best_pair_of_its_own_rank_in_its_own_scale() -> None:
    """Mixed ranks 4, 8 and 16; B is divided by the receiver's scale."""
    scales = [LoraScale(4, 8.0), LoraScale(8, 8.0), LoraScale(16, 8.0)]
    contributions = clients(scales, [1.0, 1.0, 2.0], shape=(60, 50))
    values = torch.linalg.svdvals(target(contributions))
    spectrum = flexlora.combine(module_of_round(contributions))
    for scale in scales:
        pair, cost = cut(spectrum, scale.rank, scale=scale.factor)
        assert (pair.rank, pair.scale) == (scale.rank, scale.factor)
        tail = float(values[scale.rank :].norm())
        assert float((target(contributions) - dense(pair)).norm()) == pytest.approx(tail, rel=1e-10)
        assert cost.relative_error == pytest.approx(tail / float(values.norm()), rel=1e-10)


def test_no_random_pair_of_the_rank_is_nearer() -> None:
    """Invariant I3."""
    contributions = clients(MIXED, WEIGHTS, shape=(40, 40))
    wanted = target(contributions)
    pair, cost = cut(flexlora.combine(module_of_round(contributions)), 4)
    near = float((wanted - dense(pair)).norm())
    assert near == pytest.approx(cost.error_norm, rel=1e-12)
    for seed in range(20):
        basis = torch.linalg.qr(pair.b + 1e-2 * normal(40, 4, seed=seed))[0]
        assert float((wanted - basis @ (basis.T @ wanted)).norm()) >= near


# fedit


@given(contributions=rounds(one_rank=True))
@settings(max_examples=40, deadline=None)
def test_what_the_mean_of_factors_misses_is_their_covariance(contributions: list[Contribution]) -> None:
    """Invariant I2."""
    weighted = module_of_round(contributions)
    mean = fedit.mean_of_factors(weighted, scale=1.5)
    missed = target(contributions) - dense(mean)
    residual = fedit.covariance(weighted, mean)
    size = max(float(target(contributions).norm()), norm(mean), 1e-3)
    assert float((missed - dense(residual)).norm()) <= 1e-11 * size
    assert norm(residual) == pytest.approx(float(missed.norm()), abs=1e-7 * size)


def test_where_all_a_factors_agree_the_mean_of_factors_is_exact() -> None:
    """Invariant I2: the reason why FFA-LoRA is exact."""
    contributions = clients([EIGHT] * 4, WEIGHTS)
    shared = contributions[0].pairs[MODULE].a
    alike = [
        Contribution(one.client_id, one.weight, {MODULE: Pair(one.pairs[MODULE].b, shared, 2.0)})
        for one in contributions
    ]
    weighted = module_of_round(alike)
    assert off(by_fedit(alike), target(alike)) <= 1e-12
    assert norm(fedit.covariance(weighted, fedit.mean_of_factors(weighted, scale=2.0))) <= 1e-10
    assert mean_and_residual(weighted, scale=2.0)[1].rank == 0


def test_independent_factors_lose_nearly_everything_in_the_mean_of_factors() -> None:
    """n independent clients of one weight: the relative error is sqrt(1 - 1/n), by its expectation."""
    contributions = clients([EIGHT] * 10, [1.0] * 10, shape=(200, 150))
    weighted = module_of_round(contributions)
    mean = fedit.mean_of_factors(weighted, scale=2.0)
    share = norm(fedit.covariance(weighted, mean)) / float(target(contributions).norm())
    assert share == pytest.approx(math.sqrt(0.9), rel=0.03)
    assert mean_and_residual(weighted, scale=2.0)[1].rank == 72  # (n - 1) r


def test_the_loss_of_the_mean_of_factors_is_quadratic_in_the_drift() -> None:
    def loss(drift: float) -> float:
        start = clients([EIGHT], [1.0], shape=(60, 50))[0].pairs[MODULE]
        moved = [
            Contribution(
                str(number),
                1.0,
                {
                    MODULE: Pair(
                        start.b + drift * normal(60, 8, seed=2 * number),
                        start.a + drift * normal(8, 50, seed=2 * number + 1),
                        2.0,
                    )
                },
            )
            for number in range(10)
        ]
        return off(by_fedit(moved), target(moved))

    assert loss(0.1) / loss(0.01) == pytest.approx(100.0, rel=0.1)


@pytest.mark.parametrize("combine", [by_fedit, by_fedex])
def test_ranks_that_differ_cannot_be_averaged_factor_by_factor(
    combine: Callable[[Sequence[Contribution]], Tensor],
) -> None:
    with pytest.raises(ValueError, match="flexlora"):
        combine(clients(MIXED, WEIGHTS))


# fedsa


def test_fedsa_shares_a_and_leaves_each_client_its_b_and_scale() -> None:
    contributions = clients([EIGHT, LoraScale(8, 4.0)], [1.0, 3.0])
    a = fedsa.shared_a(module_of_round(contributions))
    first, second = (one.pairs[MODULE] for one in contributions)
    assert torch.allclose(a, 0.25 * first.a + 0.75 * second.a, rtol=1e-14)
    sent = [
        Contribution(one.client_id, one.weight, {MODULE: Pair(torch.zeros(0, 8), one.pairs[MODULE].a, 1.0)})
        for one in contributions
    ]
    assert torch.equal(fedsa.shared_a(module_of_round(sent)), a)
    own = fedsa.personalised(second, a)
    assert torch.equal(own.b, second.b)
    assert (own.scale, own.shape) == (0.5, second.shape)
    with pytest.raises(ValueError, match="does not fit"):
        fedsa.personalised(clients(MIXED, WEIGHTS)[0].pairs[MODULE], a)
    with pytest.raises(ValueError, match="fedsa"):
        fedsa.shared_a(module_of_round(clients(MIXED, WEIGHTS)))


# fedask


def test_a_sketch_wider_than_the_targets_rank_is_exact() -> None:
    """Invariant I1 for the randomised decomposition."""
    contributions = clients(MIXED, WEIGHTS, shape=(120, 110))
    assert off(by_fedask(contributions, width=80), target(contributions)) <= 1e-12


def test_a_sketch_narrower_than_the_target_is_near_it_and_never_nearer_than_the_best() -> None:
    contributions = clients(MIXED, WEIGHTS, shape=(80, 70))
    wanted = target(contributions)
    best = float(torch.linalg.svdvals(wanted)[20:].norm())
    error = float((by_fedask(contributions, width=20) - wanted).norm())
    assert best <= error < float(wanted.norm())
    with pytest.raises(ValueError, match="as many columns"):
        fedask.basis(torch.zeros(3, 4, dtype=torch.float64))


def test_both_messages_of_a_sketch_are_sums() -> None:
    """Adding the messages in any grouping is the message of the sum: what secure aggregation needs."""
    one, other = (part.pair for part in module_of_round(clients(MIXED[:2], [1.0, 1.0])))
    omega = fedask.test_matrix(5, MODULE, columns=20, width=6)
    together = flora.stack(module_of_round(clients(MIXED[:2], [1.0, 1.0])))
    summed = 0.5 * fedask.first_message(one, omega) + 0.5 * fedask.first_message(other, omega)
    assert off(summed, fedask.first_message(together, omega)) <= 1e-13
    q = fedask.basis(summed)
    second = 0.5 * fedask.second_message(one, q) + 0.5 * fedask.second_message(other, q)
    assert off(second, fedask.second_message(together, q)) <= 1e-13


# The cohort


@pytest.mark.parametrize("weight", [-1.0, math.nan, math.inf, 1e13])
def test_a_weight_out_of_range_is_refused(weight: float) -> None:
    contributions = clients([EIGHT] * 2, [1.0, 1.0])
    with pytest.raises(ValueError, match="weight"):
        by_module([contributions[0], with_weight(contributions[1], weight)])


def test_weights_that_add_up_to_nothing_are_refused_and_so_is_nobody() -> None:
    with pytest.raises(ValueError, match="more than 0"):
        by_module(clients([EIGHT] * 2, [0.0, 0.0]))
    with pytest.raises(ValueError, match="no contribution"):
        by_module([])


def test_a_client_that_comes_twice_is_refused() -> None:
    with pytest.raises(ValueError, match="once"):
        by_module(clients([EIGHT], [1.0]) * 2)


@pytest.mark.parametrize("value", [math.nan, math.inf])
def test_a_value_that_is_not_finite_is_refused_even_without_weight(value: float) -> None:
    contributions = clients([EIGHT] * 2, [1.0, 0.0])
    contributions[1].pairs[MODULE].a[3, 4] = value
    with pytest.raises(ValueError, match=r"client-001.*finite"):
        by_module(contributions)
    assert off(by_flora(contributions[:1]), target(contributions[:1])) <= 1e-12


def test_other_modules_or_shapes_than_the_others_are_refused_by_name() -> None:
    good, other = clients([EIGHT] * 2, [1.0, 1.0])
    renamed = Contribution("x", 1.0, {"elsewhere": other.pairs[MODULE]})
    with pytest.raises(ValueError, match="elsewhere"):
        by_module([good, renamed])
    with pytest.raises(ValueError, match="no module"):
        by_module([Contribution("x", 1.0, {})])
    wider = clients([EIGHT], [1.0], shape=(30, 21))[0]
    with pytest.raises(ValueError, match="shape"):
        by_module([good, with_weight(wider, 1.0, client_id="y")])
    with pytest.raises(ValueError, match="one shape"):
        flora.stack([])


@pytest.mark.parametrize("dtype", [torch.float16, torch.bfloat16])
def test_narrow_factors_are_accumulated_wide(dtype: torch.dtype) -> None:
    """1000 ones of bfloat16 stick at 256 when summed in bfloat16; their mean here is 1."""
    ones = torch.ones(1, 1, dtype=dtype)
    contributions = [
        Contribution(f"{number:04}", 1.0, {MODULE: Pair(ones, ones, 1.0)}) for number in range(1000)
    ]
    for combine in (by_flora, by_fedit):
        assert combine(contributions).item() == pytest.approx(1.0, rel=1e-12)
