"""Client-level central privacy: what one client can move, how wide the noise is, and what it hangs on."""

import hashlib
import math
from collections.abc import Mapping
from fractions import Fraction

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from torch import Tensor

from engines.privacy.adaptive_clip import AdaptiveClip
from engines.privacy.central import CentralPlan, CentralRelease, CentralSum
from engines.privacy.noise import NoiseStream
from engines.privacy.round_stream import SealedInput, round_stream

SECRET = bytes(range(32))
SHAPES = {"lora.a": (4, 5), "head": (10,)}
ADAPTIVE = AdaptiveClip(bit_std=2.5, expected_cohort=50.0)


def plan_of(
    *,
    clip_norm: float = 1.0,
    noise_multiplier: float = 1.0,
    divisor: float = 1.0,
    largest_weight: float = 1.0,
    adaptive: AdaptiveClip | None = None,
) -> CentralPlan:
    return CentralPlan(
        clip_norm=clip_norm,
        noise_multiplier=noise_multiplier,
        divisor=divisor,
        most_updates=8,
        largest_weight=largest_weight,
        adaptive=adaptive,
    )


def update_of(seed: int, *, size: float = 1.0) -> dict[str, Tensor]:
    generator = torch.Generator().manual_seed(seed)
    return {name: size * torch.randn(shape, generator=generator) for name, shape in SHAPES.items()}


def zero_update() -> dict[str, Tensor]:
    return {name: torch.zeros(shape) for name, shape in SHAPES.items()}


def release(
    updates: list[dict[str, Tensor]],
    *,
    plan: CentralPlan | None = None,
    shapes: Mapping[str, tuple[int, ...]] = SHAPES,
    key: bytes = SECRET,
    weights: list[float] | None = None,
) -> CentralRelease:
    total = CentralSum(shapes, plan or plan_of())
    for update, weight in zip(updates, weights or [1.0] * len(updates), strict=True):
        total.add(update, weight=weight)
    return total.release(NoiseStream.from_key(key))


def flat(released: CentralRelease) -> Tensor:
    return torch.cat([tensor.reshape(-1) for tensor in released.update.values()]).double()


def same_bytes(one: CentralRelease, other: CentralRelease) -> bool:
    return all(torch.equal(one.update[name], other.update[name]) for name in one.update)


@pytest.mark.parametrize("clip_norm", [0.1, 1.0, 10.0])
def test_a_zero_update_is_released_with_noise_of_z_times_the_clip_norm_over_the_divisor(
    clip_norm: float,
) -> None:
    shapes = {"w": (200_000,)}
    plan = plan_of(clip_norm=clip_norm, noise_multiplier=1.1292, divisor=50.5)
    values = flat(release([{"w": torch.zeros(200_000)}], plan=plan, shapes=shapes))
    expected = 1.1292 * clip_norm / 50.5
    assert float(values.std()) == pytest.approx(expected, rel=0.01)
    assert abs(float(values.mean())) < 4 * expected / math.sqrt(200_000)


def test_weights_widen_the_noise_by_the_largest_weight() -> None:
    shapes = {"w": (200_000,)}
    plan = plan_of(noise_multiplier=0.8, largest_weight=3.0)
    values = flat(release([{"w": torch.zeros(200_000)}], plan=plan, shapes=shapes, weights=[0.5]))
    assert float(values.std()) == pytest.approx(0.8 * 3.0, rel=0.01)


@pytest.mark.parametrize("size", [1e-3, 1.0, 1e6, 1e30])
def test_one_client_moves_the_sum_by_at_most_the_clip_norm_whatever_its_size(size: float) -> None:
    others = [update_of(seed) for seed in (1, 2)]
    big = update_of(3)
    norm = math.sqrt(sum(float(tensor.double().square().sum()) for tensor in big.values()))
    big = {name: (tensor * (size / norm)).float() for name, tensor in big.items()}
    moved = flat(release([*others, big])) - flat(release([*others, zero_update()]))
    assert float(moved.norm()) <= 1.0 + 1e-5  # the releases' own rounding to float32
    assert float(moved.norm()) == pytest.approx(min(size, 1.0), rel=1e-3)


entries = st.floats(allow_nan=False, allow_infinity=False, width=32)


