"""Delta of each robust rule: never exceeded by random or adversarial data; and the rules that have none."""

import dataclasses
import math
from collections.abc import Callable

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from numpy.typing import NDArray

from engines.aggregation import coordinates, selection, undivided
from engines.aggregation.centres import geometric_median
from engines.aggregation.gram import gram, squared_distances
from engines.aggregation.rows import Held, Scaled
from engines.privacy.loss_library import Relation
from engines.privacy.sensitivity import (
    BoundedRule,
    BucketedTrimmedSum,
    CenteredClipping,
    NearestNeighbourTrimmedSum,
    NoUsefulBound,
    Sum,
    TrimmedSum,
    TrustedReference,
    UnboundedRule,
    projected_sensitivity,
    require_untruncated,
    require_useful_bound,
    with_rounding,
)

Vectors = NDArray[np.float64]
C = 2.0  # not 1, so that a bound in the square of C would show
CENTRE = np.array([0.5, -1.0])
REFERENCE = np.array([0.6, 0.8]) * 1.5
ORDER = np.array([3, 0, 6, 2, 5, 1, 4])
CLIENTS = 7
ZERO_OUT, REPLACE_ONE = Relation.ZERO_OUT, Relation.REPLACE_ONE


def clipped(vectors: Vectors, norm: float) -> Vectors:
    lengths = np.linalg.norm(vectors, axis=-1, keepdims=True)
    output: Vectors = vectors * np.minimum(1.0, norm / np.maximum(lengths, 1e-300))
    return output


def centered_clipping(
    vectors: Vectors, *, centre: Vectors, iterations: int = 3, absent: int | None = None
) -> Vectors:
    """n times the last centre; the term of client `absent` is zero."""
    present = np.delete(vectors, absent, axis=0) if absent is not None else vectors
    return undivided.centered_clipping_sum(
        Held(present), centre=centre, radius=0.7, iterations=iterations, clients=len(vectors)
    )


@dataclasses.dataclass(frozen=True)
class Case:
    rule: BoundedRule
    apply: Callable[[Vectors, int | None], Vectors]
    """The unnormalised output for (n, 2) clipped vectors; the index names an absent client."""
    zero_out: float
    replace_one: float
    reached: float = 0.95
    """Share of either Delta that the adversarial search must find, so that it is known to bite."""

    def delta(self, relation: Relation) -> float:
        return self.zero_out if relation is ZERO_OUT else self.replace_one


CASES = {
    "sum": Case(Sum(clip_norm=C), lambda x, _: undivided.plain_sum(Held(x)), C, 2 * C),
    "trimmed_sum": Case(
        TrimmedSum(clip_norm=C, clients=CLIENTS, trimmed=2),
        lambda x, _: undivided.trimmed_sum(Held(x), trimmed=2),
        C,
        2 * C,
    ),
    "bucketed": Case(
        BucketedTrimmedSum(clip_norm=C, clients=CLIENTS, bucket_size=2, trimmed=1),
        lambda x, _: undivided.bucketed_trimmed_sum(Held(x), order=ORDER, bucket_size=2, trimmed=1),
        C,
        2 * C,
    ),
    "nearest_neighbours": Case(
        NearestNeighbourTrimmedSum(clip_norm=C, clients=CLIENTS, faulty=2, trimmed=1),
        lambda x, _: undivided.nearest_neighbour_trimmed_sum(Held(x), faulty=2, trimmed=1),
        2 * C * (1 + 6 / 5),
        2 * C * (1 + 6 / 5),
        reached=0.3,  # the bound is known to be loose: all means would have to move the same way
    ),
    "centered_absent_terms": Case(
        CenteredClipping(radius=0.7, iterations=3, absent_term_is_zero=True),
        lambda x, absent: centered_clipping(x, centre=CENTRE, absent=absent),
        3 * 0.7,
        2 * 3 * 0.7,
        reached=0.9,
    ),
    "centered_absent_vectors": Case(
        CenteredClipping(radius=0.7, iterations=3, absent_term_is_zero=False),
        lambda x, _: centered_clipping(x, centre=CENTRE),
        2 * 3 * 0.7,
        2 * 3 * 0.7,
        reached=0.9,
    ),
    "trusted_reference": Case(
        TrustedReference(reference_norm=1.5),
        lambda x, _: undivided.trusted_sum(Held(x), REFERENCE)[0],
        1.5,
        3.0,
        reached=0.49,  # all terms lie on a circle of diameter |g0|, so replacing costs half of the bound
    ),
}
ALL = [(name, relation) for name in CASES for relation in (ZERO_OUT, REPLACE_ONE)]


