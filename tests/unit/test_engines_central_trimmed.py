"""The noised trimmed sum: what one client can move, who counts as the zero vector, and what is refused."""

from __future__ import annotations

from typing import Any

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from engines.aggregation.coordinates import trimmed_sum
from engines.aggregation.rows import Streamed
from engines.privacy.adaptive_clip import AdaptiveClip
from engines.privacy.central import CentralPlan, CentralSum, noised
from engines.privacy.central_trimmed import CentralTrimmedSum, Gridded
from engines.privacy.noise import NoiseStream

SHAPES = {"lora.a": (4, 5), "head": (10,)}
SIZE, CLIENTS = 30, 7
KEY = bytes(range(32))
Matrix = np.ndarray[Any, Any]


class Rows:
    """Updates in memory, as a source."""

    dtype = np.dtype(np.float32)

    def __init__(self, matrix: Matrix) -> None:
        self.matrix = matrix
        self.clients, self.dimension = matrix.shape

    def read(self, client: int, start: int, stop: int, out: Matrix) -> None:
        out[:] = self.matrix[client, start:stop]

    def cut(self, stop: int) -> int:
        return stop


def plan_of(**changes: Any) -> CentralPlan:
    usual: dict[str, Any] = {
        "clip_norm": 1.0,
        "noise_multiplier": 1.0,
        "divisor": 1.0,
        "most_updates": CLIENTS,
    }
    return CentralPlan(**(usual | changes))


def steps_of(matrix: Matrix, *, trimmed: int = 1) -> Matrix:
    """The trimmed sum before its noise, in parameter units."""
    plan = plan_of()
    return trimmed_sum(Streamed(Gridded(Rows(matrix), plan)), trimmed=trimmed) * plan.grid


def released(matrix: Matrix, *, trimmed: int = 1, **changes: Any) -> Matrix:
    total = CentralTrimmedSum(SHAPES, plan_of(**changes), updates=Rows(matrix), trimmed=trimmed)
    update = total.release(NoiseStream.from_key(KEY)).update
    return np.concatenate([update[name].reshape(-1).numpy() for name in SHAPES])


def sample(seed: int, *, clients: int = CLIENTS, size: float = 1.0) -> Matrix:
    return (size * np.random.default_rng(seed).normal(size=(clients, SIZE))).astype(np.float32)


@settings(deadline=None, max_examples=60)
@given(st.integers(0, 10_000), st.integers(0, CLIENTS - 1), st.sampled_from([0.01, 1.0, 1e6]))
def test_a_client_that_is_zeroed_out_moves_the_trimmed_sum_by_at_most_the_clip_norm(
    seed: int, client: int, size: float
) -> None:
    matrix = sample(seed)
    matrix[client] *= size
    without = matrix.copy()
    without[client] = 0.0
    for trimmed in (0, 1, 3):
        moved = steps_of(matrix, trimmed=trimmed) - steps_of(without, trimmed=trimmed)
        assert np.linalg.norm(moved) <= 1.0


def test_one_that_is_absent_or_not_finite_is_the_zero_vector() -> None:
    matrix = sample(1, clients=CLIENTS - 2)
    zeros = np.vstack([matrix, np.zeros((2, SIZE), dtype=np.float32)])
    broken = np.vstack([matrix, np.full((2, SIZE), np.nan, dtype=np.float32)])
    broken[-1] = np.inf
    assert np.array_equal(steps_of(matrix), steps_of(zeros))
    assert np.array_equal(steps_of(broken), steps_of(zeros))


def test_one_hostile_client_does_not_move_the_trimmed_sum_as_it_moves_the_sum() -> None:
    honest = 0.1 + 0.001 * sample(2)
    hostile = honest.copy()
    hostile[0] = -1e6
    moves = [
        float(np.abs(steps_of(hostile, trimmed=trimmed) - steps_of(honest, trimmed=trimmed)).max())
        for trimmed in (0, 1)
    ]
    assert moves[1] < 0.1 * moves[0]


def test_the_noise_is_that_of_the_plain_sum_and_nothing_is_trimmed_with_b_zero() -> None:
    matrix = sample(3)
    plain = CentralSum(SHAPES, plan_of())
    for row in matrix:
        plain.add({"lora.a": torch.from_numpy(row[:20].reshape(4, 5)), "head": torch.from_numpy(row[20:])})
    theirs = plain.release(NoiseStream.from_key(KEY)).update
    flat = np.concatenate([theirs[name].reshape(-1).numpy() for name in SHAPES])
    assert np.array_equal(released(matrix, trimmed=0), flat)
    alone = noised(torch.zeros(SIZE, dtype=torch.int64), plan_of(), SHAPES, NoiseStream.from_key(KEY))
    noise = np.concatenate([alone[name].reshape(-1).numpy() for name in SHAPES])
    assert released(matrix, trimmed=2) - noise == pytest.approx(steps_of(matrix, trimmed=2), abs=1e-6)


def test_a_trimmed_sum_is_released_once() -> None:
    total = CentralTrimmedSum(SHAPES, plan_of(), updates=Rows(sample(4)), trimmed=1)
    total.release(NoiseStream.from_key(KEY))
    with pytest.raises(RuntimeError):
        total.release(NoiseStream.from_key(KEY))


def test_a_round_without_updates_is_noise_alone() -> None:
    assert np.abs(released(np.zeros((0, SIZE), dtype=np.float32))).min() > 0.0


@pytest.mark.parametrize(
    ("clients", "trimmed", "changes"),
    [
        (CLIENTS + 1, 1, {}),
        (CLIENTS, 4, {}),
        (CLIENTS, -1, {}),
        (CLIENTS, 1, {"largest_weight": 2.0}),
        (CLIENTS, 1, {"adaptive": AdaptiveClip(bit_std=2.5, expected_cohort=50.0)}),
    ],
)
def test_what_the_proof_does_not_cover_is_refused(
    clients: int, trimmed: int, changes: dict[str, Any]
) -> None:
    with pytest.raises(ValueError, match=r"."):
        released(sample(5, clients=clients), trimmed=trimmed, **changes)


def test_what_binds_the_stream_names_the_rule_and_how_much_it_trims() -> None:
    named = [
        CentralTrimmedSum(SHAPES, plan_of(), updates=Rows(sample(6)), trimmed=trimmed).parameters()
        for trimmed in (1, 2)
    ]
    assert [one["trimmed"] for one in named] == [1, 2]
    assert named[0]["rule"] == "trimmed_sum/1"
