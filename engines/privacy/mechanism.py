"""One noised step: clip every sample, truncate to the grid, sum exactly, add Gaussian noise on the grid.

The only function of a training step that may touch per-sample gradients and let something out.
"""

import functools
import math

import torch
from torch import Tensor

from engines.privacy.clipping import clip_per_sample, samples_in
from engines.privacy.noise import NoiseStream, grid_for, integer_gaussian, largest_noise, truncate_to_grid

_BLOCK_ELEMENTS = 1 << 17
"""Gradient entries worked on together: their wide copies, 1 MiB each, stay in a core's cache."""


def noised_sum(
    per_sample: list[Tensor], *, clip_norm: float, noise_multiplier: float, stream: NoiseStream
) -> list[Tensor]:
    """Release the noised SUM of clipped per-sample gradients, one tensor a parameter.

    The caller divides by a public constant, never by the number of samples. An empty batch (n = 0) gets
    its noise like any other. A sample that is not finite counts as zero.

    Args:
        per_sample: one tensor a parameter, each (n, *parameter shape), floating, the same n in all.
        clip_norm: C, L2 bound on one sample over all parameters, 1e-12 to 1e12.
        noise_multiplier: z > 0; the noise's standard deviation on the sum is z * C.
        stream: source of the noise; never derived from a run's seed.
    Returns:
        float32 tensors of the parameters' shapes on the device of the gradients. The released values are
        integers times the grid; the cast to float32 depends on them alone, so it is post-processing.
    Raises:
        ValueError: an argument is out of range, shapes disagree, or the sum could leave int64.
    Source: Abadi et al. 2016, arXiv:1607.00133; grid and exact sums: docs/privacy-proof.md.
    """
    noise_std = noise_std_of(clip_norm=clip_norm, noise_multiplier=noise_multiplier)
    grid = grid_for(noise_std)
    samples = samples_in(per_sample)
    require_exact_sum(contributions=samples, clip_norm=clip_norm, grid=grid, std_over_grid=noise_std / grid)
    summed = _gridded_sum(per_sample, clip_norm=clip_norm, grid=grid)
    noise = integer_gaussian(stream, summed.numel(), std_over_grid=noise_std / grid)
    noised = summed + noise.to(summed.device)
    values = (noised.to(torch.float64) * grid).to(torch.float32)
    return _split_like(values, per_sample)


def _gridded_sum(per_sample: list[Tensor], *, clip_norm: float, grid: float) -> Tensor:
    """Clip, truncate and sum, a few samples at a time.

    Returns:
        int64, shape (d,), in grid units: exact, so the same for any number at a time.
    """
    width = sum(math.prod(tensor.shape[1:]) for tensor in per_sample)
    at_a_time = max(1, _BLOCK_ELEMENTS // max(1, width))
    parts = zip(*(torch.split(tensor, at_a_time) for tensor in per_sample), strict=True)
    sums = (truncate_to_grid(clip_per_sample(list(part), clip_norm), grid).sum(dim=0) for part in parts)
    return functools.reduce(torch.add, sums)


def noise_std_of(*, clip_norm: float, noise_multiplier: float) -> float:
    """Return z * C in parameter units, rounded up so that it is never below the product.

    Raises:
        ValueError: `noise_multiplier` is not between 1e-6 and 1e6 (the clip norm is checked by clipping).
    """
    if not 1e-6 <= noise_multiplier <= 1e6:  # also false for NaN
        raise ValueError("the noise multiplier must lie between 1e-6 and 1e6")
    return math.nextafter(noise_multiplier * clip_norm, math.inf)


def require_exact_sum(*, contributions: int, clip_norm: float, grid: float, std_over_grid: float) -> None:
    """Refuse a sum that could leave int64.

    A clipped entry is at most C, so at most ceil(C/grid) steps of the grid; with n of them and the largest
    possible draw of noise the sum's size is at most n * ceil(C/grid) + largest_noise, which must stay
    below 2**63.

    Raises:
        ValueError: it could not.
    """
    largest = contributions * math.ceil(clip_norm / grid) + largest_noise(std_over_grid)
    if largest >= 2**63:
        raise ValueError(
            f"the sum of {contributions} contributions could reach {largest} grid steps, over 2**63: "
            "use fewer samples or more noise"
        )


def _split_like(values: Tensor, per_sample: list[Tensor]) -> list[Tensor]:
    widths = [math.prod(tensor.shape[1:]) for tensor in per_sample]
    parts = torch.split(values, widths)
    return [
        part.reshape(tensor.shape[1:]).to(tensor.device)
        for part, tensor in zip(parts, per_sample, strict=True)
    ]
