"""Client-level central privacy: the noised sum of clipped updates, one update in memory at a time.

The only code of a `central` round that may touch clients' updates and let something out. It holds one
int64 adapter; an update is looked at block by block. What a client's update does to the sum is decided on
that update alone. Who took part, how many they were and how long their updates are stays inside: the
divisor is a public constant, and an empty cohort is noised like any other.
"""

import dataclasses
import math
from collections.abc import Iterator, Mapping, Sequence

import torch
from torch import Tensor

from engines.privacy.adaptive_clip import AdaptiveClip, BitCount
from engines.privacy.clipping import safe_scale
from engines.privacy.mechanism import noise_std_of, require_exact_sum
from engines.privacy.noise import SAMPLER, NoiseStream, grid_for, integer_gaussian, truncate_to_grid
from engines.privacy.round_stream import Parameter

MECHANISM = "central-gaussian/1"
"""Name and version; the size of the blocks below is part of it, since noise is drawn block by block."""

BLOCK_ELEMENTS = 1 << 16


@dataclasses.dataclass(frozen=True, kw_only=True)
class CentralPlan:
    """The public constants of one round's noised sum."""

    clip_norm: float
    """C, L2 bound on one client's whole update, 1e-12 to 1e12, parameter units."""
    noise_multiplier: float
    """z of everything that the round releases, adaptive clipping's bits included."""
    divisor: float
    """What the noised sum is divided by: the expected cohort q * N_max, never the number that came."""
    most_updates: int
    """The cohort's cap; more updates than this are refused."""
    largest_weight: float = 1.0
    """w_max, 1e-6 to 1e6: weights are public and lie in [0, w_max]; the noise is z * C * w_max."""
    adaptive: AdaptiveClip | None = None

    def __post_init__(self) -> None:
        if not 1e-12 <= self.clip_norm <= 1e12:  # also false for NaN, as below
            raise ValueError("the clip norm must lie between 1e-12 and 1e12")
        if not 1e-9 <= self.divisor <= 1e12:
            raise ValueError("the divisor must be a positive number of ordinary size")
        if self.most_updates < 1:
            raise ValueError("a cohort's cap is at least 1")
        if not 1e-6 <= self.largest_weight <= 1e6:
            raise ValueError("the largest weight must lie between 1e-6 and 1e6")
        require_exact_sum(
            contributions=self.most_updates,
            clip_norm=self.sensitivity,
            grid=self.grid,
            std_over_grid=self.noise_std / self.grid,
        )

    @property
    def sensitivity(self) -> float:
        """C * w_max, parameter units, raised by more than the rounding of a weighted entry."""
        if self.largest_weight == 1.0:
            return self.clip_norm  # a weight up to 1 never rounds an entry up over its own size
        return self.clip_norm * self.largest_weight * (1.0 + 2.0**-50)

    @property
    def sum_multiplier(self) -> float:
        """The multiplier of the sum's own noise: z, or z_delta when the bits take their part of z."""
        if self.adaptive is None:
            return self.noise_multiplier
        return self.adaptive.sum_multiplier(self.noise_multiplier)

    @property
    def noise_std(self) -> float:
        """Standard deviation of the noise on the sum, parameter units, rounded up."""
        return noise_std_of(clip_norm=self.sensitivity, noise_multiplier=self.sum_multiplier)

    @property
    def grid(self) -> float:
        """The power of two that contributions are truncated to, parameter units."""
        return grid_for(self.noise_std)


@dataclasses.dataclass(frozen=True, kw_only=True)
class Admitted:
    """What was found about one update. Not noised: for the operator's store and that client alone."""

    finite: bool
    """False: it counted as the zero vector."""
    norm: float
    """Its L2 norm before clipping; 0 where it is not finite."""


@dataclasses.dataclass(frozen=True, kw_only=True)
class CentralRelease:
    """What a round lets out; everything made of it is post-processing."""

    update: dict[str, Tensor]
    """The noised sum over the public divisor, float32 tensors by name."""
    share_within: float | None
    """The noised share of clients within the clip norm; None without adaptive clipping."""