def moved(case: Case, vectors: Vectors, other: Vectors, at: int, relation: Relation) -> float:
    """Return how far the output moves when client `at` is zeroed out, or replaced by `other`."""
    neighbour = vectors.copy()
    neighbour[at] = other if relation is REPLACE_ONE else 0.0
    absent = at if relation is ZERO_OUT else None
    return float(np.linalg.norm(case.apply(vectors, None) - case.apply(neighbour, absent)))


coordinate = st.floats(-3.0, 3.0) | st.sampled_from([0.0, C, -C])
points = st.lists(st.lists(coordinate, min_size=2, max_size=2), min_size=CLIENTS + 1, max_size=CLIENTS + 1)


@pytest.mark.parametrize(("name", "relation"), ALL)
@settings(max_examples=60, deadline=None)
@given(points, st.integers(0, CLIENTS - 1))
def test_no_client_moves_a_rule_by_more_than_its_delta(
    name: str, relation: Relation, raw: list[list[float]], at: int
) -> None:
    vectors = clipped(np.array(raw), C)
    case = CASES[name]
    assert moved(case, vectors[:-1], vectors[-1], at, relation) <= case.rule.sensitivity(relation) * (
        1 + 1e-12
    )


@pytest.mark.parametrize(("name", "relation"), ALL)
def test_an_adversary_that_searches_comes_near_to_delta_but_not_over_it(
    name: str, relation: Relation
) -> None:
    case, generator, worst = CASES[name], np.random.default_rng(11), 0.0
    for _ in range(12):
        vectors = clipped(generator.normal(scale=3.0, size=(CLIENTS + 1, 2)), C)
        best = moved(case, vectors[:-1], vectors[-1], 0, relation)
        for step in range(150):
            change = generator.normal(scale=2.0 * 0.97**step, size=vectors.shape)
            tried = clipped(vectors + change * (generator.random((CLIENTS + 1, 1)) < 0.4), C)
            effect = moved(case, tried[:-1], tried[-1], 0, relation)
            if effect > best:
                vectors, best = tried, effect
        worst = max(worst, best)
    delta = case.rule.sensitivity(relation)
    assert case.reached * delta <= worst <= delta * (1 + 1e-12)


@pytest.mark.parametrize(("name", "relation"), ALL)
def test_delta_is_that_of_the_table(name: str, relation: Relation) -> None:
    case = CASES[name]
    assert case.rule.sensitivity(relation) == pytest.approx(case.delta(relation), rel=1e-14)
    assert case.rule.sensitivity(relation) >= case.delta(relation) * (1 - 1e-16)


def test_centered_clippings_smaller_delta_is_wrong_where_an_absent_client_is_the_zero_vector() -> None:
    # The centre is far from zero: the zero vector pulls one way with tau, the client pulled the other.
    vectors = np.zeros((CLIENTS, 2))
    vectors[0] = [C, 0.0]
    centre = np.array([1.0, 0.0])
    outputs = [
        centered_clipping(data, centre=centre, iterations=1) for data in (vectors, np.zeros((CLIENTS, 2)))
    ]
    effect = float(np.linalg.norm(outputs[0] - outputs[1]))
    assert effect == pytest.approx(2 * 0.7)
    assert effect > CenteredClipping(radius=0.7, iterations=1, absent_term_is_zero=True).sensitivity(ZERO_OUT)


def test_nearest_neighbours_move_by_more_than_the_trimmed_sum_alone() -> None:
    # One client decides which of two camps the middle ones average with.
    case, generator = CASES["nearest_neighbours"], np.random.default_rng(4)
    worst = max(
        moved(case, vectors[:-1], vectors[-1], 0, REPLACE_ONE)
        for vectors in (
            clipped(generator.choice([-C, 0.0, C], size=(CLIENTS + 1, 2)), C) for _ in range(2000)
        )
    )
    assert worst > 2 * C


def clusters(clients: int, *, last: float) -> Vectors:
    """Two equal camps at opposite ends of the ball, and one client that decides."""
    camp = (clients - 1) // 2
    direction = np.array([0.6, 0.8]) * C
    return np.array([direction] * camp + [-direction] * camp + [direction * last])


