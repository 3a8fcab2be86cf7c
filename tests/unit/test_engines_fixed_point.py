"""Sums of fixed-point numbers, as they come out of masks: how far off at most, and when they wrap around."""

import math

import numpy as np
from hypothesis import given, settings
from hypothesis import strategies as st
from numpy.typing import NDArray

from engines.aggregation.linear import plain_sum
from engines.aggregation.rows import Held

Steps = NDArray[np.int64]


def fewest_bits(clients: int, clip: float, fraction_bits: int) -> int:
    """Width m of the modulus with n * clip * 2**b < 2**(m - 1)."""
    return math.floor(math.log2(clients * clip * 2.0**fraction_bits)) + 2


def unmasked(masked: Steps, bits: int) -> Steps:
    """What is read from a sum modulo 2**bits, as a signed number."""
    half = np.int64(1) << (bits - 1)
    return (masked + half) % (np.int64(1) << bits) - half


def masked_sum(values: NDArray[np.float64], *, fraction_bits: int, bits: int, seed: int) -> Steps:
    """Round to the grid, hide each client's row behind a mask modulo 2**bits, add, and take the masks off."""
    steps = np.rint(values * 2.0**fraction_bits).astype(np.int64)
    masks = np.random.default_rng(seed).integers(0, 1 << bits, size=steps.shape, dtype=np.int64)
    hidden = (steps + masks) % (np.int64(1) << bits)
    total = plain_sum(Held(hidden)) - plain_sum(Held(masks))
    return unmasked(total % (np.int64(1) << bits), bits)


@settings(max_examples=60, deadline=None)
@given(st.integers(1, 200), st.floats(1.0, 100.0), st.integers(4, 24), st.integers(0, 2**32 - 1))
def test_a_fixed_point_sum_is_off_by_half_a_step_a_client_at_most(
    clients: int, clip: float, fraction_bits: int, seed: int
) -> None:
    """|error| <= n * 2**-(b + 1) in every coordinate, and nothing wraps: n * clip * 2**b < 2**(m - 1)."""
    values = np.random.default_rng(seed).uniform(-clip, clip, size=(clients, 5))
    values[:, 0] = clip  # everybody at the bound
    bits = fewest_bits(clients, clip, fraction_bits)
    total = masked_sum(values, fraction_bits=fraction_bits, bits=bits, seed=seed)
    exact = [math.fsum(column) for column in values.T]
    error = np.abs(total * 2.0**-fraction_bits - exact)
    assert (error <= clients * 2.0 ** -(fraction_bits + 1) + 1e-9 * clients * clip).all()


def test_one_bit_less_wraps_around_where_everybody_is_at_the_bound() -> None:
    values = np.full((10, 3), 7.9)
    bits = fewest_bits(10, 7.9, 16)
    kept = masked_sum(values, fraction_bits=16, bits=bits, seed=1)
    wrapped = masked_sum(values, fraction_bits=16, bits=bits - 1, seed=1)
    assert (np.abs(kept * 2.0**-16 - 79.0) <= 10 * 2.0**-17 + 1e-9).all()
    assert (wrapped < 0).all()
