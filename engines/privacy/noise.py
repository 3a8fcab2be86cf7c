"""Gaussian noise on a grid, from a cryptographic stream, with a bound on its deviation from the ideal.

Everything here works on integers or on values whose error is bounded and repaired, because a sloppy
Gaussian voids the privacy claim (Mironov 2012; Jin et al. 2022, arXiv:2112.05307). The bound
is derived in docs/privacy-proof.md. No seed may come from a run's public parameters.
"""

import decimal
import math
import os
from typing import NoReturn

import numpy as np
import torch
from cryptography.hazmat.primitives.ciphers import Cipher
from cryptography.hazmat.primitives.ciphers.algorithms import AES
from cryptography.hazmat.primitives.ciphers.modes import CTR
from numpy.typing import NDArray
from torch import Tensor

SAMPLER = "box-muller-256/1"
"""Name and version of the construction below; part of what a certificate and a round's stream name."""

MIN_STD_OVER_GRID = 2.0**24
MAX_STD_OVER_GRID = 2.0**32
_LARGEST_NORMAL = 13.38
"""No draw exceeds sqrt(2 * 129 * ln 2) = 13.3729: the smallest radius uniform is 2**-129."""

_DOUBT = 2.0**-41
"""Half width, in standard deviations, of the zone around a rounding boundary that is recomputed exactly.

Four times the float64 error of the fast path, which docs/privacy-proof.md bounds by 2**-43.
"""
_DIGITS = 90
_PI = decimal.Decimal(
    "3.14159265358979323846264338327950288419716939937510582097494459230781640628620899862803482534211706798"
)


class NoiseStream:
    """A stream of uniform bytes: AES-256 in counter mode. One stream belongs to one process and one use.

    A stream is never copied, pickled or carried over a fork: two holders would draw the same noise twice.
    """

    def __init__(self, key: bytes) -> None:
        if len(key) != 32:
            raise ValueError(f"a noise key has 32 bytes, not {len(key)}")
        self._keystream = Cipher(AES(key), CTR(bytes(16))).encryptor()
        self._process = os.getpid()

    @classmethod
    def fresh(cls) -> "NoiseStream":
        """Open a stream that nobody can repeat: its key comes from the operating system and is forgotten."""
        return cls(os.urandom(32))

    @classmethod
    def from_key(cls, key: bytes) -> "NoiseStream":
        """Open the stream of a secret 32-byte key, for example one derived from a round's secret.

        Raises:
            ValueError: the key is not 32 bytes long.
        """
        return cls(key)

    def take(self, count: int) -> bytes:
        """Return the next `count` bytes of the stream; no byte is ever returned twice.

        Raises:
            ValueError: `count` is negative.
            RuntimeError: the process forked since the stream was opened.
        """
        if count < 0:
            raise ValueError("a stream gives a count of bytes that is at least 0")
        if os.getpid() != self._process:
            raise RuntimeError("a noise stream cannot be used after a fork: open a fresh one")
        return self._keystream.update(bytes(count))

    def words(self, count: int) -> NDArray[np.uint64]:
        """Return the next `count` uniform 64-bit words, the same on machines of either byte order."""
        return np.frombuffer(self.take(8 * count), dtype="<u8").astype(np.uint64, copy=False)

    def __copy__(self) -> NoReturn:
        raise TypeError("a noise stream is not copied: its noise would be drawn twice")

    def __deepcopy__(self, memo: object) -> NoReturn:
        self.__copy__()

    def __reduce__(self) -> NoReturn:
        self.__copy__()


def grid_for(noise_std: float) -> float:
    """Return the grid for noise of this size: a power of two with 2**24 <= noise_std/grid < 2**25.

    Args:
        noise_std: standard deviation z*C of the noise on the sum, > 0, parameter units.
    Raises:
        ValueError: `noise_std` is not finite, or outside 2**-900 .. 2**900.
    """
    if not math.isfinite(noise_std) or not 2.0**-900 <= noise_std <= 2.0**900:
        raise ValueError("the noise's standard deviation must be a positive number of ordinary size")
    _, exponent = math.frexp(noise_std)  # 2**(exponent-1) <= noise_std < 2**exponent
    return math.ldexp(1.0, exponent - 1 - 24)


def truncate_to_grid(values: Tensor, grid: float) -> Tensor:
    """Round every value toward zero to a multiple of `grid`, and return the multiples.

    No value grows in size, so no norm does.

    Args:
        values: any shape, float32 or float64, parameter units.
        grid: a power of two, same units.
    Returns:
        int64 of the same shape: trunc(values / grid).
    Raises:
        ValueError: the grid is not a power of two, a value is not finite, or a multiple reaches 2**62.
    """
    _require_power_of_two(grid)
    multiples = values.to(torch.float64) * (1.0 / grid)  # exact: the factor is a power of two
    if multiples.numel():
        lowest, highest = torch.aminmax(multiples)
        if not (float(lowest) > -(2.0**62) and float(highest) < 2.0**62):  # also refuses NaN
            raise ValueError("a value is not finite, or too large for its grid")
    return multiples.to(torch.int64)  # this conversion truncates toward zero


def largest_noise(std_over_grid: float) -> int:
    """Return an integer that no draw of `integer_gaussian` exceeds in size."""
    return math.ceil(_LARGEST_NORMAL * std_over_grid) + 1


