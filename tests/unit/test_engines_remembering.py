"""Nearest neighbours by what clients have sent so far: what it finds, and what it cannot be talked into."""

from __future__ import annotations

import numpy as np
import pytest
from numpy.typing import NDArray

from engines.aggregation.gram import gram, squared_distances
from engines.aggregation.mixing import FAR, nearest_neighbours, remembered
from engines.aggregation.rows import Held, Weights
from engines.aggregation.rules import Mixing, Setting, SettingMissing, merge

CLIENTS, FAULTY, DIMENSION, ROUNDS = 8, 2, 4000, 12
HOSTILE, HONEST = slice(0, FAULTY), slice(FAULTY, CLIENTS)

Matrix = NDArray[np.float64]


def grams(now: Matrix, past: Matrix) -> tuple[Weights, Weights]:
    return gram(Held(now)), gram(Held(past))


def flipped_rounds(*, signal: float = 6.0, seed: int = 1) -> list[Matrix]:
    """A step that honest clients share and two take backwards, under noise of length 63 in every update."""
    generator = np.random.default_rng(seed)
    step = generator.normal(size=DIMENSION)
    step *= signal / np.linalg.norm(step)
    signs = np.where(np.arange(CLIENTS) < FAULTY, -1.0, 1.0)[:, None]
    return [signs * step + generator.normal(size=(CLIENTS, DIMENSION)) for _round in range(ROUNDS)]


def given_to_hostile(weights: Weights) -> float:
    """What honest clients' neighbourhoods give to hostile ones, of the two in eight that blindness gives."""
    return float(weights[HONEST, HOSTILE].sum() / weights[HONEST].sum() / (FAULTY / CLIENTS))


def test_a_flip_that_noise_hides_in_each_round_is_seen_in_all_of_them_together() -> None:
    rounds = flipped_rounds()
    blind = np.mean(
        [
            given_to_hostile(nearest_neighbours(squared_distances(gram(Held(now))), faulty=FAULTY))
            for now in rounds
        ]
    )
    distances = remembered(*grams(rounds[-1], np.mean(rounds, axis=0)))
    assert blind > 0.6
    assert given_to_hostile(nearest_neighbours(distances, faulty=FAULTY)) == 0.0


def test_who_was_near_for_long_and_then_sends_something_far_is_nobodys_neighbour() -> None:
    generator = np.random.default_rng(2)
    present, before = generator.normal(size=(2, CLIENTS, DIMENSION))
    present[HOSTILE] *= 4.0
    now, past = grams(present, present + 2000**0.5 * before)
    by_past_alone = nearest_neighbours(squared_distances(past), faulty=FAULTY)
    assert given_to_hostile(by_past_alone) > 0.5
    assert given_to_hostile(nearest_neighbours(remembered(now, past), faulty=FAULTY)) == 0.0


def test_neighbourhoods_are_no_wider_than_proved() -> None:
    """Of any n - f clients H, also the honest ones: the present distances to the chosen neighbours add up to
    at most those to H, and FAR times those of the past to H by the ratio of both medians."""
    generator = np.random.default_rng(3)
    pairs = np.triu_indices(CLIENTS, 1)
    for _case in range(200):
        scales = generator.lognormal(0.0, 1.5, size=(2, CLIENTS, 1))
        now, past = (generator.normal(size=(CLIENTS, 5)) * scale for scale in scales)
        products = grams(now, past)
        near, before = map(squared_distances, products)
        chosen = nearest_neighbours(remembered(*products), faulty=FAULTY) > 0.0
        ratio = np.median(near[pairs]) / np.median(before[pairs])
        others = generator.choice(CLIENTS, CLIENTS - FAULTY, replace=False)
        for client in range(CLIENTS):
            row = np.union1d(others, [client])[: CLIENTS - FAULTY] if client not in others else others
            bound = near[client, row].sum() + FAR * ratio * before[client, row].sum()
            assert near[client, chosen[client]].sum() <= bound * (1 + 1e-12)


def test_in_a_first_round_neighbours_are_those_of_the_round() -> None:
    now = np.random.default_rng(4).normal(size=(CLIENTS, 30))
    products = gram(Held(now))
    np.testing.assert_array_equal(
        nearest_neighbours(remembered(products, products), faulty=FAULTY),
        nearest_neighbours(squared_distances(products), faulty=FAULTY),
    )


@pytest.mark.parametrize("clients", [1, 2, 5])
def test_copies_of_one_update_are_all_as_near(clients: int) -> None:
    same = np.ones((clients, 3))
    found = remembered(*grams(same, same))
    np.testing.assert_array_equal(found, np.zeros((clients, clients)))


def test_a_memory_without_what_was_sent_is_refused() -> None:
    rows, setting = Held(np.random.default_rng(5).normal(size=(CLIENTS, 3))), Setting(faulty=2, memory=0.9)
    for past in (None, np.zeros((CLIENTS - 1, CLIENTS - 1))):
        with pytest.raises(SettingMissing, match="so far"):
            merge(rows, setting, rule="trimmed_mean", mixing=Mixing.NEAREST, past=past)


@pytest.mark.parametrize("memory", [0.0, -0.5, 1.5, float("nan")])
def test_a_memory_is_a_share(memory: float) -> None:
    with pytest.raises(SettingMissing, match="memory"):
        Setting(faulty=0, memory=memory)
