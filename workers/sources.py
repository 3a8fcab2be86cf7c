"""A round's updates as one source of rows, read from their blobs in pieces: no update is ever held whole.

Row i is the i-th update in the order of client ids, its tensors one after another in the order of the
manifest. Whatever the wire dtype, rows are float32, the same on every machine: float16 and bfloat16 are
widened exactly, int8 times its scale is rounded once. What is kept in memory is one layout for each order in
which files hold their tensors, usually one, and the scales.
"""

from __future__ import annotations

import json
import math
import resource
import struct
import sys
from collections.abc import Mapping, Sequence
from contextlib import suppress
from io import BytesIO
from types import TracebackType
from typing import Any, ClassVar, NamedTuple, Self

import numpy as np

from app.custody.blobs import Blobs, OpenBlob
from app.custody.keys import Located
from app.runs.sending import SCALE, VALUE_BYTES
from app.updates.wire import LARGEST_HEAD_BYTES, Expected, UpdateMalformed, check_header
from engines.aggregation.kernels import Numbers
from workers.tensors import BrokenTensors

MOST_OPEN = 4096
"""Files kept open; those of further clients are opened for each piece, which takes longer than reading it."""
_OTHER_FILES = 256
"""What is left to the rest of this process; half of its limit where that is less."""
_HELD: dict[str, np.dtype[Any]] = {
    "F16": np.dtype("<f2"),
    "BF16": np.dtype("<u2"),
    "I8": np.dtype("i1"),
}
"""As what NumPy, which has no bfloat16, reads a file's values."""


class Span(NamedTuple):
    """A tensor's values in the flat vector, and where its bytes begin in the file."""

    start: int
    stop: int
    offset: int
    dtype: str
    """In the file format's words."""
    sent: tuple[int, int] | None = None
    """Rows and columns in the file, where they are the first corner of what stands in the vector."""
    width: int = 0
    """Columns in the vector, where that is so."""


Layout = tuple[Span, ...]


class BlobUpdates:
    """Updates in blobs as `engines.aggregation.rows.Source`; a context manager."""

    dtype: np.dtype[Any] = np.dtype(np.float32)
    open_in_all: ClassVar[int] = 0
    """Files that the sources of this process keep open."""

    def __init__(
        self, blobs: Blobs, files: Sequence[Located], expected: Expected, *, sent: Sequence[Expected] = ()
    ) -> None:
        """Check every file's header and keep the first files open.

        Args:
            blobs: where they are.
            files: in the order of client ids.
            expected: of every row, as a file of the run's rank holds it.
            sent: what each file holds where clients of smaller ranks send less: the first rows and columns of
                a tensor, the rest of which is zero.
        Raises:
            BrokenTensors: a blob is not the safetensors file that was accepted.
            BlobDamaged, Unavailable: a blob is not there, or other bytes are.
        """
        if sys.byteorder != "little":
            raise ValueError("safetensors are little-endian, and so must be this machine")
        self.clients = len(files)
        self._expected = expected
        self._trained = [name for name in expected if not _is_scale(name, expected)]
        self.dimension = sum(math.prod(expected[name].shape) for name in self._trained)
        self._blobs, self._located = blobs, files
        self._open: list[OpenBlob] = []
        most_open = may_open(self.clients, besides=BlobUpdates.open_in_all)
        known: dict[Layout, Layout] = {}
        self._layouts: list[Layout] = []
        self._chunk_bytes = 1
        self._scales: list[Numbers | None] = []
        try:
            for number, located in enumerate(self._located):
                layout, scales = self._open_header(
                    located, sent[number] if sent else expected, stays_open=number < most_open
                )
                self._layouts.append(known.setdefault(layout, layout))
                self._scales.append(scales)
        except BaseException:
            self.close()
            raise

    def __enter__(self) -> Self:
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self.close()

    def close(self) -> None:
        """Close every file; nothing can be read after that."""
        while self._open:
            BlobUpdates.open_in_all -= 1
            self._open.pop().close()

    def read(self, client: int, start: int, stop: int, out: Numbers) -> None:
        """Write values `start` to `stop` - 1 of an update to `out`; raises BlobDamaged, Unavailable."""
        if client < len(self._open):
            self._read(self._open[client], client, start, stop, out)
            return
        with self._blobs.open(self._located[client]) as file:
            self._read(file, client, start, stop, out)

    def cut(self, stop: int) -> int:
        """Where a sealed chunk of the first file ends: each is opened whole, whatever part of it is read.

        Other files have the same layout, or have some chunks opened twice.
        """
        span = next((one for one in self._layouts[0] if one.start < stop <= one.stop), None)
        if span is None or span.sent is not None:
            return stop
        size_bytes = VALUE_BYTES[span.dtype]
        over_bytes = (span.offset + size_bytes * (stop - span.start)) % self._chunk_bytes
        return stop - over_bytes // size_bytes

    def _read(self, file: OpenBlob, client: int, start: int, stop: int, out: Numbers) -> None:
        scales = self._scales[client]
        for number, span in enumerate(self._layouts[client]):
            first, last = max(span.start, start), min(span.stop, stop)
            if first >= last:
                continue
            scale = None if scales is None else scales[number]
            piece = out[first - start : last - start]
            if span.sent is None:
                at = span.offset + VALUE_BYTES[span.dtype] * (first - span.start)
                _fill(file, at, piece, dtype=span.dtype, scale=scale)
            else:
                _fill_corner(file, span, first - span.start, piece, scale=scale)

    def _open_header(
        self, located: Located, sent: Expected, *, stays_open: bool
    ) -> tuple[Layout, Numbers | None]:
        """Where a file's trained tensors lie, and their scales where it has some."""
        blob = self._blobs.open(located, whole=stays_open)
        self._chunk_bytes = blob.chunk_bytes
        try:
            found = self._header(blob, sent)
        except BaseException:
            blob.close()
            raise
        if stays_open:
            self._open.append(blob)
            BlobUpdates.open_in_all += 1
        else:
            blob.close()
        return found

    def _header(self, blob: OpenBlob, sent: Expected) -> tuple[Layout, Numbers | None]:
        raw = bytearray(min(LARGEST_HEAD_BYTES, blob.size_bytes))
        blob.read_into(0, memoryview(raw))
        try:
            check_header(BytesIO(raw), size_bytes=blob.size_bytes, expected=sent)
        except UpdateMalformed as error:
            raise BrokenTensors(str(error)) from error
        (length,) = struct.unpack_from("<Q", raw)
        header: Mapping[str, Any] = json.loads(raw[8 : 8 + length])
        spans, scales, start = [], [], 0
        for name in self._trained:
            (dtype, held), shape = sent[name], self._expected[name].shape
            stop, offset = start + math.prod(shape), 8 + length + header[name]["data_offsets"][0]
            if held == shape:
                spans.append(Span(start, stop, offset, dtype))
            else:
                rows, columns = held
                spans.append(Span(start, stop, offset, dtype, sent=(rows, columns), width=shape[1]))
            start = stop
            if dtype == "I8":
                scale = np.empty(1, dtype="<f4")
                _read_into(blob, 8 + length + header[name + SCALE]["data_offsets"][0], scale)
                scales.append(scale[0])
        return tuple(spans), np.array(scales, dtype=np.float32) if scales else None