def integer_gaussian(stream: NoiseStream, size: int, *, std_over_grid: float) -> Tensor:
    """Draw `size` independent values of round(N(0, std_over_grid**2)).

    Every value is the correctly rounded Box-Muller image of two 128-bit uniforms: the fast float64 value
    is kept unless it lies so near to a rounding boundary that its error could matter; then it is computed
    again with 90 digits. The total variation distance from the ideal is at most
    (19 * std_over_grid + 8) / 2**128 a value: see docs/privacy-proof.md.

    Args:
        stream: source of uniform bytes.
        size: number of values, at least 0.
        std_over_grid: standard deviation in grid units, 2**24 to 2**32.
    Returns:
        int64, shape (size,), in grid units.
    Raises:
        ValueError: `size` is negative or `std_over_grid` is out of range.
    Source: Box and Muller 1958; the exact second look is Ziv's rounding test (Ziv 1991).
    """
    if size < 0:
        raise ValueError("the number of noise values must be at least 0")
    if not MIN_STD_OVER_GRID <= std_over_grid <= MAX_STD_OVER_GRID:
        raise ValueError("the noise must be 2**24 to 2**32 grid steps wide")
    pairs = (size + 1) // 2
    words = stream.words(4 * pairs).reshape(4, pairs)
    scaled = _fast_normals(words) * std_over_grid
    rounded = np.rint(scaled)
    doubtful = np.abs(np.abs(scaled - rounded) - 0.5) <= std_over_grid * _DOUBT
    values = rounded.astype(np.int64)
    for half, pair in zip(*np.nonzero(doubtful), strict=True):
        values[half, pair] = exact_rounded_normal(
            [int(word) for word in words[:, pair]], use_sine=bool(half), std_over_grid=std_over_grid
        )
    return torch.from_numpy(values.reshape(-1)[:size].copy())


def _fast_normals(words: NDArray[np.uint64]) -> NDArray[np.float64]:
    """Return Box-Muller normals, shape (2, pairs), with an absolute error of at most 2**-43."""
    radius_high, radius_low, angle_high, angle_low = words
    uniform = _unit_interval(radius_high, radius_low)
    # 1 - uniform from the complement's bits, so that the logarithm is as exact near 1 as near 0
    complement = _unit_interval(~radius_high, ~radius_low)
    logarithm = np.where(
        uniform < 0.5, np.log(uniform), np.log1p(-np.minimum(complement, 0.75))
    )  # the unused branch stays finite
    radius = np.sqrt(-2.0 * logarithm)
    angle = (2.0 * math.pi) * _unit_interval(angle_high, angle_low)
    return np.stack([radius * np.cos(angle), radius * np.sin(angle)])


def _unit_interval(high: NDArray[np.uint64], low: NDArray[np.uint64]) -> NDArray[np.float64]:
    """Return (high * 2**64 + low + 1/2) / 2**128 within a relative error of 2**-51."""
    # Two nonnegative terms, so nothing cancels; the lower word alone decides when the upper is zero.
    return high.astype(np.float64) * 2.0**-64 + (low.astype(np.float64) + 0.5) * 2.0**-128


def exact_rounded_normal(words: list[int], *, use_sine: bool, std_over_grid: float) -> int:
    """Return round(std_over_grid * sqrt(-2 ln u) * cos(2 pi v)), or sin, computed with 90 digits.

    Args:
        words: four 64-bit integers; u = (words[0] * 2**64 + words[1] + 1/2) / 2**128, v likewise.
        use_sine: the second value of the pair.
        std_over_grid: the float64 factor, taken exactly.
    """
    with decimal.localcontext() as context:
        context.prec = _DIGITS
        scale = decimal.Decimal(2) ** 128
        uniform = (decimal.Decimal((words[0] << 64) + words[1]) + decimal.Decimal("0.5")) / scale
        turn = (decimal.Decimal((words[2] << 64) + words[3]) + decimal.Decimal("0.5")) / scale
        radius = (-2 * uniform.ln()).sqrt()
        series = _sine if use_sine else _cosine
        value = decimal.Decimal(std_over_grid) * radius * series(2 * _PI * turn)
        return int(value.to_integral_value(rounding=decimal.ROUND_HALF_EVEN))


def _cosine(angle: decimal.Decimal) -> decimal.Decimal:
    return _taylor(angle, first=decimal.Decimal(1), start=0)


def _sine(angle: decimal.Decimal) -> decimal.Decimal:
    return _taylor(angle, first=angle, start=1)


def _taylor(angle: decimal.Decimal, *, first: decimal.Decimal, start: int) -> decimal.Decimal:
    """Sum the Taylor series of cosine (start 0) or sine (start 1) for an angle in [0, 2 pi]."""
    total, term, order = first, first, start
    smallest = decimal.Decimal(10) ** -_DIGITS
    while abs(term) > smallest or order < 8:  # terms grow first, while the order is below 2 pi
        term = -term * angle * angle / ((order + 1) * (order + 2))
        total += term
        order += 2
    return total


def _require_power_of_two(grid: float) -> None:
    if not math.isfinite(grid) or grid <= 0 or math.frexp(grid)[0] != 0.5:
        raise ValueError("the grid must be a power of two")