@settings(max_examples=60, deadline=None)
@given(
    st.lists(entries, min_size=3, max_size=3),
    st.floats(1e-6, 1e6),
    st.floats(0.0, 1.0),
    st.sampled_from([1.0, 0.3, 7.0]),
)
def test_in_exact_arithmetic_no_client_adds_more_than_the_bound_that_the_noise_is_made_for(
    values: list[float], clip_norm: float, share: float, largest_weight: float
) -> None:
    plan = plan_of(clip_norm=clip_norm, largest_weight=largest_weight)
    total = CentralSum({"w": (3,)}, plan)
    total.add({"w": torch.tensor(values, dtype=torch.float32)}, weight=share * largest_weight)
    assert total._steps is not None
    added = [Fraction(step) * Fraction(plan.grid) for step in total._steps.tolist()]
    bound = Fraction(plan.noise_std) / Fraction(plan.sum_multiplier)
    assert sum(value**2 for value in added) <= bound**2
    assert Fraction(plan.noise_std) >= Fraction(1.0) * Fraction(clip_norm) * Fraction(largest_weight)


def test_the_norm_is_one_over_all_tensors_not_one_a_tensor() -> None:
    update = {"lora.a": torch.full((4, 5), 10.0), "head": torch.full((10,), 10.0)}
    moved = flat(release([update])) - flat(release([]))
    assert float(moved.norm()) == pytest.approx(1.0, rel=1e-5)


@pytest.mark.parametrize("poison", [math.nan, math.inf, -math.inf])
@pytest.mark.parametrize("adaptive", [None, ADAPTIVE])
def test_an_update_that_is_not_finite_releases_the_same_bits_as_a_zero_update(
    poison: float, adaptive: AdaptiveClip | None
) -> None:
    broken = update_of(4)
    broken["head"][3] = poison
    plan = plan_of(adaptive=adaptive)
    with_broken = release([update_of(1), broken], plan=plan)
    with_zero = release([update_of(1), zero_update()], plan=plan)
    assert same_bytes(with_broken, with_zero)
    assert with_broken.share_within == with_zero.share_within
    assert not CentralSum(SHAPES, plan).add(broken).finite


def test_an_empty_cohort_gets_the_same_noise_as_a_cohort_of_zeros() -> None:
    empty = release([])
    assert same_bytes(empty, release([zero_update(), zero_update()]))
    assert float(flat(empty).abs().min()) > 0.0


def test_the_divisor_does_not_follow_the_number_that_came() -> None:
    plan = plan_of(divisor=50.0)
    moved = flat(release([update_of(1)] * 2, plan=plan)) - flat(release([update_of(1)], plan=plan))
    assert float(moved.norm()) == pytest.approx(1.0 / 50.0, rel=1e-3)


def test_the_order_of_clients_changes_no_bit() -> None:
    updates = [update_of(seed, size=0.1 * seed) for seed in range(1, 6)]
    assert same_bytes(release(updates), release(updates[::-1]))


def test_the_sum_before_the_noise_is_the_same_on_every_machine() -> None:
    total = CentralSum({"w": (70_001,)}, plan_of())
    ramp = torch.arange(70_001, dtype=torch.float32) * 1e-5 - 0.3
    total.add({"w": ramp})
    assert total._steps is not None
    # Computed when this was written; plain additions in a fixed order, so every machine agrees.
    assert [int(total._steps[at]) for at in (0, 69_999)] == [-91_384, 121_842]
    assert int(total._steps.sum()) == 1_066_161_338


def test_released_sums_lie_on_the_grid_even_as_float32() -> None:
    plan = plan_of(noise_multiplier=0.7)
    released = flat(release([update_of(1), update_of(2)], plan=plan))
    multiples = released / plan.grid
    assert torch.equal(multiples, multiples.round())
    assert plan.noise_std / plan.grid >= 2.0**24


def correlation(one: Tensor, other: Tensor) -> float:
    return float(np.corrcoef(one.numpy(), other.numpy())[0, 1])


def stream_of(total: CentralSum, *names: str) -> NoiseStream:
    sealed = [SealedInput(contribution=name, digest=name.encode() * 16) for name in names]
    return round_stream(SECRET, parameters=total.parameters(), sealed=sealed)