def distances(vectors: Vectors) -> Vectors:
    return squared_distances(gram(Held(vectors)))


def krum(vectors: Vectors, *, faulty: int) -> Vectors:
    output: Vectors = vectors[selection.krum_order(distances(vectors), faulty=faulty)[0]]
    return output


def multi_krum(vectors: Vectors) -> Vectors:
    order = selection.krum_order(distances(vectors), faulty=(len(vectors) - 3) // 2)
    return mean_of(vectors, order[: (len(vectors) - 1) // 2].tolist())


def bulyan(vectors: Vectors) -> Vectors:
    faulty = (len(vectors) - 3) // 4
    chosen = selection.bulyan_selection(distances(vectors), faulty=faulty)
    left = Scaled(Held(vectors), chosen, np.ones(len(chosen)))
    return coordinates.mean_around_median(left, kept=len(chosen) - 2 * faulty)


def mean_of(vectors: Vectors, chosen: list[int]) -> Vectors:
    output: Vectors = vectors[chosen].mean(axis=0)
    return output


def half(vectors: Vectors) -> int:
    return (len(vectors) - 1) // 2


UNBOUNDED: dict[UnboundedRule, tuple[list[int], Callable[[Vectors], Vectors]]] = {
    UnboundedRule.MEDIAN: ([11, 101], lambda x: coordinates.median(Held(x))),
    UnboundedRule.GEOMETRIC_MEDIAN: ([11, 41], lambda x: geometric_median(gram(Held(x))).weights @ x),
    UnboundedRule.KRUM: ([11, 101], lambda x: krum(x, faulty=(len(x) - 3) // 2)),
    UnboundedRule.MULTI_KRUM: ([11, 101], multi_krum),
    UnboundedRule.BULYAN: ([11, 43], bulyan),
    UnboundedRule.MDA: (
        [11, 31],
        lambda x: mean_of(x, selection.smallest_diameter(distances(x), faulty=half(x))),
    ),
    UnboundedRule.MEAMED: (
        [11, 101],
        lambda x: coordinates.mean_around_median(Held(x), kept=len(x) - half(x)),
    ),
    UnboundedRule.DNC: (
        [11, 101],
        lambda x: mean_of(x, selection.divide_and_conquer(gram(Held(x)), removed=half(x))),
    ),
}


def flips(apply: Callable[[Vectors], Vectors], clients: int, *, trial: int) -> float:
    """Return how far an output moves when the client between the camps changes sides; later trials jitter."""
    jitter = np.random.default_rng(trial).normal(scale=0.1, size=(clients, 2)) * (trial > 0)
    outputs = [apply(clipped(clusters(clients, last=last) + jitter, C)) for last in (1.0, -1.0)]
    return float(np.linalg.norm(outputs[0] - outputs[1]))


@pytest.mark.parametrize("rule", UnboundedRule)
def test_a_refused_rule_is_moved_by_more_than_the_clip_norm_at_any_number_of_clients(
    rule: UnboundedRule,
) -> None:
    sizes, apply = UNBOUNDED[rule]
    for clients in sizes:
        assert any(flips(apply, clients, trial=trial) > 1.2 * C for trial in range(60))


@pytest.mark.parametrize("clients", [11, 101])
def test_the_trimmed_mean_moves_less_the_more_clients_there_are_on_the_same_data(clients: int) -> None:
    kept = clients - 2 * (clients // 4)

    def trimmed_mean(vectors: Vectors) -> Vectors:
        return undivided.trimmed_sum(Held(vectors), trimmed=clients // 4) / kept

    assert max(flips(trimmed_mean, clients, trial=trial) for trial in range(20)) <= 2 * C / kept + 1e-12


@pytest.mark.parametrize("rule", ["krum", "multi_krum", "bulyan", "mda", "dnc"])
def test_a_rule_that_selects_is_moved_by_more_than_the_clip_norm_even_by_zeroing_one_client_out(
    rule: str,
) -> None:
    _, apply = UNBOUNDED[UnboundedRule(rule)]
    generator, worst = np.random.default_rng(3), 0.0
    for _ in range(300):
        vectors = clipped(clusters(11, last=1.0) + generator.normal(scale=0.4, size=(11, 2)), C)
        neighbour = vectors.copy()
        neighbour[int(generator.integers(11))] = 0.0
        worst = max(worst, float(np.linalg.norm(apply(vectors) - apply(neighbour))))
    assert worst > C


def test_the_two_camps_find_a_rules_bound_when_it_has_one() -> None:
    outputs = [undivided.plain_sum(Held(clusters(11, last=last))) for last in (1.0, -1.0)]
    assert float(np.linalg.norm(outputs[0] - outputs[1])) == pytest.approx(
        Sum(clip_norm=C).sensitivity(REPLACE_ONE)
    )


@pytest.mark.parametrize("rule", UnboundedRule)
def test_a_rule_without_a_useful_bound_is_refused_naming_the_trimmed_sum(rule: UnboundedRule) -> None:
    with pytest.raises(NoUsefulBound, match=f"{rule}.*trimmed sum"):
        require_useful_bound(rule.value)


def test_the_allowed_rules_names_are_not_refused() -> None:
    for name in ("sum", "trimmed_sum", "centered_clipping", "fltrust"):
        require_useful_bound(name)


@pytest.mark.parametrize("name", sorted(set(CASES) - {"sum"}))
def test_add_remove_is_refused_for_every_robust_rule(name: str) -> None:
    with pytest.raises(NoUsefulBound, match="fixed public number"):
        CASES[name].rule.sensitivity(Relation.ADD_REMOVE)
    assert CASES["sum"].rule.sensitivity(Relation.ADD_REMOVE) == C


@pytest.mark.parametrize("name", sorted(CASES))
def test_a_robust_rule_over_a_truncating_cap_is_refused(name: str) -> None:
    rule = CASES[name].rule
    require_untruncated(rule, truncating_cap=False)
    if name == "sum":
        require_untruncated(rule, truncating_cap=True)
    else:
        with pytest.raises(NoUsefulBound, match="cap"):
            require_untruncated(rule, truncating_cap=True)


def test_a_projected_output_moves_by_at_most_twice_the_clip_norm() -> None:
    assert projected_sensitivity(clip_norm=C) == 2 * C
    outputs = [clipped(krum(clusters(11, last=last), faulty=4), C) for last in (1.0, -1.0)]
    assert float(np.linalg.norm(outputs[0] - outputs[1])) == pytest.approx(2 * C)


@settings(max_examples=100, deadline=None)
@given(st.lists(coordinate, min_size=4, max_size=4), st.lists(coordinate, min_size=4, max_size=4))
def test_rounding_two_outputs_to_the_grid_adds_no_more_than_is_charged(
    one: list[float], other: list[float]
) -> None:
    grid = 0.25
    pair = np.array([one, other])
    before = float(np.linalg.norm(pair[0] - pair[1]))
    after = float(np.linalg.norm(grid * (np.rint(pair[0] / grid) - np.rint(pair[1] / grid))))
    assert after <= with_rounding(before, dimension=4, grid=grid)


@pytest.mark.parametrize(
    "build",
    [
        lambda: Sum(clip_norm=0.0),
        lambda: Sum(clip_norm=math.nan),
        lambda: TrimmedSum(clip_norm=1.0, clients=4, trimmed=2),
        lambda: TrimmedSum(clip_norm=1.0, clients=4, trimmed=-1),
        lambda: BucketedTrimmedSum(clip_norm=1.0, clients=8, bucket_size=0, trimmed=0),
        lambda: BucketedTrimmedSum(clip_norm=1.0, clients=8, bucket_size=4, trimmed=1),
        lambda: NearestNeighbourTrimmedSum(clip_norm=1.0, clients=8, faulty=8, trimmed=1),
        lambda: NearestNeighbourTrimmedSum(clip_norm=1.0, clients=8, faulty=2, trimmed=4),
        lambda: CenteredClipping(radius=1.0, iterations=0, absent_term_is_zero=True),
        lambda: CenteredClipping(radius=math.inf, iterations=1, absent_term_is_zero=True),
        lambda: TrustedReference(reference_norm=0.0),
        lambda: with_rounding(1.0, dimension=0, grid=1.0),
        lambda: with_rounding(1.0, dimension=1, grid=math.nan),
    ],
)
def test_shapes_that_make_no_rule_are_refused(build: Callable[[], object]) -> None:
    with pytest.raises(ValueError, match=r"bound|trim|bucket|mean|iterations|rounding"):
        build()
