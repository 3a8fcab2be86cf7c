"""Our own reading of a safetensors header: before anything else opens an update, its header must be exact.

The safetensors library accepts duplicate keys, any names and a hundred thousand empty tensors; here only
what the manifest lists is accepted. Pure Python: no tensor is built, nothing is unpickled, ever.
"""

from __future__ import annotations

import json
import struct
from collections.abc import Mapping
from typing import Any, BinaryIO

from app.core.errors import Invalid
from app.core.i18n import _
from app.runs.sending import WireTensor

MAX_HEADER_BYTES = 64 * 1024
_LENGTH = struct.Struct("<Q")
LARGEST_HEAD_BYTES = _LENGTH.size + MAX_HEADER_BYTES
"""All that a header may take of a file, with its length."""
_MAX_METADATA = 8
_MAX_METADATA_TEXT = 200
_MEMBERS = {"dtype", "shape", "data_offsets"}

Expected = Mapping[str, WireTensor]
"""Every tensor of an update file, by name."""


class UpdateMalformed(Invalid):
    """The body is no safetensors file of the manifest's trained tensors."""

    code, title = "update_malformed", _("Not an update of this run")
    meaning = _("The body must be a safetensors file with exactly the manifest's trained tensors.")
    remedy = _("Send the file that the training client wrote for this round.")


class UpdateDtype(UpdateMalformed):
    """A tensor is of another type than the manifest's wire dtype."""

    code, title = "update_dtype", _("Not the wire dtype of this run")
    meaning = _(
        "The manifest names the type in which clients send, and nothing else is taken: other rounding is not "
        "what everybody agreed to, and whole numbers without a scale are no change of an adapter."
    )
    remedy = _("Send the file that the training client wrote for this round.")


def data_bytes(expected: Expected) -> int:
    """Bytes of the tensors themselves."""
    return sum(tensor.size_bytes for tensor in expected.values())


def size_bounds(expected: Expected) -> tuple[int, int]:
    """The fewest and the most bytes that such a file can have; between them only the header varies."""
    body = _LENGTH.size + data_bytes(expected)
    return body + len("{}"), body + MAX_HEADER_BYTES


def check_header(file: BinaryIO, *, size_bytes: int, expected: Expected) -> None:
    """Read the header from the file's beginning and refuse anything but the expected tensors.

    Args:
        file: at its beginning; only the header is read.
        size_bytes: length of the whole file.
        expected: every tensor by name.
    Raises:
        UpdateMalformed: naming the tensor where there is one; UpdateDtype where its type is another.
    """
    header, data_start = _read_header(file, size_bytes=size_bytes)
    metadata = header.pop("__metadata__", None)
    if metadata is not None:
        _check_metadata(metadata)
    for name in expected:
        if name not in header:
            raise UpdateMalformed(_("the tensor {tensor} is missing"), tensor=name)
    spans = []
    for name, entry in header.items():
        if name not in expected:
            raise UpdateMalformed(_("the tensor {tensor} is not in the manifest"), tensor=_short(name))
        spans.append((*_check_entry(name, entry, expected[name]), name))
    _check_spans(sorted(spans), data_length=size_bytes - data_start)


def _read_header(file: BinaryIO, *, size_bytes: int) -> tuple[dict[str, Any], int]:
    prefix = file.read(_LENGTH.size)
    if len(prefix) < _LENGTH.size:
        raise UpdateMalformed(_("the file is too short for a header"))
    (length,) = _LENGTH.unpack(prefix)
    if length > MAX_HEADER_BYTES:
        raise UpdateMalformed(_("the header is over {most_bytes} bytes"), most_bytes=MAX_HEADER_BYTES)
    if length < len("{}") or _LENGTH.size + length > size_bytes:
        raise UpdateMalformed(_("the header's length does not fit the file"))
    raw = file.read(length)
    if len(raw) < length:
        raise UpdateMalformed(_("the file ends within its header"))
    if raw[:1] != b"{":
        raise UpdateMalformed(_("the header does not begin with an object"))
    try:
        header = json.loads(
            raw.decode("utf-8", "strict"), object_pairs_hook=_distinct, parse_constant=_no_constant
        )
    except UpdateMalformed:
        raise
    except (ValueError, RecursionError) as error:
        raise UpdateMalformed(_("the header is not valid UTF-8 JSON")) from error
    if not isinstance(header, dict):
        raise UpdateMalformed(_("the header is not an object"))
    return header, _LENGTH.size + length


def _distinct(pairs: list[tuple[str, Any]]) -> dict[str, Any]:
    found: dict[str, Any] = {}
    for key, value in pairs:
        if key in found:
            raise UpdateMalformed(_("the header names {tensor} twice"), tensor=_short(key))
        found[key] = value
    return found


def _no_constant(name: str) -> Any:
    raise ValueError(name)


def _check_metadata(metadata: Any) -> None:
    small = (
        isinstance(metadata, dict)
        and len(metadata) <= _MAX_METADATA
        and all(
            isinstance(value, str) and len(key) + len(value) <= _MAX_METADATA_TEXT
            for key, value in metadata.items()
        )
    )
    if not small:
        raise UpdateMalformed(_("__metadata__ must be a few short texts"))


def _check_entry(name: str, entry: Any, expected: WireTensor) -> tuple[int, int]:
    """One tensor against the manifest; returns where its bytes begin and end."""
    if not isinstance(entry, dict) or set(entry) != _MEMBERS:
        raise UpdateMalformed(_("the tensor {tensor} must have dtype, shape and data_offsets"), tensor=name)
    if entry["dtype"] != expected.dtype:
        raise UpdateDtype(_("the tensor {tensor} is not of type {dtype}"), tensor=name, dtype=expected.dtype)
    if not _are_counts(entry["shape"]) or tuple(entry["shape"]) != expected.shape:
        raise UpdateMalformed(
            _("the tensor {tensor} does not have the shape {shape}"), tensor=name, shape=list(expected.shape)
        )
    offsets = entry["data_offsets"]
    if not _are_counts(offsets) or len(offsets) != 2:
        raise UpdateMalformed(_("the offsets of {tensor} are not two whole numbers"), tensor=name)
    begin, end = offsets
    if end - begin != expected.size_bytes:
        raise UpdateMalformed(_("the bytes of {tensor} are not as many as its shape needs"), tensor=name)
    return begin, end


def _are_counts(value: Any) -> bool:
    return isinstance(value, list) and all(type(number) is int and 0 <= number < 2**63 for number in value)


def _check_spans(spans: list[tuple[int, int, str]], *, data_length: int) -> None:
    """The tensors' bytes must follow one another from 0 to the file's end: no gap, no overlap, no rest."""
    reached = 0
    for begin, end, name in spans:
        if begin != reached:
            raise UpdateMalformed(_("the bytes of {tensor} leave a gap or overlap"), tensor=name)
        reached = end
    if reached < data_length:
        raise UpdateMalformed(_("the file has {surplus} bytes too many"), surplus=data_length - reached)
    if reached > data_length:
        raise UpdateMalformed(_("the file has {missing} bytes too few"), missing=reached - data_length)


def _short(name: str) -> str:
    """A name from the wire, fit to be shown."""
    return name[:100].encode("ascii", "backslashreplace").decode()