def test_the_noise_of_two_tensors_and_of_two_rounds_is_uncorrelated() -> None:
    count = 100_000
    rounds = []
    for name in ("u1", "u2"):  # one secret even: two sealed sets
        total = CentralSum({"a": (count,), "b": (count,)}, plan_of())
        rounds.append(total.release(stream_of(total, name)).update)
    bound = 5.0 / math.sqrt(count)
    assert abs(correlation(rounds[0]["a"], rounds[0]["b"])) < bound
    assert abs(correlation(rounds[0]["a"], rounds[1]["a"])) < bound
    assert abs(correlation(rounds[0]["a"][1:], rounds[0]["a"][:-1])) < bound
    assert abs(correlation(rounds[0]["a"].abs(), rounds[0]["b"].abs())) < bound


def test_the_noise_of_a_key_is_laid_out_the_same_on_every_machine_and_in_every_version() -> None:
    released = release([], shapes={"w": (70_001,)}, plan=plan_of(adaptive=ADAPTIVE))
    # Recorded when this was written. A change of blocks or order needs a new mechanism name.
    assert (
        hashlib.sha256(released.update["w"].numpy().astype("<f4").tobytes()).hexdigest()[:16]
        == "96341d5571eef29f"
    )
    assert released.share_within == 0.4322435665130615


def test_an_update_is_read_and_not_changed() -> None:
    update = update_of(1, size=50.0)
    CentralSum(SHAPES, plan_of(largest_weight=2.0)).add(update, weight=0.5)
    assert all(torch.equal(update[name], update_of(1, size=50.0)[name]) for name in SHAPES)


def test_a_round_that_is_computed_again_releases_the_same_bytes() -> None:
    def attempt() -> CentralRelease:
        total = CentralSum(SHAPES, plan_of(adaptive=ADAPTIVE))
        for seed in (1, 2):
            total.add(update_of(seed))
        return total.release(stream_of(total, "u1", "u2"))

    first, second = attempt(), attempt()
    assert same_bytes(first, second)
    assert first.share_within == second.share_within


OTHER_PLANS = [
    plan_of(clip_norm=1.5),
    plan_of(noise_multiplier=1.0001),
    plan_of(divisor=2.0),
    plan_of(largest_weight=2.0),
    plan_of(adaptive=ADAPTIVE),
    plan_of(adaptive=AdaptiveClip(bit_std=2.5, expected_cohort=51.0)),
    CentralPlan(clip_norm=1.0, noise_multiplier=1.0, divisor=1.0, most_updates=9),
]


def test_another_parameter_or_another_set_never_gets_the_same_noise() -> None:
    totals = [CentralSum(SHAPES, plan) for plan in [plan_of(), *OTHER_PLANS]]
    totals += [
        CentralSum({"head": (10,), "lora.a": (4, 5)}, plan_of()),
        CentralSum({"lora.a": (5, 4), "head": (10,)}, plan_of()),
    ]
    streams = [stream_of(total, "u1", "u2").take(32) for total in totals]
    streams += [stream_of(totals[0], *names).take(32) for names in (("u1",), ("u1", "u3"), ())]
    assert len(set(streams)) == len(streams)


def test_a_sum_is_released_once_and_takes_nothing_afterwards() -> None:
    total = CentralSum(SHAPES, plan_of())
    total.add(update_of(1))
    total.release(NoiseStream.from_key(SECRET))
    with pytest.raises(RuntimeError, match="released once"):
        total.release(NoiseStream.from_key(SECRET))
    with pytest.raises(RuntimeError, match="no more updates"):
        total.add(update_of(1))


def test_the_bits_take_their_part_of_z_and_the_sum_gets_wider_noise() -> None:
    plan, fixed = (
        plan_of(adaptive=AdaptiveClip(bit_std=1.6, expected_cohort=32.0), noise_multiplier=0.8),
        plan_of(),
    )
    assert plan.sum_multiplier == pytest.approx(0.826236447, abs=1e-9)
    assert fixed.sum_multiplier == 1.0
    values = flat(release([], plan=plan, shapes={"w": (200_000,)}))
    assert float(values.std()) == pytest.approx(0.826236447, rel=0.01)