def may_open(files: int, *, besides: int = 0) -> int:
    """How many of so many files this process may keep open `besides` others of the kind.

    Its soft limit is raised for it where it can be.
    """
    soft, hard = resource.getrlimit(resource.RLIMIT_NOFILE)
    wanted = min(files, MOST_OPEN) + besides + _OTHER_FILES
    if soft != resource.RLIM_INFINITY and soft < wanted:
        raised = wanted if hard == resource.RLIM_INFINITY else min(wanted, hard)
        with suppress(OSError, ValueError):  # a kernel may allow less than the hard limit says
            resource.setrlimit(resource.RLIMIT_NOFILE, (raised, hard))
            soft = raised
    free = wanted if soft == resource.RLIM_INFINITY else soft
    return max(0, min(files, MOST_OPEN, free - besides - min(_OTHER_FILES, free // 2)))


def _is_scale(name: str, expected: Expected) -> bool:
    """Whether a tensor of the file is another one's scale."""
    owner = name.removesuffix(SCALE)
    return owner != name and owner in expected and expected[owner].dtype == "I8"


def _fill(file: OpenBlob, offset: int, out: Numbers, *, dtype: str, scale: np.float32 | None) -> None:
    """Read values that lie one after another in a file, as float32."""
    if dtype == "F32":
        _read_into(file, offset, out)
        return
    held = np.empty(len(out), dtype=_HELD[dtype])
    _read_into(file, offset, held)
    _widen(held, out, dtype=dtype, scale=scale)


def _fill_corner(file: OpenBlob, span: Span, first: int, out: Numbers, *, scale: np.float32 | None) -> None:
    """Read the rows of a smaller matrix that lie in this piece of the larger one, and zeros beside them."""
    rows, columns = span.sent or (0, 0)
    top, bottom = first // span.width, -(-(first + len(out)) // span.width)
    whole = np.zeros((bottom - top, span.width), dtype=np.float32)
    if (held := min(bottom, rows) - top) > 0:
        read = np.empty(held * columns, dtype=np.float32)
        at = span.offset + VALUE_BYTES[span.dtype] * top * columns
        _fill(file, at, read, dtype=span.dtype, scale=scale)
        whole[:held, :columns] = read.reshape(held, columns)
    at = first - top * span.width
    out[:] = whole.reshape(-1)[at : at + len(out)]


def _read_into(file: OpenBlob, offset: int, values: Numbers) -> None:
    file.read_into(offset, values.view(np.uint8).data)


def _widen(held: Numbers, out: Numbers, *, dtype: str, scale: np.float32 | None) -> None:
    """Write a file's values as float32. What overflows, or has a scale that is not finite, is not finite."""
    if dtype == "BF16":  # the upper half of a float32's bits
        np.left_shift(held, 16, out=out.view(np.uint32), dtype=np.uint32)
    elif scale is None:
        out[:] = held
    else:
        with np.errstate(over="ignore", invalid="ignore"):
            np.multiply(held, scale, out=out, dtype=np.float32)
