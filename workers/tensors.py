"""Blobs <-> safetensors <-> torch, one tensor at a time.

Reading goes through the safetensors library's memory map. Writing is ours, so that equal tensors are equal
bytes: names sorted, no time, no machine. Nothing here can unpickle.
"""

from __future__ import annotations

import json
import math
import sys
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from typing import Any

import torch
from safetensors import SafetensorError, safe_open
from torch import Tensor

from app.core.blobs import BlobWriter, LocalBlobs

Shapes = Mapping[str, tuple[int, ...]]
"""Names and shapes of an adapter's tensors; dtype is float32 throughout."""

_ALIGNMENT = 8


class BrokenTensors(Exception):
    """The blob is not the safetensors file that was expected. The text names a tensor, never a value."""


class TensorFile:
    """An open safetensors blob."""

    def __init__(self, handle: Any) -> None:
        self._handle = handle
        self.shapes: dict[str, tuple[int, ...]] = {
            name: tuple(handle.get_slice(name).get_shape()) for name in sorted(handle.keys())
        }

    def tensor(self, name: str) -> Tensor:
        """One tensor, still in the file's pages; raises BrokenTensors unless it is float32."""
        if self._handle.get_slice(name).get_dtype() != "F32":
            raise BrokenTensors(f"{name} is not float32")
        tensor: Tensor = self._handle.get_tensor(name)
        return tensor


@contextmanager
def open_tensors(blobs: LocalBlobs, digest: str) -> Iterator[TensorFile]:
    """Open a blob as safetensors; raises BrokenTensors when it is none, Unavailable when it is not there."""
    with blobs.open(digest):  # only to tell a missing blob from a broken one
        pass
    try:
        with safe_open(blobs.path(digest), framework="pt") as handle:
            yield TensorFile(handle)
    except SafetensorError as error:
        raise BrokenTensors("the blob is no safetensors file") from error


class TensorWriter:
    """Writes float32 tensors into a blob in the order of their names; every value exactly once."""

    def __init__(self, writer: BlobWriter, shapes: Shapes) -> None:
        self._writer = writer
        self._left = 4 * sum(math.prod(shape) for shape in shapes.values())
        writer.write(_header(shapes))

    def append(self, values: Tensor) -> None:
        """Write the next values; the caller goes through the names in sorted order."""
        raw = values.detach().to(device="cpu", dtype=torch.float32).contiguous().numpy().tobytes()
        self._left -= len(raw)
        self._writer.write(raw)

    def commit(self) -> str:
        """Publish the blob; returns its digest."""
        if self._left:
            raise ValueError("the values written do not fill the shapes")
        return self._writer.commit()


def write_tensors(blobs: LocalBlobs, tensors: Mapping[str, Tensor]) -> tuple[str, int]:
    """Store tensors that are in memory; returns digest and size in bytes."""
    with blobs.writer() as writer:
        file = TensorWriter(writer, {name: tuple(tensor.shape) for name, tensor in tensors.items()})
        for name in sorted(tensors):
            file.append(tensors[name])
        return file.commit(), writer.size_bytes


def _header(shapes: Shapes) -> bytes:
    if sys.byteorder != "little":
        raise ValueError("safetensors are little-endian, and so must be this machine")
    entries: dict[str, Any] = {"__metadata__": {"format": "pt"}}
    offset = 0
    for name in sorted(shapes):
        end = offset + 4 * math.prod(shapes[name])
        entries[name] = {"dtype": "F32", "shape": list(shapes[name]), "data_offsets": [offset, end]}
        offset = end
    text = json.dumps(entries, separators=(",", ":")).encode()
    text += b" " * (-len(text) % _ALIGNMENT)
    return len(text).to_bytes(8, "little") + text