def test_the_share_within_the_clip_norm_counts_every_client_by_its_norm_before_clipping() -> None:
    adaptive = AdaptiveClip(bit_std=1.0, expected_cohort=1e6)
    plan = plan_of(adaptive=adaptive, noise_multiplier=1.0)
    noise_alone = release([], plan=plan).share_within
    small, large = update_of(1, size=1e-3), update_of(2, size=1e3)
    share = release([small, small, small, large], plan=plan).share_within
    assert noise_alone is not None
    assert share is not None
    assert (share - noise_alone) * 1e6 == pytest.approx(1.0, abs=1e-6)  # (3 - 1) halves


def test_without_adaptive_clipping_no_share_is_released() -> None:
    assert release([update_of(1)]).share_within is None


def test_what_is_found_about_an_update_is_its_own_norm_before_clipping() -> None:
    admitted = CentralSum(SHAPES, plan_of()).add({"lora.a": torch.full((4, 5), 3.0), "head": torch.zeros(10)})
    assert admitted.finite
    assert admitted.norm == pytest.approx(math.sqrt(180.0), rel=1e-12)


def test_an_update_over_many_blocks_is_clipped_and_summed_as_one_vector() -> None:
    generator = torch.Generator().manual_seed(9)
    update = {"w": torch.randn(150_001, generator=generator), "v": torch.randn(3, generator=generator)}
    shapes = {"w": (150_001,), "v": (3,)}
    moved = flat(release([update], shapes=shapes)) - flat(release([], shapes=shapes))
    whole = torch.cat([update["w"], update["v"]]).double()
    assert float((moved - whole / whole.norm()).abs().max()) < 1e-6


REFUSED_UPDATES: list[dict[str, Tensor]] = [
    {"lora.a": torch.zeros(4, 5)},
    {"lora.a": torch.zeros(4, 5), "head": torch.zeros(10), "extra": torch.zeros(1)},
    {"lora.a": torch.zeros(5, 4), "head": torch.zeros(10)},
    {"lora.a": torch.zeros(4, 5), "head": torch.zeros(10, dtype=torch.bfloat16)},
]


@pytest.mark.parametrize("update", REFUSED_UPDATES)
def test_an_update_of_another_shape_is_refused_and_leaves_the_sum_as_it_was(
    update: dict[str, Tensor],
) -> None:
    total = CentralSum(SHAPES, plan_of())
    with pytest.raises(ValueError, match=r"missing|expected"):
        total.add(update)
    assert same_bytes(total.release(NoiseStream.from_key(SECRET)), release([]))


@pytest.mark.parametrize("weight", [-0.1, 1.0001, math.nan])
def test_a_weight_outside_its_public_range_is_refused(weight: float) -> None:
    with pytest.raises(ValueError, match="weight"):
        CentralSum(SHAPES, plan_of()).add(update_of(1), weight=weight)


def test_more_updates_than_the_cap_are_refused() -> None:
    total = CentralSum(SHAPES, plan_of())
    for seed in range(8):
        total.add(update_of(seed))
    with pytest.raises(ValueError, match="full"):
        total.add(update_of(9))


def test_a_plan_whose_sum_could_leave_int64_is_refused() -> None:
    with pytest.raises(ValueError, match="2\\*\\*63"):
        CentralPlan(clip_norm=1.0, noise_multiplier=1e-6, divisor=1.0, most_updates=10**9)


@pytest.mark.parametrize(
    ("name", "value"),
    [
        ("clip_norm", 0.0),
        ("clip_norm", math.nan),
        ("noise_multiplier", 0.0),
        ("divisor", 0.0),
        ("most_updates", 0),
        ("largest_weight", 0.0),
        ("largest_weight", math.inf),
    ],
)
def test_a_plan_out_of_range_is_refused(name: str, value: float) -> None:
    fields = {
        "clip_norm": 1.0,
        "noise_multiplier": 1.0,
        "divisor": 1.0,
        "most_updates": 8,
        "largest_weight": 1.0,
    }
    with pytest.raises(ValueError, match=r"clip norm|noise multiplier|divisor|cap|weight"):
        CentralPlan(**{**fields, name: value})  # type: ignore[arg-type]


def test_a_sum_without_a_value_is_refused() -> None:
    with pytest.raises(ValueError, match="nothing to sum"):
        CentralSum({}, plan_of())
