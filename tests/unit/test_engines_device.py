"""Aggregation through torch's device loops, on the one device that every machine has."""

from __future__ import annotations

from collections.abc import Callable, Iterator

import numpy as np
import pytest
from numpy.typing import NDArray

from engines.aggregation import device, kernels
from engines.aggregation.coordinates import median, trimmed_mean, trimmed_sum
from engines.aggregation.gate import row_norms
from engines.aggregation.gram import gram, squared_distances
from engines.aggregation.linear import weighted_mean
from engines.aggregation.mixing import nearest_neighbours
from engines.aggregation.rows import Held, Mixed, Rows

Matrix = NDArray[np.float64]


@pytest.fixture
def on_torch() -> Iterator[None]:
    """The loops of a GPU, run by torch's processor."""
    device._Chosen.device = device.Device("cpu")
    yield
    device.choose("cpu")
    assert device.chosen() is None


def updates(clients: int = 11, dimension: int = 70_001) -> NDArray[np.float32]:
    generator = np.random.default_rng(5)
    return (1e3 * generator.standard_normal((clients, dimension))).astype(np.float32)


def both(rule: Callable[[Rows], Matrix], rows: Rows, request: pytest.FixtureRequest) -> tuple[Matrix, Matrix]:
    here = rule(rows)
    request.getfixturevalue("on_torch")
    return here, rule(rows)


def default_rule(rows: Rows) -> Matrix:
    """Nearest-neighbour mixing, then the trimmed mean."""
    near = nearest_neighbours(squared_distances(gram(rows)), faulty=3)
    return trimmed_mean(Mixed(rows, near), trimmed=3)


@pytest.mark.parametrize(
    "rule", [default_rule, median, lambda rows: trimmed_mean(rows, trimmed=3), gram, row_norms]
)
def test_a_rule_comes_to_the_same_on_a_device(
    rule: Callable[[Rows], Matrix], request: pytest.FixtureRequest
) -> None:
    here, there = both(rule, Held(updates()), request)
    assert here.dtype == there.dtype
    np.testing.assert_allclose(there, here, rtol=1e-6, atol=1e-9 * float(np.abs(here).max()))


@pytest.mark.usefixtures("on_torch")
def test_what_is_sorted_or_whole_is_the_same_to_the_last_bit() -> None:
    values = updates(clients=40, dimension=900)
    assert (kernels.sorted_rows(values, 3, 30) == np.sort(values, axis=0)[3:30]).all()
    steps = np.random.default_rng(1).integers(-(2**55), 2**55, size=(7, 900))
    assert (trimmed_sum(Held(steps), trimmed=1) == np.sort(steps, axis=0)[1:6].sum(axis=0)).all()
    total = np.zeros(900, dtype=np.int64)
    kernels.add_rows(total, steps, np.array([1, -1, 1, 0, 1, 2, 1]))
    assert (total == (steps * np.array([1, -1, 1, 0, 1, 2, 1])[:, None]).sum(axis=0)).all()


@pytest.mark.usefixtures("on_torch")
def test_a_row_of_weight_zero_is_not_looked_at() -> None:
    values = updates(clients=3, dimension=100)
    values[1] = np.nan
    mean = weighted_mean(Held(values), np.array([1.0, 0.0, 3.0]))
    wide = values.astype(np.float64)
    np.testing.assert_allclose(mean, (wide[0] + 3.0 * wide[2]) / 4.0, rtol=1e-6)


def test_a_device_that_is_not_there_is_refused_at_the_start() -> None:
    with pytest.raises((RuntimeError, AssertionError)):
        device.choose("cuda:63")
    assert device.chosen() is None
