"""A round's updates as one source of rows, read from their blobs in pieces: no update is ever held whole.

Row i is the i-th update in the order of client ids, its tensors one after another in the order of the
manifest. What is kept in memory is one layout for each order in which files hold their tensors, usually one.
"""

from __future__ import annotations

import json
import math
import os
import struct
import sys
from collections.abc import Mapping, Sequence
from io import FileIO
from types import TracebackType
from typing import Any, NamedTuple, Self

import numpy as np

from app.core.blobs import LocalBlobs
from app.core.errors import Unavailable
from app.core.i18n import _
from app.updates.wire import UpdateMalformed, check_header
from engines.aggregation.kernels import Numbers
from workers.tensors import BrokenTensors, Shapes

MOST_OPEN = 128
"""Files kept open; those of further clients are opened for each piece."""
_BYTES = 4


class Span(NamedTuple):
    """A tensor's values in the flat vector, and where its bytes begin in the file."""

    start: int
    stop: int
    offset: int


Layout = tuple[Span, ...]


class BlobUpdates:
    """Updates in blobs, float32, as `engines.aggregation.rows.Source`; a context manager."""

    dtype: np.dtype[Any] = np.dtype(np.float32)

    def __init__(self, blobs: LocalBlobs, digests: Sequence[str], shapes: Shapes) -> None:
        """Check every file's header and keep the first files open.

        Raises:
            BrokenTensors: a blob is not the safetensors file that was accepted.
            Unavailable: a blob is not there.
        """
        if sys.byteorder != "little":
            raise ValueError("safetensors are little-endian, and so must be this machine")
        self.clients = len(digests)
        self.dimension = sum(math.prod(shape) for shape in shapes.values())
        self._blobs, self._digests = blobs, tuple(digests)
        self._open: list[FileIO] = []
        known: dict[Layout, Layout] = {}
        self._layouts: list[Layout] = []
        try:
            for number, digest in enumerate(digests):
                layout = _layout(blobs, digest, shapes)
                self._layouts.append(known.setdefault(layout, layout))
                if number < MOST_OPEN:
                    self._open.append(self._file(number))
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
            self._open.pop().close()

    def read(self, client: int, start: int, stop: int, out: Numbers) -> None:
        """Write values `start` to `stop` - 1 of an update to `out`; raises BrokenTensors, Unavailable."""
        if client < len(self._open):
            self._read(self._open[client], client, start, stop, out)
            return
        with self._file(client) as file:
            self._read(file, client, start, stop, out)

    def _read(self, file: FileIO, client: int, start: int, stop: int, out: Numbers) -> None:
        for span in self._layouts[client]:
            first, last = max(span.start, start), min(span.stop, stop)
            if first >= last:
                continue
            view = out[first - start : last - start].view(np.uint8).data
            file.seek(span.offset + _BYTES * (first - span.start))
            while view.nbytes:
                count = file.readinto(view)
                if not count:
                    raise BrokenTensors("the blob ended before its tensors did")
                view = view[count:]

    def _file(self, client: int) -> FileIO:
        try:
            return FileIO(self._blobs.path(self._digests[client]))
        except OSError as error:
            raise Unavailable(_("a stored file is missing or cannot be read")) from error


def _layout(blobs: LocalBlobs, digest: str, shapes: Shapes) -> Layout:
    with blobs.open(digest) as file:
        size_bytes = os.fstat(file.fileno()).st_size
        try:
            check_header(file, size_bytes=size_bytes, expected=shapes)
        except UpdateMalformed as error:
            raise BrokenTensors(str(error)) from error
        file.seek(0)
        (length,) = struct.unpack("<Q", file.read(8))
        header: Mapping[str, Any] = json.loads(file.read(length))
    spans, start = [], 0
    for name, shape in shapes.items():
        stop = start + math.prod(shape)
        spans.append(Span(start, stop, 8 + length + header[name]["data_offsets"][0]))
        start = stop
    return tuple(spans)
