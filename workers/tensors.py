"""Blobs <-> safetensors <-> torch, one tensor at a time.

Blobs are sealed, so the safetensors library, which maps files into memory, cannot read them: headers are read
here, and values straight into tensors. Writing is ours as well, so that equal tensors are equal bytes: names
sorted, no time, no machine. Nothing here can unpickle.
"""

from __future__ import annotations

import json
import math
import sys
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from typing import Any

import torch
from torch import Tensor

from app.custody.blobs import BlobWriter, OpenBlob, TenantBlobs
from app.custody.keys import Located

Shapes = Mapping[str, tuple[int, ...]]
"""Names and shapes of an adapter's tensors; dtype is float32 throughout."""

_ALIGNMENT = 8
_MOST_HEADER_BYTES = 100_000_000
"""As the safetensors library has it."""


class BrokenTensors(Exception):
    """The blob is not the safetensors file that was expected. The text names a tensor, never a value."""


class TensorFile:
    """An open safetensors blob of float32 tensors."""

    def __init__(self, blob: OpenBlob) -> None:
        """Read the header; raises BrokenTensors."""
        self._blob = blob
        self._entries, self._start = _read_header(blob)
        self.shapes: dict[str, tuple[int, ...]] = {
            name: tuple(self._entries[name]["shape"]) for name in sorted(self._entries)
        }

    def tensor(self, name: str) -> Tensor:
        """One tensor, in memory of its own; raises BrokenTensors unless it is float32."""
        entry, shape = self._entries[name], self.shapes[name]
        if entry["dtype"] != "F32":
            raise BrokenTensors(f"{name} is not float32")
        tensor = torch.empty(shape, dtype=torch.float32)
        if tensor.numel():
            values = tensor.reshape(-1).numpy().view("u1").data
            self._blob.read_into(self._start + entry["data_offsets"][0], values)
        return tensor


def _read_header(blob: OpenBlob) -> tuple[dict[str, Any], int]:
    """Entries by name, checked to lie one after another and to fill the file; and where values begin.

    The whole of what a tensor is read by comes from here, so it is checked although the blob is our own.
    """
    prefix = blob.read(8) or b""
    length = int.from_bytes(prefix, "little")
    if len(prefix) < 8 or not 2 <= length <= min(_MOST_HEADER_BYTES, blob.size_bytes - 8):
        raise BrokenTensors("the blob is no safetensors file")
    try:
        entries: dict[str, Any] = json.loads(blob.read(length) or b"")
        entries.pop("__metadata__", None)
        spans = []
        for entry in entries.values():
            start, end = entry["data_offsets"]
            if entry["dtype"] == "F32" and end - start != 4 * math.prod(entry["shape"]):
                raise BrokenTensors("a tensor's size is not that of its shape")
            spans.append((start, end))
    except (ValueError, TypeError, KeyError, AttributeError, RecursionError) as error:
        raise BrokenTensors("the blob is no safetensors file") from error
    at = 0
    for start, end in sorted(spans):
        if start != at or end < start:
            raise BrokenTensors("the tensors do not lie one after another")
        at = end
    if 8 + length + at != blob.size_bytes:
        raise BrokenTensors("the tensors do not fill the blob")
    return entries, 8 + length


@contextmanager
def open_tensors(blobs: TenantBlobs, digest: str) -> Iterator[TensorFile]:
    """Open a blob as safetensors; raises BrokenTensors when it is none, and as TenantBlobs.open does."""
    with blobs.open(digest) as blob:
        yield TensorFile(blob)


class TensorWriter:
    """Writes float32 tensors into a blob in the order of their names; every value exactly once."""

    def __init__(self, writer: BlobWriter, shapes: Shapes, *, only_of: str | None = None) -> None:
        """Begin with the header. `only_of` makes the bytes those of one owner, whatever the values are."""
        self._writer = writer
        self._left = 4 * sum(math.prod(shape) for shape in shapes.values())
        writer.write(_header(shapes, {} if only_of is None else {"of": only_of}))

    def append(self, values: Tensor) -> None:
        """Write the next values; the caller goes through the names in sorted order."""
        raw = values.detach().to(device="cpu", dtype=torch.float32).contiguous().numpy().tobytes()
        self._left -= len(raw)
        self._writer.write(raw)

    def commit(self) -> str:
        """Publish the blob; returns its digest."""
        self._require_full()
        return self._writer.commit()

    def publish(self) -> Located:
        """Publish the blob without keeping its key; see BlobWriter."""
        self._require_full()
        return self._writer.publish()

    def _require_full(self) -> None:
        if self._left:
            raise ValueError("the values written do not fill the shapes")


def write_tensors(blobs: TenantBlobs, tensors: Mapping[str, Tensor]) -> tuple[str, int]:
    """Store tensors that are in memory; returns digest and size in bytes."""
    with blobs.writer() as writer:
        file = TensorWriter(writer, {name: tuple(tensor.shape) for name, tensor in tensors.items()})
        for name in sorted(tensors):
            file.append(tensors[name])
        return file.commit(), writer.size_bytes


def _header(shapes: Shapes, notes: Mapping[str, str]) -> bytes:
    if sys.byteorder != "little":
        raise ValueError("safetensors are little-endian, and so must be this machine")
    entries: dict[str, Any] = {"__metadata__": {"format": "pt", **notes}}
    offset = 0
    for name in sorted(shapes):
        end = offset + 4 * math.prod(shapes[name])
        entries[name] = {"dtype": "F32", "shape": list(shapes[name]), "data_offsets": [offset, end]}
        offset = end
    text = json.dumps(entries, separators=(",", ":")).encode()
    text += b" " * (-len(text) % _ALIGNMENT)
    return len(text).to_bytes(8, "little") + text
