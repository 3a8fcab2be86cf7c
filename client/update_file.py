"""A finished update as the file that is sent: its change in the wire dtype that the manifest names.

Rounding is the last step of the update and uses nothing but the update. Where the client adds the noise it
comes after it and costs no privacy; where the server does, the server clips what it has decoded.
"""

from __future__ import annotations

from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from torch import Tensor

SCALE = ".scale"
"""Ends the name of an int8 tensor's scale, a float32 of shape (1,)."""
_LARGEST_INT8 = 127
_LARGEST_SIZE = 3.4028e38
"""Just under float32's largest: 127 times the rounded scale of it does not overflow."""


def update_file(update: dict[str, Tensor], *, wire_dtype: str) -> bytes:
    """Write the trained tensors' changes as a safetensors file.

    float16 and bfloat16 round to the nearest; what is over their range becomes their largest value, never an
    infinity. int8 is the nearest of 255 steps of the tensor's largest size, whose float32 scale is beside it.

    Args:
        update: float32 by name, finite.
        wire_dtype: `float32`, `float16`, `bfloat16` or `int8`.
    """
    import torch  # noqa: PLC0415  (takes seconds to load)
    from safetensors.torch import save  # noqa: PLC0415

    sent: dict[str, Tensor] = {}
    for name in sorted(update):
        values = update[name].detach().contiguous()
        if wire_dtype == "int8":
            sent[name], sent[name + SCALE] = _quantized(values)
        else:
            dtype: torch.dtype = getattr(torch, wire_dtype)
            largest = torch.finfo(dtype).max
            sent[name] = values.clamp(-largest, largest).to(dtype)
    content: bytes = save(sent)
    return content


def _quantized(values: Tensor) -> tuple[Tensor, Tensor]:
    import torch  # noqa: PLC0415

    largest = values.abs().amax().to(torch.float64).clamp(max=_LARGEST_SIZE)
    scale = (largest / _LARGEST_INT8).to(torch.float32).reshape(1)
    if not bool(scale > 0.0):  # all zeros, or too small for any scale
        return torch.zeros_like(values, dtype=torch.int8), torch.zeros_like(scale)
    steps = (values.to(torch.float64) / scale.to(torch.float64)).round()
    return steps.clamp(-_LARGEST_INT8, _LARGEST_INT8).to(torch.int8), scale
