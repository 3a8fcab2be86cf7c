"""The robust rules against byzfl's numbers, brute force, invariances, and their preconditions."""

import itertools
import math
from typing import Any

import numpy as np
import pytest
from hypothesis import assume, given, settings
from hypothesis import strategies as st
from numpy.typing import NDArray

from engines.aggregation import centres
from engines.aggregation.centres import (
    NotConverged,
    centered_clipping,
    geometric_median,
    trusted_sum,
)
from engines.aggregation.coordinates import mean_around_median
from engines.aggregation.gate import admit
from engines.aggregation.gram import gram, product_gram, squared_distances
from engines.aggregation.mixing import buckets, nearest_neighbours
from engines.aggregation.permission import OnlyTheSum, require_allowed
from engines.aggregation.rows import Held
from engines.aggregation.rules import (
    DEFAULT_MIXING,
    DEFAULT_RULE,
    RULES,
    Mixing,
    Setting,
    SettingMissing,
    TooFewClients,
    aggregate,
)
from engines.aggregation.selection import (
    bulyan_selection,
    diameter,
    divide_and_conquer,
    krum_order,
    krum_scores,
    smallest_diameter,
)
from engines.privacy.sensitivity import NoUsefulBound, UnboundedRule

Matrix = NDArray[np.float64]
# Reference vectors: byzfl 0.0.11, float64, f = 2, on these seven updates.
X = np.array(
    [
        [1.0, 2.0, 3.0],
        [1.1, 2.1, 2.9],
        [0.9, 1.8, 3.1],
        [1.2, 2.2, 3.2],
        [0.8, 1.9, 2.8],
        [100.0, -100.0, 50.0],
        [-80.0, 60.0, -40.0],
    ]
)
HONEST = [1.0, 2.0, 3.0]
TIED = {"bulyan", "mda"}


