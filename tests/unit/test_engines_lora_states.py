"""Rounds of LoRA methods as arrays: the target however many clients come, what goes on, what is released."""

from typing import Any

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from torch import Tensor

from engines.lora.adapter import initial_adapter
from engines.lora.cohort import Weighted
from engines.lora.factors import Pair, dense
from engines.lora.methods import is_sent, shape_at_rank
from engines.lora.moves import Moved, by_decomposition, by_residual, by_stacking
from engines.lora.scaling import LoraScale
from engines.lora.spectrum import Spectrum
from engines.lora.states import modules_in, parted, released, require_whole, together
from engines.lora.target import as_pair, compressed, joined, target_of
from tests.unit.lora_rounds import HEAD, MODULE, A, B, normal, off

ROWS, COLUMNS, RANK = 30, 20, 4
SCALE = LoraScale(RANK, 8.0)
BASE = Pair(normal(ROWS, 3, seed=91), normal(3, COLUMNS, seed=92), 1.0)
NOTHING = Pair(torch.zeros(ROWS, 0), torch.zeros(0, COLUMNS), 1.0)


def clients(ranks: list[int], *, seed: int = 0) -> list[Weighted]:
    """Clients of these ranks, each with its own alpha, of equal weight."""
    return [
        Weighted(
            1.0 / len(ranks),
            Pair(
                normal(ROWS, rank, seed=100 * seed + 2 * number),
                normal(rank, COLUMNS, seed=100 * seed + 2 * number + 1),
                (number + 1.0) / rank,
            ),
        )
        for number, rank in enumerate(ranks)
    ]


def mean_of_products(weighted: list[Weighted]) -> Tensor:
    return torch.stack([one.share * dense(one.pair) for one in weighted]).sum(dim=0)


def whole(moved: Moved) -> Tensor:
    """What a client's next model adds to the weight of the base model."""
    return dense(moved.pair) + (0.0 if moved.base is None else dense(moved.base))


@settings(deadline=None, max_examples=30)
@given(ranks=st.lists(st.integers(1, 16), min_size=1, max_size=24))
def test_the_target_is_exact_however_many_clients_come(ranks: list[int]) -> None:
    """I1; beyond twice the width of 20 the stack is brought back to it on the way."""
    weighted = clients(ranks)
    found = target_of(weighted, width=COLUMNS)
    assert len(found.values) <= COLUMNS
    assert off(dense(as_pair(found)), mean_of_products(weighted)) <= 1e-12


def test_no_more_is_collected_than_the_weight_could_hold(monkeypatch: pytest.MonkeyPatch) -> None:
    seen = []

    def counted(pairs: list[Pair]) -> Pair:
        made = joined(pairs)
        seen.append(made.rank)
        return made

    monkeypatch.setattr("engines.lora.target.joined", counted)
    target_of((one for one in clients([16] * 40)), width=COLUMNS)
    assert len(seen) > 10
    assert max(seen) <= 2 * COLUMNS + 16


@pytest.mark.parametrize("base", [NOTHING, BASE], ids=["first", "later"])
def test_stacking_and_the_residual_keep_all_of_the_target(base: Pair) -> None:
    """I1 with what the base weight took up before; fedex goes on from the mean of factors, flora anew."""
    weighted = clients([RANK] * 6)
    wanted = mean_of_products(weighted) + dense(base)
    target, mean = target_of(weighted, width=COLUMNS), weighted[0].pair
    stacked = by_stacking(target, base=base, scale=SCALE, fresh_a=normal(RANK, COLUMNS, seed=7))
    residual = by_residual(target, mean=mean, base=base)
    assert off(whole(stacked), wanted) <= 1e-12
    assert off(whole(residual), wanted) <= 1e-12
    assert not stacked.pair.b.any()
    assert torch.equal(residual.pair.b, mean.b)


def test_one_client_leaves_fedex_no_residual() -> None:
    """I7: with one client the mean is the target, and what rounding leaves is no residual."""
    (alone,) = clients([RANK])
    moved = by_residual(target_of([alone], width=COLUMNS), mean=alone.pair, base=NOTHING)
    assert moved.base is not None
    assert moved.base.rank == 0


