"""Which number format the frozen part may use, and how its large buffers are kept.

Products with weights, also those of the trained part, may be computed in bfloat16, and so may the gradients
that come out of them. Stored tensors, clipping, sums, noise and evaluation are float32 and wider.
"""

import ctypes
import os
import platform

import torch

_M_TRIM_THRESHOLD, _M_MMAP_THRESHOLD = -1, -3  # malloc.h of the GNU C library
_KEPT_BYTES = 1 << 30


def bf16_in_frozen_part() -> bool:
    """Say whether the frozen part may compute in bfloat16: the processor can, and DPFL_BF16 is not off."""
    if os.environ.get("DPFL_BF16", "").lower() in {"off", "0", "no", "false"}:
        return False
    capabilities = torch.cpu.get_capabilities()
    return bool(capabilities.get("avx512_bf16") or capabilities.get("amx_bf16"))


def keep_freed_memory() -> None:
    """Ask the C library to keep freed blocks instead of giving them back at once.

    Every step allocates the same large activations; returning them to the system and faulting them in
    again cost more than the arithmetic of some layers (measured on a virtual machine). Elsewhere than on
    the GNU C library this does nothing.
    """
    if platform.libc_ver()[0] != "glibc":
        return
    library = ctypes.CDLL(None)
    library.mallopt(_M_MMAP_THRESHOLD, _KEPT_BYTES)
    library.mallopt(_M_TRIM_THRESHOLD, _KEPT_BYTES)
