"""The tensors of a published adapter file, each with a digest of its own. Knows the file's format, no tensor.

Standard library only: whoever checks a release needs neither torch nor the server. Nothing is unpickled.
"""

from __future__ import annotations

import hashlib
import json
import math
from collections.abc import Mapping
from typing import Any, BinaryIO

from app.core.canonical import canonical_bytes

BYTES_OF = {"F32": 4}
"""Size of one value by the format's name of its type; a release holds float32 alone."""
_MOST_HEADER_BYTES = 1 << 24
_BLOCK_BYTES = 1 << 20


class NoTensorFile(ValueError):
    """The file is not a safetensors file of float32 values without a gap; the text says where."""


def tensor_digests(file: BinaryIO) -> list[dict[str, Any]]:
    """Name, dtype, shape and SHA-256 of every tensor in a safetensors file, by name.

    The digest is over `{"dtype":"F32","shape":[2,4]}` in canonical form, one line feed, and the values as
    they lie in the file: row by row, little-endian. So it tells equal bytes in another shape apart.

    Raises:
        NoTensorFile: header or layout are not those of such a file.
    """
    header, start = _header(file)
    found, end = [], 0
    for name, entry in sorted(header.items(), key=lambda item: _begin(item[1], item[0])):
        size_bytes = _size(entry, name=name, begin=end)
        digest = hashlib.sha256(canonical_bytes({"dtype": entry["dtype"], "shape": entry["shape"]}) + b"\n")
        file.seek(start + end)
        _feed(digest, file, size_bytes, name=name)
        end += size_bytes
        found.append(
            {
                "name": name,
                "dtype": entry["dtype"],
                "shape": entry["shape"],
                "sha256": digest.hexdigest(),
            }
        )
    if file.read(1):
        raise NoTensorFile("there are bytes behind the last tensor")
    return sorted(found, key=lambda one: str(one["name"]))


def _header(file: BinaryIO) -> tuple[dict[str, Any], int]:
    """The file's entries without its metadata, and where the values begin."""
    length = int.from_bytes(file.read(8), "little")
    if not 2 <= length <= _MOST_HEADER_BYTES:
        raise NoTensorFile("the header has no possible length")
    try:
        header = json.loads(file.read(length), object_pairs_hook=_distinct)
    except (ValueError, RecursionError) as error:
        raise NoTensorFile("the header is not readable") from error
    if not isinstance(header, dict):
        raise NoTensorFile("the header is no object")
    header.pop("__metadata__", None)
    return header, 8 + length


def _begin(entry: Any, name: str) -> tuple[int, str]:
    offsets = entry.get("data_offsets") if isinstance(entry, dict) else None
    if not isinstance(offsets, list) or len(offsets) != 2 or any(type(one) is not int for one in offsets):
        raise NoTensorFile(f"{name}: its entry is not understood")
    return offsets[0], name


def _size(entry: Mapping[str, Any], *, name: str, begin: int) -> int:
    """Bytes of one tensor, which has to start where the one before it ends."""
    dtype, shape = entry.get("dtype"), entry.get("shape")
    if dtype not in BYTES_OF or not isinstance(shape, list):
        raise NoTensorFile(f"{name}: its entry is not understood")
    if any(type(length) is not int or length < 0 for length in shape):
        raise NoTensorFile(f"{name}: its entry is not understood")
    size_bytes = BYTES_OF[dtype] * math.prod(shape)
    if entry["data_offsets"] != [begin, begin + size_bytes]:
        raise NoTensorFile(f"{name}: its bytes are not where its shape puts them")
    return size_bytes


def _feed(digest: Any, file: BinaryIO, size_bytes: int, *, name: str) -> None:
    left = size_bytes
    while left:
        block = file.read(min(left, _BLOCK_BYTES))
        if not block:
            raise NoTensorFile(f"{name}: the file ends before it does")
        digest.update(block)
        left -= len(block)


def _distinct(pairs: list[tuple[str, Any]]) -> dict[str, Any]:
    found = dict(pairs)
    if len(found) != len(pairs):
        raise ValueError("a key appears twice")
    return found