@pytest.mark.parametrize("energy", [None, 0.5, 1.0])
def test_a_decomposition_is_nested_and_states_what_it_cuts_off(energy: float | None) -> None:
    """I3: the leading columns are the nearest adapter of each smaller rank."""
    target = target_of(clients([3, 4, 5]), width=COLUMNS)
    spare = normal(RANK, COLUMNS, seed=3)
    moved = by_decomposition(target, scale=SCALE, spare_a=spare, energy=energy)
    kept = int((moved.pair.b.abs().sum(dim=0) > 0).sum())
    assert kept == RANK if energy is None else 1 <= kept <= RANK
    left = dense(as_pair(target)) - dense(moved.pair)
    assert moved.missed.error_norm == pytest.approx(float(left.norm()), rel=1e-10)
    assert torch.equal(moved.pair.a[kept:], spare[kept:])
    for rank in range(1, kept + 1):
        cut = Pair(moved.pair.b[:, :rank], moved.pair.a[:rank], moved.pair.scale)
        missed = float((dense(as_pair(target)) - dense(cut)).norm())
        assert missed == pytest.approx(float(target.values[rank:].norm()), rel=1e-10)


def test_other_factors_of_the_same_products_give_the_same_state() -> None:
    """I5: B M and M^-1 A are the same model, and the methods of products see the same round."""
    weighted = clients([RANK] * 3)
    turned = []
    for number, one in enumerate(weighted):
        mixed = normal(RANK, RANK, seed=500 + number) + 3.0 * torch.eye(RANK, dtype=torch.float64)
        pair = Pair(one.pair.b @ mixed, torch.linalg.inv(mixed) @ one.pair.a, one.pair.scale)
        turned.append(Weighted(one.share, pair))
    spare = normal(RANK, COLUMNS, seed=3)
    states = []
    for cohort in (weighted, turned):
        target = target_of(cohort, width=COLUMNS)
        moved = by_decomposition(target, scale=SCALE, spare_a=spare)
        stacked = by_stacking(target, base=BASE, scale=SCALE, fresh_a=spare)
        states.append((dense(moved.pair), whole(stacked)))
    for first, second in zip(*states, strict=True):
        assert off(first, second) <= 1e-10


def test_a_sum_is_written_at_its_rank_and_nothing_is_nothing() -> None:
    assert compressed([NOTHING]).rank == 0
    assert compressed([BASE, NOTHING]).rank == BASE.rank
    minus = Pair(-BASE.b, BASE.a, BASE.scale)
    assert compressed([BASE, minus], beside=float(dense(BASE).norm())).rank == 0
    with pytest.raises(ValueError, match="one shape"):
        joined([BASE, Pair(torch.ones(3, 1), torch.ones(1, 3), 1.0)])
    with pytest.raises(ValueError, match="one shape"):
        joined([])


def listed(method: str) -> list[dict[str, Any]]:
    names: dict[str, list[int]] = {A: [RANK, COLUMNS], B: [ROWS, RANK], HEAD: [2, COLUMNS]}
    if method == "fedsb":
        del names[B]
        core, basis = f"{MODULE}.lora_B.core.weight", f"{MODULE}.lora_B.basis.weight"
        names |= {core: [RANK, RANK], basis: [ROWS, RANK]}
    frozen = {"ffa": (".lora_A.",), "fedsb": (".lora_A.", ".basis."), "fedsa": (".lora_B.",)}.get(method, ())
    return [
        {"name": name, "shape": shape, "trained": not any(part in name for part in frozen)}
        for name, shape in sorted(names.items())
    ]


def lora_of(method: str) -> dict[str, Any]:
    return {"method": method, "rank": RANK, "alpha": SCALE.alpha, "seed": 1}


def state_of(method: str, *, base: Pair = BASE) -> dict[str, Tensor]:
    first = initial_adapter(listed(method), 1, trained_only=True)
    trained = {
        name: one + 0.1 * normal(*one.shape, seed=40 + number).float()
        for number, (name, one) in enumerate(first.items())
    }
    return together(trained, {MODULE: base} if method in {"flora", "fedex"} else {})