class CentralSum:
    """Sum clipped updates exactly, add the noise once, and divide by the public constant."""

    def __init__(self, shapes: Mapping[str, Sequence[int]], plan: CentralPlan) -> None:
        """Start an empty sum.

        Args:
            shapes: shape of every tensor by name, in the fixed order of the flat vector.
            plan: the round's public constants.
        Raises:
            ValueError: there is no tensor or no value.
        """
        self._shapes = {name: tuple(shape) for name, shape in shapes.items()}
        self._widths = [math.prod(shape) for shape in self._shapes.values()]
        if sum(self._widths) < 1:
            raise ValueError("there is nothing to sum")
        self._plan = plan
        self._steps: Tensor | None = torch.zeros(sum(self._widths), dtype=torch.int64)
        self._bits = BitCount(plan.adaptive) if plan.adaptive else None
        self._updates = 0

    def parameters(self) -> dict[str, Parameter]:
        """Return everything that the noised sum depends on, besides the updates: what binds its stream."""
        return plan_parameters(self._plan, self._shapes)

    def add(self, update: Mapping[str, Tensor], *, weight: float = 1.0) -> Admitted:
        """Add one client's update, flattened and clipped to C by one norm over all its tensors.

        An update that is not finite counts as the zero vector. A refused call leaves the sum as it was.

        Args:
            update: float32 tensors, names and shapes as at the start.
            weight: public, 0 to the plan's largest.
        Raises:
            ValueError: a tensor is missing, unknown, of another shape or dtype, the weight is out of
                range, or the cohort's cap is reached.
            RuntimeError: the sum was released.
        Source: McMahan et al. 2018, arXiv:1710.06963, Algorithm 1; grid and exact sums:
            docs/privacy-proof.md.
        """
        if self._steps is None:
            raise RuntimeError("a sum that was released takes no more updates")
        if self._updates >= self._plan.most_updates:
            raise ValueError("the cohort is full: the noise is planned for no more updates")
        if not 0.0 <= weight <= self._plan.largest_weight:  # also false for NaN
            raise ValueError("a weight must be at least 0 and at most the plan's largest")
        self._require_fit(update)
        self._updates += 1
        norm = math.sqrt(sum(sum_of_squares(block) for _, block in self._blocks(update)))
        finite = math.isfinite(norm)
        admitted = Admitted(finite=finite, norm=norm if finite else 0.0)
        if self._bits is not None:
            self._bits.add(within=admitted.norm <= self._plan.clip_norm)
        if finite and weight > 0.0:
            scale = safe_scale(norm, size=self._steps.numel(), max_norm=self._plan.clip_norm)
            for start, block in self._blocks(update):
                # Scale first: the clipped entry is what the weight multiplies, in two roundings.
                gridded = truncate_to_grid(block.mul_(scale).mul_(weight), self._plan.grid)
                self._steps[start : start + block.numel()] += gridded
        return admitted

    def release(self, stream: NoiseStream) -> CentralRelease:
        """Add the noise and divide, once; an empty cohort gets its noise like any other.

        Args:
            stream: the round's own stream, nothing taken from it yet: see `round_stream`.
        Raises:
            RuntimeError: the sum was released before. A second noise on one sum is a second release.
        Source: Abadi et al. 2016, arXiv:1607.00133; grid and exact sums: docs/privacy-proof.md.
        """
        if self._steps is None:
            raise RuntimeError("a sum is released once")
        steps, self._steps = self._steps, None
        update = noised(steps, self._plan, self._shapes, stream)
        share = None if self._bits is None else self._bits.release(stream)
        return CentralRelease(update=update, share_within=share)

    def _blocks(self, update: Mapping[str, Tensor]) -> Iterator[tuple[int, Tensor]]:
        """Walk through the flat update: where a block starts, and a float64 copy of it."""
        start = 0
        for name in self._shapes:
            for block in torch.split(update[name].detach().reshape(-1), BLOCK_ELEMENTS):
                yield start, block.to(torch.float64)
                start += block.numel()

    def _require_fit(self, update: Mapping[str, Tensor]) -> None:
        if set(update) != set(self._shapes):
            odd = sorted(set(update) ^ set(self._shapes))[0]
            raise ValueError(f"{odd}: missing from the update, or not part of the adapter")
        for name, shape in self._shapes.items():
            if tuple(update[name].shape) != shape or update[name].dtype != torch.float32:
                raise ValueError(f"{name}: expected float32 of shape {list(shape)}")


def plan_parameters(plan: CentralPlan, shapes: Mapping[str, tuple[int, ...]]) -> dict[str, Parameter]:
    """Return a plan's constants as they bind a round's stream; shapes in the order of the flat vector."""
    named: dict[str, Parameter] = {
        "mechanism": MECHANISM,
        "sampler": SAMPLER,
        "noise_multiplier": float(plan.noise_multiplier),
        "clip_norm": float(plan.clip_norm),
        "noise_std": plan.noise_std,
        "grid": plan.grid,
        "dimension": sum(math.prod(shape) for shape in shapes.values()),
        "tensors": [[name, list(shape)] for name, shape in shapes.items()],
        "divisor": float(plan.divisor),
        "most_updates": plan.most_updates,
        "largest_weight": float(plan.largest_weight),
    }
    if plan.adaptive is not None:
        named["adaptive"] = [float(value) for value in dataclasses.astuple(plan.adaptive)]
    return named


def noised(
    steps: Tensor, plan: CentralPlan, shapes: Mapping[str, tuple[int, ...]], stream: NoiseStream
) -> dict[str, Tensor]:
    """Add a plan's noise to grid steps of sensitivity C, in place, and divide by its constant.

    Args:
        steps: shape (d,), int64, exact; changed.
        plan: the round's public constants.
        shapes: of the tensors, in the order of the flat vector.
        stream: the round's own, nothing taken from it yet.
    Returns:
        float32 tensors by name.
    """
    std_over_grid = plan.noise_std / plan.grid
    for block in torch.split(steps, BLOCK_ELEMENTS):
        block.add_(integer_gaussian(stream, block.numel(), std_over_grid=std_over_grid))
    parts = torch.split(steps, [math.prod(shape) for shape in shapes.values()])
    return {
        name: _as_parameters(part, grid=plan.grid, divisor=plan.divisor).reshape(shape)
        for (name, shape), part in zip(shapes.items(), parts, strict=True)
    }


def sum_of_squares(block: Tensor) -> float:
    """Add up a block's squares in one fixed order of plain additions.

    A library's own norm sums in an order that follows the processor. Then a clipped entry could fall on the
    other side of a grid step on another machine, and a round that is computed again there would put the
    same noise on another sum.
    """
    sums = block.square()  # exact: the entries are float32 values
    while sums.numel() > 1:
        half = (sums.numel() + 1) // 2
        folded = sums[:half].clone()
        folded[: sums.numel() - half] += sums[half:]
        sums = folded
    return float(sums.sum())  # of one value, or of none


def _as_parameters(steps: Tensor, *, grid: float, divisor: float) -> Tensor:
    """Turn noised grid steps into float32 parameters: a function of released integers and constants."""
    return (steps.to(torch.float64) * grid / divisor).to(torch.float32)
