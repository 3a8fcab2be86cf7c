"""L2 clipping whose bound holds for the numbers that come out, not only for the formula.

Norms are computed in float64 and the scale is lowered by more than all rounding can add, so that the
exact norm of what is returned is at most the bound. Decides nothing by looking at more than one row.
"""

import math

import torch
from torch import Tensor

_SMALLEST_NORM, _LARGEST_NORM = 1e-12, 1e12
_HALF_ULP_32 = 2.0**-24
_HALF_ULP_64 = 2.0**-53


def clip_to_norm(update: Tensor, max_norm: float) -> tuple[Tensor, float]:
    """Scale `update` down so that its L2 norm is at most `max_norm`.

    Args:
        update: flattened adapter delta, shape (d,), float32 or float64, parameter units.
        max_norm: sensitivity bound C, same units, 1e-12 to 1e12.
    Returns:
        The clipped delta in its own dtype, shape (d,), and the norm before clipping (float64). The exact
        norm of the delta returned is at most `max_norm`, its own rounding to float32 included.
    Raises:
        ValueError: `max_norm` is out of range, or `update` is not of one dimension, not float32 or
            float64, or its norm is not finite (a NaN, an infinity, or entries whose squares overflow).
    Source: Abadi et al. 2016, arXiv:1607.00133, Algorithm 1.
    """
    _require_norm(max_norm)
    if update.dim() != 1 or update.dtype not in (torch.float32, torch.float64):
        raise ValueError("an update to clip is one float32 or float64 vector")
    wide = update.to(torch.float64)
    norm = float(torch.linalg.vector_norm(wide))
    if not math.isfinite(norm):
        raise ValueError("an update to clip must be finite")
    storing = _HALF_ULP_32 if update.dtype == torch.float32 else _HALF_ULP_64
    safe_norm = max_norm * (1.0 - _slack(update.numel()) - 2.0 * storing)
    if norm <= max_norm * (1.0 - _slack(update.numel())):
        return update.clone(), norm
    return (wide * (safe_norm / norm)).to(update.dtype), norm


def clip_per_sample(per_sample: list[Tensor], max_norm: float) -> Tensor:
    """Clip each sample's gradient by ONE flat norm over all its tensors.

    A row whose norm is not finite (a NaN, an infinity, or entries whose squares overflow float64) becomes
    the zero row. That is decided on the row alone: no other row changes by it.

    Args:
        per_sample: one tensor a parameter, each of shape (n, *parameter shape), any floating dtype, all
            with the same n, which may be 0; gradients of the loss in parameter units.
        max_norm: bound C on each sample, same units, 1e-12 to 1e12.
    Returns:
        float64, shape (n, d), d being the number of all parameters; every row's exact norm is at most
        `max_norm`.
    Raises:
        ValueError: no tensor, a tensor without a sample dimension or not floating, different n, or
            `max_norm` out of range.
    Source: Abadi et al. 2016, arXiv:1607.00133, Algorithm 1.
    """
    _require_norm(max_norm)
    rows = _flat_rows(per_sample)
    norms = torch.linalg.vector_norm(rows, dim=1)
    usable = torch.isfinite(norms)
    rows[~usable] = 0.0  # not a product: zero times infinity is NaN
    norms = torch.where(usable, norms, torch.zeros_like(norms))
    safe_norm = max_norm * (1.0 - _slack(rows.shape[1]) - 2.0 * _HALF_ULP_64)
    scales = torch.where(norms <= safe_norm, torch.ones_like(norms), safe_norm / norms)
    return rows.mul_(scales.unsqueeze(1))


def safe_scale(norm: float, *, size: int, max_norm: float) -> float:
    """Return the factor that brings a float64 vector down to an exact norm of at most `max_norm`.

    For whoever cannot hold the vector at once: the norm comes from a first look at its blocks, and the
    factor is applied in float64 in a second.

    Args:
        norm: the vector's L2 norm, computed in float64, its squares summed in any order; finite.
        size: number of its entries, all float32 values held as float64 (no square leaves the range).
        max_norm: bound C, 1e-12 to 1e12.
    Raises:
        ValueError: `norm` is not finite or negative, or `max_norm` is out of range.
    """
    _require_norm(max_norm)
    if not 0.0 <= norm < math.inf:
        raise ValueError("a norm to clip by must be finite")
    safe_norm = max_norm * (1.0 - _slack(size) - 2.0 * _HALF_ULP_64)
    return 1.0 if norm <= safe_norm else safe_norm / norm


def samples_in(per_sample: list[Tensor]) -> int:
    """Return the number of samples that the tensors of a batch agree on.

    Raises:
        ValueError: no tensor, a tensor without a sample dimension or not floating, or different numbers.
    """
    if not per_sample:
        raise ValueError("there is no gradient to clip")
    if any(tensor.dim() < 1 or not tensor.is_floating_point() for tensor in per_sample):
        raise ValueError("per-sample gradients are floating tensors whose first dimension is the sample")
    if any(tensor.shape[0] != per_sample[0].shape[0] for tensor in per_sample):
        raise ValueError("the tensors hold different numbers of samples")
    return per_sample[0].shape[0]


def _flat_rows(per_sample: list[Tensor]) -> Tensor:
    """Lay the tensors side by side as float64 rows that share no memory with them, shape (n, d)."""
    samples = samples_in(per_sample)
    widths = [math.prod(tensor.shape[1:]) for tensor in per_sample]
    device = per_sample[0].device if per_sample[0].device.type != "mps" else torch.device("cpu")
    rows = torch.empty((samples, sum(widths)), dtype=torch.float64, device=device)
    start = 0
    for tensor, width in zip(per_sample, widths, strict=True):
        rows[:, start : start + width] = tensor.detach().reshape(samples, width)
        start += width
    return rows


def _slack(size: int) -> float:
    """Bound the relative error of a float64 norm of `size` entries, summed in any order, and a scaling."""
    return (size + 16) * 2.0 * _HALF_ULP_64


def _require_norm(max_norm: float) -> None:
    if not _SMALLEST_NORM <= max_norm <= _LARGEST_NORM:  # also false for NaN
        raise ValueError("the clip norm must lie between 1e-12 and 1e12")