def test_a_state_is_parted_and_put_together_again() -> None:
    state = state_of("fedex")
    trained, base = parted(state)
    assert set(trained) == {A, B, HEAD}
    again = together(trained, base)
    assert all(torch.equal(again[name], tensor) for name, tensor in state.items())
    assert list(again) == sorted(state)
    assert together(trained, {MODULE: NOTHING}).keys() == trained.keys()
    assert modules_in(listed("fedex")) == modules_in(listed("fedsb")) == {MODULE: (ROWS, COLUMNS)}


@pytest.mark.parametrize(
    ("change", "told"),
    [
        ({B: None}, "lora_B"),
        ({f"{MODULE}.base_A.weight": None}, "missing"),
        ({f"{MODULE}.base_B.weight": None}, "missing"),
        ({f"{MODULE}.base_A.weight": (3, COLUMNS + 1)}, "no pair"),
        (
            {
                f"{MODULE}.base_A.weight": (COLUMNS + 1, COLUMNS),
                f"{MODULE}.base_B.weight": (ROWS, COLUMNS + 1),
            },
            "no pair",
        ),
        ({"base_model.model.other.base_A.weight": (3, COLUMNS)}, "other"),
        ({HEAD: (3, COLUMNS)}, "classifier"),
    ],
)
def test_a_state_that_is_not_the_manifests_is_refused_by_name(
    change: dict[str, tuple[int, int] | None], told: str
) -> None:
    shapes: dict[str, Any] = {name: tuple(one.shape) for name, one in state_of("fedex").items()} | change
    given = {name: shape for name, shape in shapes.items() if shape is not None}
    with pytest.raises(ValueError, match=told):
        require_whole(given, tensors=listed("fedex"), merges=True)


def test_only_methods_that_merge_may_have_base_factors() -> None:
    shapes = {name: tuple(one.shape) for name, one in state_of("fedex").items()}
    require_whole(shapes, tensors=listed("fedex"), merges=True)
    with pytest.raises(ValueError, match="base_A"):
        require_whole(shapes, tensors=listed("fedit"), merges=False)


@pytest.mark.parametrize("method", ["flora", "fedex"])
def test_a_release_holds_the_adapter_and_what_the_base_took_up_at_their_own_rank(method: str) -> None:
    state = state_of(method)
    files, ranks = released(state, tensors=listed(method), lora=lora_of(method))
    wanted = SCALE.factor * state[B].double() @ state[A].double() + dense(BASE)
    assert ranks == {MODULE: RANK + BASE.rank}
    assert off(files[B].double() @ files[A].double(), wanted) < 1e-6
    assert set(files) == {A, B, HEAD}


def test_a_release_that_changes_nothing_has_one_direction_of_zeros() -> None:
    state = initial_adapter(listed("flora"), 1, trained_only=True)
    files, ranks = released(state, tensors=listed("flora"), lora=lora_of("flora"))
    assert ranks == {MODULE: 1}
    assert (tuple(files[B].shape), files[B].any().item()) == ((ROWS, 1), False)


def test_what_leaves_a_client_and_at_which_shape() -> None:
    assert [is_sent("rolora", A, number=number) for number in (1, 2, 3)] == [False, True, False]
    assert [is_sent("rolora", B, number=number) for number in (1, 2, 3)] == [True, False, True]
    assert is_sent("rolora", A)
    assert (is_sent("fedsa", A), is_sent("fedsa", B, number=1), is_sent("fedsa", HEAD)) == (True, False, True)
    assert shape_at_rank(A, (8, 20), 2) == (2, 20)
    assert shape_at_rank(B, (30, 8), 2) == (30, 2)
    assert shape_at_rank(HEAD, (2, 20), 2) == (2, 20)


def test_an_empty_decomposition_is_refused() -> None:
    with pytest.raises(ValueError, match="at least one"):
        target_of([], width=COLUMNS)
    nothing = Spectrum(torch.zeros(ROWS, 0), torch.zeros(0), torch.zeros(0, COLUMNS))
    assert as_pair(nothing).rank == 0
