"""A clip norm that follows a quantile of the clients' norms, paid for inside the round's own multiplier.

Each client adds one bit, whether its norm is within the clip norm, to a count that is noised together with
the sum: one Gaussian mechanism with exactly the plan's multiplier z. The next clip norm is a function of
noised values alone. Three things keep that true: the bit is +-1/2, so that zeroing a client out moves the
count by 1/2 and not by 1; the divisor is the expected cohort, never the cohort that came; and the bit's
noise comes from the round's cryptographic stream, also when nobody came.
"""

import dataclasses
import math

from engines.privacy.noise import NoiseStream, grid_for, integer_gaussian

_LARGEST_BIT_STD = 2.0**20
"""Above, one half would no longer be a whole number of grid steps by a wide margin."""


@dataclasses.dataclass(frozen=True, kw_only=True)
class AdaptiveClip:
    """How the clip norm follows the clients' norms; constants of the manifest."""

    bit_std: float
    """Standard deviation sigma_b of the noise on the count of bits; the paper takes expected_cohort / 20."""
    expected_cohort: float
    """q * N_max, the public divisor of the count."""
    target: float = 0.5
    """Quantile of the clients' norms that the clip norm follows, between 0 and 1."""
    learning_rate: float = 0.2
    """Step of the geometric update, above 0 and at most 10."""
    smallest_clip_norm: float = 1e-6
    largest_clip_norm: float = 1e6
    """Public limits of the clip norm, parameter units; what comes out beyond them is moved to them."""

    def __post_init__(self) -> None:
        if not 1e-3 <= self.bit_std <= _LARGEST_BIT_STD:  # also false for NaN, as below
            raise ValueError("the bit's noise must lie between 0.001 and 2**20")
        if not 1e-9 <= self.expected_cohort <= 1e12:
            raise ValueError("the expected cohort must be a positive number of ordinary size")
        if not 0.0 < self.target < 1.0:
            raise ValueError("the target quantile lies strictly between 0 and 1")
        if not 0.0 < self.learning_rate <= 10.0:
            raise ValueError("the learning rate of the clip norm must be above 0 and at most 10")
        if not 1e-12 <= self.smallest_clip_norm <= self.largest_clip_norm <= 1e12:
            raise ValueError("the limits of the clip norm must lie between 1e-12 and 1e12, in order")

    def sum_multiplier(self, noise_multiplier: float) -> float:
        """Return z_delta, the multiplier left to the sum so that sum and bits together have the plan's z.

        z_delta = (z**-2 - (2 sigma_b)**-2)**(-1/2), rounded up: the joint mechanism never has less noise
        than z.

        Args:
            noise_multiplier: z > 0 of the plan.
        Raises:
            ValueError: z is not positive, or not below 2 sigma_b, so the bit alone would cost all of it.
        Source: Andrew et al. 2021, arXiv:1905.03871, Theorem 1.
        """
        double = 2.0 * self.bit_std
        if not 0.0 < noise_multiplier < double:
            raise ValueError("the noise multiplier must be above 0 and below twice the bit's noise")
        # The same formula without the difference of two reciprocals; six roundings stay under 2**-50.
        rest = (double - noise_multiplier) * (double + noise_multiplier)
        return noise_multiplier * double / math.sqrt(rest) * (1.0 + 2.0**-50)

    def next_clip_norm(self, clip_norm: float, *, share_within: float) -> float:
        """Return the next round's clip norm: C * exp(-eta * (share - target)), within the public limits.

        Args:
            clip_norm: this round's C, parameter units.
            share_within: the NOISED share of clients within C, as `BitCount.release` returns it; with
                noise it may lie outside 0 to 1.
        Raises:
            ValueError: the share is not finite.
        Source: Andrew et al. 2021, arXiv:1905.03871, Algorithm 1.
        """
        if not math.isfinite(share_within):
            raise ValueError("the noised share of clients must be finite")
        exponent = -self.learning_rate * (share_within - self.target)
        moved = clip_norm * math.exp(min(max(exponent, -100.0), 100.0))
        return min(max(moved, self.smallest_clip_norm), self.largest_clip_norm)


def joint_mean(*, sum_multiplier: float, bit_std: float) -> float:
    """Return mu of the joint Gaussian mechanism of sum and bits: 1 / z of the plan.

    Zeroing a client out moves the sum by at most C, noise z_delta * C, and the count by at most 1/2, noise
    sigma_b: mu**2 = z_delta**-2 + (2 sigma_b)**-2.
    """
    return math.hypot(1.0 / sum_multiplier, 0.5 / bit_std)


class BitCount:
    """The count of clients within the clip norm, each +1/2 or -1/2, as an exact integer of grid steps."""

    def __init__(self, plan: AdaptiveClip) -> None:
        self._plan = plan
        self._grid = grid_for(plan.bit_std)
        self._half = int(0.5 / self._grid)  # exact: both are powers of two, and the grid is the smaller
        self._steps: int | None = 0

    @property
    def grid(self) -> float:
        """The grid of the count and its noise, a power of two below 1/2; in clients."""
        return self._grid

    def add(self, *, within: bool) -> None:
        """Count one client.

        Raises:
            RuntimeError: the count was released.
        """
        if self._steps is None:
            raise RuntimeError("a count of bits that was released takes no more clients")
        self._steps += self._half if within else -self._half

    def release(self, stream: NoiseStream) -> float:
        """Return the noised share of clients within the clip norm, once; an empty cohort is noised as well.

        Args:
            stream: the round's stream, after the sum's noise was taken from it.
        Raises:
            RuntimeError: the count was released before.
        """
        if self._steps is None:
            raise RuntimeError("a count of bits is released once")
        steps, self._steps = self._steps, None
        noise = integer_gaussian(stream, 1, std_over_grid=self._plan.bit_std / self._grid)
        return (steps + int(noise[0])) * self._grid / self._plan.expected_cohort + 0.5
