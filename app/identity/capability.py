"""What a training client's machine can carry: declared by the client, concluded by the server.

The conclusion is advice for planning a run. It proves nothing: a client that overstates itself only
misses deadlines.
"""

from __future__ import annotations

import math
from typing import Annotated, Literal

from pydantic import Field

from app.core.strict import Name, StrictModel

MIB = 1024**2
_FIXED_BYTES = 1024 * MIB
_USABLE = 0.6
_MAX_RANK = 64
_FLOATS_PER_RANK = 12 * 2 * (768 + 768)
_BATCH = 64
_BYTES_PER_RANK = 2 * 4 * _BATCH * _FLOATS_PER_RANK


class Capability(StrictModel):
    """What the client says of its machine."""

    memory_bytes: Annotated[int, Field(strict=True, ge=1, le=2**50)]
    cpu_count: Annotated[int, Field(strict=True, ge=1, le=4096)]
    upload_bytes_per_s: Annotated[float | None, Field(strict=True, gt=0, le=1e12)] = None
    accelerator: Name | None = None
    """For example `cuda`, `mps` or the name of a card; leave it out where there is none."""
    software: Annotated[dict[Name, Name], Field(max_length=50)] = Field(default_factory=dict)
    """Names and versions, for example `{"torch": "2.13.0"}`."""


class Assessment(StrictModel):
    """What the server concludes."""

    tier: Literal["accelerated", "standard", "constrained", "insufficient"]
    """How the client may be used: `insufficient` cannot train the reference shape at any rank."""
    max_rank: Annotated[int, Field(ge=0, le=_MAX_RANK)]
    """The largest LoRA rank, a power of two, that fits its memory."""
    accelerator: Literal["cuda", "rocm", "mps", "xpu", "other", "none"]
    expected_upload_s: float | None
    """Seconds to send one update at `max_rank`; null where the upload speed is unknown."""


class AssessedCapability(Capability):
    """Both, as they are kept with the client."""

    assessment: Assessment


def assess(capability: Capability) -> Assessment:
    """Conclude what the machine can carry, on a reference shape: q and v of 12 layers of width 768.

    One unit of rank is then 12 * 2 * (768 + 768) = 36,864 trainable numbers. Example-level private
    training holds a gradient per example and its clipped copy: 2 * 4 bytes * 64 examples * 36,864
    = 18 MiB for each unit of rank. With 60 % of the memory usable and 1 GiB of it taken by the frozen
    model and the framework,

        max_rank = the largest power of two <= min(64, (0.6 * memory - 1 GiB) / 18 MiB), or 0,
        expected_upload_s = 4 bytes * 36,864 * max_rank / upload_bytes_per_s.

    The tier is `insufficient` at rank 0, `constrained` under rank 8 or with a single core and no
    accelerator, `accelerated` with an accelerator, and `standard` otherwise.
    """
    room = (capability.memory_bytes * _USABLE - _FIXED_BYTES) / _BYTES_PER_RANK
    max_rank = 0 if room < 1 else min(_MAX_RANK, 2 ** int(math.log2(room)))
    accelerator = _kind_of(capability.accelerator)
    seconds = None
    if capability.upload_bytes_per_s is not None:
        seconds = round(4 * _FLOATS_PER_RANK * max_rank / capability.upload_bytes_per_s, 3)
    return Assessment(
        tier=_tier(max_rank, cpu_count=capability.cpu_count, accelerator=accelerator),
        max_rank=max_rank,
        accelerator=accelerator,
        expected_upload_s=seconds,
    )


def _tier(
    max_rank: int, *, cpu_count: int, accelerator: str
) -> Literal["accelerated", "standard", "constrained", "insufficient"]:
    if max_rank == 0:
        return "insufficient"
    if max_rank < 8 or (cpu_count == 1 and accelerator == "none"):
        return "constrained"
    return "standard" if accelerator == "none" else "accelerated"


def _kind_of(declared: str | None) -> Literal["cuda", "rocm", "mps", "xpu", "other", "none"]:
    text = (declared or "none").lower()
    if text in {"none", "cpu"}:
        return "none"
    if "cuda" in text or "nvidia" in text:
        return "cuda"
    if "rocm" in text or "amd" in text:
        return "rocm"
    if "mps" in text or "apple" in text:
        return "mps"
    return "xpu" if "xpu" in text else "other"