def setting(rule: str, clients: int, dimension: int) -> Setting:
    """Settings under which a rule runs on n clients."""
    most = {
        "mean": 0,
        "bulyan": (clients - 3) // 4,
        "krum": (clients - 3) // 2,
        "multi_krum": (clients - 3) // 2,
    }
    faulty = most.get(rule, min((clients - 1) // 2, int(0.15 * clients)))
    reference = np.arange(1.0, dimension + 1.0)
    return Setting(faulty=max(faulty, 0), radius=1.5, reference=reference)


def run(rule: str, matrix: Matrix, *, mixing: Mixing = Mixing.NONE, **changes: Any) -> Matrix:
    told = setting(rule, *matrix.shape)
    return aggregate(Held(matrix), Setting(**{**vars(told), **changes}), rule=rule, mixing=mixing)[0].values


def distances(matrix: Matrix) -> Matrix:
    return squared_distances(gram(Held(matrix)))


@pytest.mark.parametrize(
    ("rule", "changes"),
    [
        ("median", {}),
        ("trimmed_mean", {}),
        ("krum", {}),
        ("multi_krum", {"chosen": 5}),
        ("mda", {}),
        ("meamed", {}),
        ("dnc", {}),
        ("geometric_median", {}),
    ],
)
def test_rules_give_byzfls_vector(rule: str, changes: dict[str, int]) -> None:
    assert run(rule, X, faulty=2, **changes) == pytest.approx(HONEST, abs=1e-9)


def test_the_mean_gives_byzfls_vector() -> None:
    assert run("mean", X) == pytest.approx([3.5714285714, -4.2857142857, 3.5714285714], abs=1e-10)


@pytest.mark.parametrize(
    ("iterations", "expected"),
    [(1, [0.1790927521, 0.365760361, 0.5670424314]), (10, [0.9828410095, 1.9704354661, 2.9831404644])],
)
def test_centered_clipping_gives_byzfls_vector(iterations: int, expected: list[float]) -> None:
    found = run("centered_clipping", X, radius=1.0, iterations=iterations, faulty=1)
    assert found == pytest.approx(expected, abs=1e-10)


def test_nearest_neighbour_mixing_gives_byzfls_rows() -> None:
    mixed = nearest_neighbours(distances(X), faulty=2) @ X
    assert mixed[:5] == pytest.approx(np.tile(HONEST, (5, 1)), abs=1e-12)
    assert mixed[5:] == pytest.approx(np.array([[20.84, -18.38, 12.44], [-15.24, 13.56, -5.64]]), abs=1e-12)


def test_clipping_gives_byzfls_rows_up_to_the_slack_that_keeps_the_bound() -> None:
    (_, tile), *_ = admit(Held(X), clip_norm=2.0).rows.tiles(9)
    assert tile[0] == pytest.approx([0.5345224838, 1.0690449676, 1.6035674515], rel=1e-9)
    assert tile[5] == pytest.approx([1.3333333333, -1.3333333333, 0.6666666667], rel=1e-9)


def test_krum_adds_up_blanchards_number_of_neighbours_and_not_byzfls() -> None:
    scores = krum_scores(distances(X), faulty=2)
    assert scores == pytest.approx([0.18, 0.28, 0.34, 0.49, 0.34, 67194.18, 35280.12], abs=1e-9)
    one_more = krum_scores(distances(X), faulty=1)  # what byzfl calls f = 2
    assert one_more == pytest.approx([0.3, 0.45, 0.6, 0.9, 0.75, 89618.21, 47069.78], abs=1e-9)


def test_the_other_number_of_neighbours_often_chooses_another_client() -> None:
    """30.1 % of random n = 7, f = 2 cases in the reference's count."""
    generator, other = np.random.default_rng(0), 0
    for _ in range(1000):
        between = distances(generator.normal(size=(7, 3)))
        other += krum_order(between, faulty=2)[0] != krum_order(between, faulty=1)[0]
    assert 250 <= other <= 400


@pytest.mark.parametrize("bad", [math.nan, math.inf, 1e200])
@pytest.mark.parametrize("rule", sorted(set(RULES) - {"mean", "fltrust"}))
def test_no_rule_returns_what_is_not_finite(rule: str, bad: float) -> None:
    broken = np.concatenate([X[:5], X[:2] + 0.05, X[5:6]])
    broken[-1] = bad
    told = setting(rule, 7, 3)
    outcome, admission = aggregate(Held(broken), told, rule=rule, mixing=Mixing.NONE)
    assert admission.turned_away == (7,)
    assert outcome.values.tobytes() == run(rule, broken[:-1], **vars(told)).tobytes()


# Two clients that are each other's nearest score the same in Bulyan's last choices, and several subsets may
# share the smallest diameter: there the order decides, on any data.
@pytest.mark.parametrize("rule", sorted(set(RULES) - TIED))
@settings(max_examples=25, deadline=None)
@given(st.integers(0, 10_000), st.integers(11, 16))
def test_the_order_of_generic_clients_does_not_matter(rule: str, seed: int, clients: int) -> None:
    generator = np.random.default_rng(seed)
    matrix = generator.normal(size=(clients, 4))
    shuffled = matrix[generator.permutation(clients)]
    assert run(rule, shuffled) == pytest.approx(run(rule, matrix), rel=1e-5, abs=1e-5)


@pytest.mark.parametrize("rule", sorted(RULES))
@pytest.mark.parametrize("mixing", [Mixing.NONE, Mixing.NEAREST])
def test_clients_sorted_by_id_give_the_same_bits_whoever_came_first(rule: str, mixing: Mixing) -> None:
    generator = np.random.default_rng(5)
    arrived = {
        f"client-{i:02}": row for i, row in enumerate(generator.normal(size=(15, 40)).astype(np.float32))
    }
    arrived["client-03"] = arrived["client-11"]  # a tie
    results = set()
    for order in (sorted(arrived), sorted(arrived, reverse=True)):
        came = {name: arrived[name] for name in order}
        results.add(run(rule, np.stack([came[name] for name in sorted(came)]), mixing=mixing).tobytes())
    assert len(results) == 1


@pytest.mark.parametrize(
    ("rule", "mixing"),
    [
        *((rule, Mixing.NONE) for rule in sorted(set(RULES) - {"fltrust", "centered_clipping"})),
        *((rule, Mixing.NEAREST) for rule in sorted(set(RULES) - {"fltrust", "centered_clipping"} - TIED)),
    ],
)
@settings(max_examples=20, deadline=None)
@given(st.integers(0, 10_000))
def test_moving_everybody_moves_the_result_along(rule: str, mixing: Mixing, seed: int) -> None:
    generator = np.random.default_rng(seed)
    matrix, shift = generator.normal(size=(11, 5)), generator.normal(size=5) * 10
    assert run(rule, matrix + shift, mixing=mixing) == pytest.approx(
        run(rule, matrix, mixing=mixing) + shift, rel=1e-4, abs=1e-4
    )


def test_centered_clipping_moves_along_when_its_centre_does() -> None:
    matrix, shift = np.random.default_rng(1).normal(size=(11, 5)), np.arange(5.0)
    assert run("centered_clipping", matrix + shift, centre=shift) == pytest.approx(
        run("centered_clipping", matrix) + shift, abs=1e-12
    )


@pytest.mark.parametrize("rule", sorted(set(RULES) - {"fltrust"}))
@pytest.mark.parametrize("mixing", [Mixing.NONE, Mixing.NEAREST])
def test_equal_updates_are_their_own_aggregate(rule: str, mixing: Mixing) -> None:
    row = np.array([0.25, -0.5, 0.125], dtype=np.float32)
    found = run(rule, np.tile(row, (11, 1)), mixing=mixing, centre=row)
    assert found == pytest.approx(row, abs=1e-7)


@pytest.mark.parametrize("rule", sorted(set(RULES) - {"mean", "fltrust"}))
def test_a_far_client_does_not_carry_a_robust_rule_away(rule: str) -> None:
    matrix = np.random.default_rng(2).normal(size=(15, 30))
    calm = run(rule, matrix)
    matrix[4] = 1e6
    assert float(np.linalg.norm(run(rule, matrix) - calm)) < 15.0
    assert float(np.linalg.norm(run("mean", matrix))) > 1e5


def test_weights_tell_what_each_client_counted() -> None:
    matrix = np.random.default_rng(3).normal(size=(11, 6))
    for rule, mixing in itertools.product(("krum", "multi_krum", "mda", "dnc", "geometric_median"), Mixing):
        told = setting(rule, 11, 6)
        told = Setting(**{**vars(told), "faulty": 1, "order": np.random.default_rng(0).permutation(11)})
        outcome, _ = aggregate(Held(matrix), told, rule=rule, mixing=mixing)
        assert outcome.weights is not None
        assert outcome.weights.sum() == pytest.approx(1.0)
        assert outcome.weights @ matrix == pytest.approx(outcome.values, abs=1e-12)


@settings(max_examples=60, deadline=None)
@given(st.integers(0, 10_000), st.integers(4, 9), st.integers(0, 3))
def test_the_smallest_diameter_is_that_of_all_subsets(seed: int, clients: int, faulty: int) -> None:
    assume(clients > 2 * faulty)
    generator = np.random.default_rng(seed)
    matrix = np.round(generator.normal(size=(clients, 2)), seed % 3)  # with rounding there are ties
    between = distances(matrix)
    found = smallest_diameter(between, faulty=faulty)
    best = min(
        diameter(between, list(subset)) for subset in itertools.combinations(range(clients), clients - faulty)
    )
    assert len(found) == clients - faulty
    assert diameter(between, found) == best


def test_the_smallest_diameter_of_a_hundred_clients_is_found() -> None:
    """C(100, 10) subsets are 17 million million."""
    matrix = np.random.default_rng(1).normal(size=(100, 20))
    matrix[::10] += 5.0
    found = smallest_diameter(distances(matrix), faulty=10)
    assert found == [row for row in range(100) if row % 10]
    with pytest.raises(ValueError, match="at most 20"):
        smallest_diameter(distances(matrix), faulty=21)


@settings(max_examples=40, deadline=None)
@given(st.integers(0, 10_000), st.integers(3, 12), st.sampled_from([1, 2, 3, 30]))
def test_the_geometric_median_holds_its_certificate_and_no_step_improves_it(
    seed: int, clients: int, dimension: int
) -> None:
    generator = np.random.default_rng(seed)
    matrix = generator.normal(size=(clients, dimension)) * generator.exponential(size=(clients, 1))
    found = geometric_median(gram(Held(matrix)))
    assert (found.weights >= 0.0).all()
    assert found.certificate <= 1e-6 * clients
    point = found.weights @ matrix

    def total(at: Matrix) -> float:
        return float(np.linalg.norm(matrix - at, axis=1).sum())

    for _ in range(20):
        assert total(point) <= total(point + generator.normal(size=dimension) * 1e-3) * (1 + 1e-9)


def test_a_geometric_median_at_a_client_is_that_client_exactly() -> None:
    found = geometric_median(gram(Held(X)))
    assert found.weights.tolist() == [1.0, 0, 0, 0, 0, 0, 0]
    assert found.certificate == 0.0


@pytest.mark.parametrize("share", [1e-2, 1e-3, 1e-4, 1e-5, 1e-6, -1e-4, 0.0])
def test_no_client_can_hold_the_geometric_median_up_by_lying_beside_it(share: float) -> None:
    """Three clients whose angle is just under or over 120 degrees, where the optimum leaves the first."""
    angle = math.pi / 3 * (1 - share)
    matrix = np.array([[0, 0], [math.cos(angle), math.sin(angle)], [math.cos(angle), -math.sin(angle)]])
    assert geometric_median(gram(Held(matrix))).certificate <= 3e-6


def test_no_client_can_hold_the_geometric_median_up_by_lying_at_the_mean() -> None:
    matrix = np.random.default_rng(3).exponential(size=(15, 2)) ** 3
    matrix[-1] = matrix[:-1].mean(axis=0)
    found = geometric_median(gram(Held(matrix)))
    assert found.certificate <= 1.5e-5
    assert float(np.linalg.norm(found.weights @ matrix - matrix[-1])) > 0.1


def test_a_geometric_median_that_does_not_settle_is_refused(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(centres, "_MOST_STEPS", 1)
    with pytest.raises(NotConverged, match="certificate"):
        geometric_median(gram(Held(np.random.default_rng(0).normal(size=(9, 3)))))


@settings(max_examples=60, deadline=None)
@given(st.integers(0, 10_000), st.integers(1, 9))
def test_the_mean_around_the_median_takes_the_nearest(seed: int, clients: int) -> None:
    generator = np.random.default_rng(seed)
    matrix, kept = generator.normal(size=(clients, 6)), int(generator.integers(1, clients + 1))
    ordered = np.sort(matrix, axis=0)  # so that of two as near the smaller comes first
    away = np.round(np.abs(ordered - np.median(ordered, axis=0)), 12)
    nearest = np.argsort(away, axis=0, kind="stable")[:kept]
    expected = np.take_along_axis(ordered, nearest, axis=0).mean(axis=0)
    assert mean_around_median(Held(matrix), kept=kept) == pytest.approx(expected, abs=1e-9)


def test_bulyan_chooses_one_by_one_among_those_left() -> None:
    matrix = np.random.default_rng(4).normal(size=(11, 3))
    matrix[[2, 7]] = 30.0
    between, left, chosen = distances(matrix), list(range(11)), []
    while len(chosen) < 7:
        scores = krum_scores(between[np.ix_(left, left)], faulty=2)
        chosen.append(left.pop(int(np.argmin(scores))))
    assert bulyan_selection(between, faulty=2) == sorted(chosen)


def test_divide_and_conquer_removes_hostile_clients_that_differ_from_each_other() -> None:
    matrix = np.random.default_rng(5).normal(size=(20, 50)) * 0.1
    matrix[16:] = np.random.default_rng(6).normal(size=(4, 50)) * 10
    assert divide_and_conquer(gram(Held(matrix)), removed=4) == list(range(16))


def test_fltrust_hears_only_clients_that_point_where_the_reference_does() -> None:
    reference = np.array([3.0, 4.0])
    matrix = np.array([[30.0, 40.0], [-3.0, -4.0], [0.0, 0.0], [-4.0, 3.0], [1.0, 0.0]])
    total, trust = trusted_sum(Held(matrix), reference)
    assert trust == pytest.approx([1.0, 0.0, 0.0, 0.0, 0.6])
    assert total == pytest.approx([3.0 + 0.6 * 5.0, 4.0], rel=1e-11)
    assert run("fltrust", matrix, reference=reference) == pytest.approx([6.0 / 1.6, 4.0 / 1.6], rel=1e-11)
    assert run("fltrust", -matrix[:1], reference=reference).tolist() == [0.0, 0.0]


@settings(max_examples=60, deadline=None)
@given(st.lists(st.floats(-1e300, 1e300), min_size=3, max_size=3))
def test_no_client_moves_fltrust_by_more_than_the_references_norm(row: list[float]) -> None:
    reference = np.array([1.0, 2.0, 2.0])
    total, _ = trusted_sum(Held(np.array([row])), reference)
    assert float(np.linalg.norm(total)) <= 3.0


@settings(max_examples=60, deadline=None)
@given(st.integers(0, 10_000), st.floats(1e-3, 1e3))
def test_no_client_moves_a_step_of_centered_clipping_by_more_than_the_radius(
    seed: int, radius: float
) -> None:
    matrix = np.random.default_rng(seed).normal(size=(5, 3)) * 100
    weights = centered_clipping(gram(Held(np.vstack([matrix, np.zeros(3)]))), radius=radius, iterations=1)
    assert np.linalg.norm(weights[:-1, None] * matrix, axis=1).max() * 5 <= radius
    assert weights.sum() == pytest.approx(1.0)


def test_buckets_hold_every_client_once_and_refuse_what_is_no_permutation() -> None:
    order = np.array([3, 0, 6, 2, 5, 1, 4])
    means, sums = buckets(order, size=2), buckets(order, size=2, sums=True)
    assert means.shape == (4, 7)
    assert means.sum(axis=1).tolist() == [1.0] * 4
    assert sums.sum(axis=0).tolist() == [1.0] * 7
    for bad, size in ((np.array([0, 0, 1]), 1), (order, 0), (order, 8)):
        with pytest.raises(ValueError, match="permutation"):
            buckets(bad, size=size)


def test_rules_on_lora_products_choose_as_on_the_dense_matrices() -> None:
    generator = np.random.default_rng(8)
    factors = [{"q": (generator.normal(size=(9, 2)), generator.normal(size=(2, 8)))} for _ in range(7)]
    dense = np.stack([(2.0 * b @ a).ravel() for one in factors for b, a in one.values()])
    between = squared_distances(product_gram(factors, [2.0] * 7))
    assert krum_order(between, faulty=2).tolist() == krum_order(distances(dense), faulty=2).tolist()


@pytest.mark.parametrize(
    ("rule", "clients", "faulty", "need"),
    [
        ("mean", 5, 1, "f = 0"),
        ("trimmed_mean", 4, 2, "n > 2f"),
        ("median", 4, 2, "n > 2f"),
        ("meamed", 4, 2, "n > 2f"),
        ("geometric_median", 2, 1, "n > 2f"),
        ("mda", 4, 2, "n > 2f"),
        ("dnc", 4, 2, "n > 2f"),
        ("krum", 6, 2, "n >= 2f \\+ 3"),
        ("krum", 3, 2, "n >= 2f \\+ 3"),  # accepted elsewhere: two of three then win
        ("multi_krum", 6, 2, "n >= 2f \\+ 3"),
        ("bulyan", 16, 4, "n >= 4f \\+ 3"),  # 20 were invited, 16 came
        ("centered_clipping", 20, 4, "f <= 0.15 n"),
        ("fltrust", 2, 2, "n > f"),
    ],
)
def test_a_rule_without_enough_clients_refuses_and_says_what_it_needs(
    rule: str, clients: int, faulty: int, need: str
) -> None:
    told = Setting(faulty=faulty, radius=1.0, reference=np.ones(3))
    with pytest.raises(TooFewClients, match=f"{rule} needs {need}.*n = {clients}.*f = {faulty}"):
        aggregate(Held(np.ones((clients, 3))), told, rule=rule, mixing=Mixing.NONE)


def test_preconditions_are_checked_after_clients_were_turned_away() -> None:
    matrix = np.random.default_rng(0).normal(size=(7, 3))
    told = Setting(faulty=2)
    aggregate(Held(matrix), told, rule="krum", mixing=Mixing.NONE)
    matrix[0, 0] = math.nan
    with pytest.raises(TooFewClients, match="n = 6"):
        aggregate(Held(matrix), told, rule="krum", mixing=Mixing.NONE)


@pytest.mark.parametrize(
    ("told", "rule", "mixing", "error"),
    [
        (Setting(faulty=2), "median", Mixing.BUCKETS, TooFewClients),  # 4 buckets of 2 among 7
        (Setting(faulty=4), "fltrust", Mixing.NEAREST, TooFewClients),
        (Setting(faulty=1), "median", Mixing.BUCKETS, SettingMissing),
        (Setting(faulty=1, bucket_size=0), "median", Mixing.BUCKETS, SettingMissing),
        (Setting(faulty=1, bucket_size=8), "median", Mixing.BUCKETS, SettingMissing),
        (Setting(faulty=1), "centered_clipping", Mixing.NONE, SettingMissing),
        (Setting(faulty=1, radius=1.0, iterations=0), "centered_clipping", Mixing.NONE, SettingMissing),
        (Setting(faulty=1), "fltrust", Mixing.NONE, SettingMissing),
        (Setting(faulty=2, trimmed=1), "trimmed_mean", Mixing.NONE, SettingMissing),
        (Setting(faulty=2, trimmed=4), "trimmed_mean", Mixing.NONE, TooFewClients),
        (Setting(faulty=2, removed=1), "dnc", Mixing.NONE, SettingMissing),
        (Setting(faulty=2, removed=7), "dnc", Mixing.NONE, TooFewClients),
        (Setting(faulty=2, chosen=6), "multi_krum", Mixing.NONE, SettingMissing),
        (Setting(faulty=2, chosen=0), "multi_krum", Mixing.NONE, SettingMissing),
        (Setting(faulty=1), "no_such_rule", Mixing.NONE, SettingMissing),
    ],
)
def test_a_setting_that_is_missing_or_wrong_is_refused(
    told: Setting, rule: str, mixing: Mixing, error: type[ValueError]
) -> None:
    with pytest.raises(error):
        aggregate(Held(X), told, rule=rule, mixing=mixing)


@pytest.mark.parametrize(
    "bad",
    [
        {"faulty": -1},
        {"faulty": 1.5},
        {"faulty": True},
        {"faulty": math.nan},
        {"faulty": 1, "trimmed": -1},
        {"faulty": 1, "radius": math.nan},
        {"faulty": 1, "radius": math.inf},
        {"faulty": 1, "radius": 0.0},
    ],
)
def test_settings_that_are_no_numbers_are_refused(bad: dict[str, Any]) -> None:
    with pytest.raises(SettingMissing):
        Setting(**bad)


def test_the_default_is_nearest_neighbours_then_the_trimmed_mean() -> None:
    assert (DEFAULT_MIXING, DEFAULT_RULE) == (Mixing.NEAREST, "trimmed_mean")
    outcome, _ = aggregate(Held(X), Setting(faulty=2))
    assert outcome.values == pytest.approx(HONEST, abs=1e-9)
    for trust in ("local", "central", "none"):
        require_allowed(DEFAULT_RULE, mixing=DEFAULT_MIXING, trust=trust)


def test_central_noise_allows_only_rules_with_a_useful_bound() -> None:
    allowed = {
        (rule, mixing)
        for rule, mixing in itertools.product(RULES, Mixing)
        if not _refused(rule, mixing, "central")
    }
    assert allowed == {
        ("mean", Mixing.NONE),
        ("trimmed_mean", Mixing.NONE),
        ("trimmed_mean", Mixing.BUCKETS),
        ("trimmed_mean", Mixing.NEAREST),
        ("centered_clipping", Mixing.NONE),
        ("fltrust", Mixing.NONE),
    }
    assert {rule for rule in RULES if not RULES[rule].central} == set(UnboundedRule)
    for rule in UnboundedRule:
        with pytest.raises(NoUsefulBound, match="trimmed sum"):
            require_allowed(rule, mixing=Mixing.NONE, trust="central")


def test_secure_aggregation_allows_only_the_mean_and_local_noise_everything() -> None:
    for rule, mixing in itertools.product(RULES, Mixing):
        require_allowed(rule, mixing=mixing, trust="local")
        require_allowed(rule, mixing=mixing, trust="none")
        assert _refused(rule, mixing, "distributed") == ((rule, mixing) != ("mean", Mixing.NONE))
    with pytest.raises(OnlyTheSum):
        require_allowed("krum", mixing=Mixing.NONE, trust="distributed")
    with pytest.raises(SettingMissing):
        require_allowed("no_such_rule", mixing=Mixing.NONE, trust="local")


def _refused(rule: str, mixing: Mixing, trust: Any) -> bool:
    try:
        require_allowed(rule, mixing=mixing, trust=trust)
    except (NoUsefulBound, OnlyTheSum):
        return True
    return False
