"""What clients send: the trained tensors in the run's wire dtype, as a safetensors file holds them.

Under `fedask` messages of other shapes stand in the place of the factors. Under `int8` every tensor comes
with one more, `<name>.scale`: a float32 by which its whole numbers are multiplied. Other integers are never
part of an update.
"""

from __future__ import annotations

import math
from collections.abc import Iterable, Mapping
from types import MappingProxyType
from typing import Any, Literal, NamedTuple

WireDtype = Literal["float32", "float16", "bfloat16", "int8"]

DTYPES: Mapping[str, str] = MappingProxyType(
    {"float32": "F32", "float16": "F16", "bfloat16": "BF16", "int8": "I8"}
)
"""The file format's own words for them."""
VALUE_BYTES: Mapping[str, int] = MappingProxyType({"F32": 4, "F16": 2, "BF16": 2, "I8": 1})
SCALE = ".scale"
"""Ends the name of an int8 tensor's scale, a float32 of shape (1,)."""


class WireTensor(NamedTuple):
    """One tensor of an update file."""

    dtype: str
    """In the file format's words."""
    shape: tuple[int, ...]

    @property
    def size_bytes(self) -> int:
        """Bytes of its values."""
        return VALUE_BYTES[self.dtype] * math.prod(self.shape)


TWO_TURNS = frozenset({"fedask"})
"""LoRA methods that train in odd rounds alone; the even ones send a second message about the same factors."""


def sketched_shapes(manifest: Mapping[str, Any]) -> dict[str, tuple[int, int]]:
    """What `fedask` sends in the place of each factor, by its name: the copy of engines/lora/methods.py's.

    Empty where a factor has no counterpart, which the plan is refused for.
    """
    lora = manifest["lora"]
    by_name = {one["name"]: one["shape"] for one in manifest["tensors"] if ".lora_" in one["name"]}
    shapes = dict[str, tuple[int, int]]()
    for name in by_name:
        module = name.partition(".lora_")[0]
        whole = (by_name.get(f"{module}.lora_B.weight"), by_name.get(f"{module}.lora_A.weight"))
        if whole[0] is None or whole[1] is None:
            return {}
        rows, columns = whole[0][0], whole[1][-1]
        width = lora.get("sketch_width") or whole[1][0] * manifest["quorum"]["max_updates"]
        kept = min(width, rows, columns)
        shapes[name] = (rows, kept) if ".lora_B." in name else (kept, columns)
    return shapes


def wire_tensors(
    trained: Iterable[tuple[str, tuple[int, ...]]], wire_dtype: WireDtype
) -> dict[str, WireTensor]:
    """Every tensor of an update file by name.

    Args:
        trained: name and shape of every tensor that clients train.
        wire_dtype: as the manifest names it.
    Raises:
        ValueError: a trained tensor has the name of another one's scale.
    """
    found: dict[str, WireTensor] = {}
    listed = list(trained)
    for name, shape in listed:
        found[name] = WireTensor(DTYPES[wire_dtype], shape)
        if wire_dtype == "int8":
            found[name + SCALE] = WireTensor("F32", (1,))
    if len(found) != len(listed) * (2 if wire_dtype == "int8" else 1):
        raise ValueError("a tensor has the name of another one's scale")
    return found
