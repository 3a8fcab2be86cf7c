"""The form of bytes at rest: AES-256-GCM in chunks, so that any part is read, and none before its tag.

A header of 16 bytes, then chunks of equal size, each with a tag of 16 bytes; the last may be shorter. This is
the STREAM construction (Hoang, Reyhanitabar, Rogaway and Vizar 2015, section 7): the nonce of chunk i is a
prefix, i in 32 bits, and whether it is the last, so none can be left out, repeated, swapped or cut off. What
is authenticated with every chunk is the header and the place: tenant, object and region. A key belongs to one
object, for ever; it is kept elsewhere, wrapped (app/custody), and never in the file.
"""

from __future__ import annotations

import os
import struct
import threading
from collections.abc import Callable
from dataclasses import dataclass
from typing import Protocol
from uuid import UUID

from cryptography.exceptions import InvalidTag
from cryptography.hazmat.primitives.ciphers.aead import AESGCM

MAGIC = b"DPFL"
VERSION = 1
CHUNK_LOG2 = 15
"""32 KiB: the aggregation of many updates reads pieces of about this size, and has to open whole chunks."""
_LEAST_LOG2, _MOST_LOG2 = 9, 24
_HEADER = struct.Struct(">4sBB7s3x")
_NONCE = struct.Struct(">7sIB")
HEADER_BYTES = _HEADER.size
TAG_BYTES = 16
KEY_BYTES = 32
_MOST_CHUNKS = 2**32
_AT_ONCE_BYTES = 1 << 18
"""How much is asked of the storage, or given to it, at once."""


class EnvelopeBroken(Exception):
    """The bytes are not those that were sealed at this place under this key. The text holds none of them."""


@dataclass(frozen=True, slots=True)
class Place:
    """Whose bytes they are, which, and where they may be read; part of every chunk's tag."""

    tenant: UUID
    object_id: UUID
    region: str

    def as_bytes(self) -> bytes:
        """One form for each place: the parts before the last have fixed lengths."""
        return self.tenant.bytes + self.object_id.bytes + self.region.encode()


class Source(Protocol):
    """Sealed bytes, readable at any offset."""

    @property
    def size_bytes(self) -> int:
        """How many there are."""

    def read_at(self, offset: int, buffer: memoryview) -> int:
        """Fill a buffer from an offset; returns how many bytes were there."""


class Sealer:
    """Seals a stream: `write` any number of times, then `finish` once."""

    def __init__(
        self, sink: Callable[[memoryview], object], key: bytes, place: Place, *, chunk_log2: int = CHUNK_LOG2
    ) -> None:
        """Begin with the header.

        Args:
            sink: takes sealed bytes; what it is given changes with the next call.
            key: 32 bytes that seal nothing else.
            place: see Place.
            chunk_log2: of the bytes in a chunk.
        """
        if not _LEAST_LOG2 <= chunk_log2 <= _MOST_LOG2:
            raise ValueError("a chunk has between 512 bytes and 16 MiB")
        self._sink, self._cipher = sink, AESGCM(key)
        self._prefix, self._counter = os.urandom(7), 0
        header = _HEADER.pack(MAGIC, VERSION, chunk_log2, self._prefix)
        self._aad = header + place.as_bytes()
        self._chunk = 1 << chunk_log2
        self._held = bytearray(self._chunk)
        self._holds = 0
        self._sealed = memoryview(bytearray(_at_once(self._chunk) * (self._chunk + TAG_BYTES)))
        self._sealed_bytes = 0
        sink(memoryview(header))

    def write(self, data: bytes | bytearray | memoryview) -> None:
        """Seal more bytes. A whole chunk is held back until it is known whether it is the last."""
        view = memoryview(data).cast("B")
        while view.nbytes:
            if self._holds == self._chunk:
                self._seal(memoryview(self._held), is_last=False)
                self._holds = 0
            if not self._holds and view.nbytes > self._chunk:
                self._seal(view[: self._chunk], is_last=False)
                view = view[self._chunk :]
                continue
            count = min(view.nbytes, self._chunk - self._holds)
            self._held[self._holds : self._holds + count] = view[:count]
            self._holds += count
            view = view[count:]

    def finish(self) -> None:
        """Seal what is held as the last chunk, be it empty."""
        self._seal(memoryview(self._held)[: self._holds], is_last=True)
        self._counter = _MOST_CHUNKS
        self._hand_on()

    def _seal(self, plain: memoryview, *, is_last: bool) -> None:
        if self._counter >= _MOST_CHUNKS:
            raise ValueError("the stream is finished, or too long for its counter")
        nonce, end = _nonce(self._prefix, self._counter, is_last=is_last), self._sealed_bytes + plain.nbytes
        sealed = self._sealed[self._sealed_bytes : end + TAG_BYTES]
        self._cipher.encrypt_into(nonce, plain, self._aad, sealed)
        self._counter += 1
        self._sealed_bytes = end + TAG_BYTES
        if self._sealed_bytes == self._sealed.nbytes:
            self._hand_on()

    def _hand_on(self) -> None:
        if self._sealed_bytes:
            self._sink(self._sealed[: self._sealed_bytes])
            self._sealed_bytes = 0


class Opener:
    """Reads sealed bytes at any offset. Opening proves the header and the length, by the last chunk's tag."""

    def __init__(self, source: Source, key: bytes, place: Place) -> None:
        """Open sealed bytes; raises EnvelopeBroken."""
        self._source, self._cipher = source, AESGCM(key)
        header = bytearray(HEADER_BYTES)
        if source.read_at(0, memoryview(header)) != HEADER_BYTES:
            raise EnvelopeBroken("too short for a header")
        magic, version, chunk_log2, self._prefix = _HEADER.unpack(header)
        if (magic, version) != (MAGIC, VERSION) or not _LEAST_LOG2 <= chunk_log2 <= _MOST_LOG2:
            raise EnvelopeBroken("no header of this form")
        self._aad = bytes(header) + place.as_bytes()
        self.chunk_bytes = 1 << chunk_log2
        sealed = source.size_bytes - HEADER_BYTES
        self._chunks = max(1, -(-sealed // (self.chunk_bytes + TAG_BYTES)))
        self.size_bytes = sealed - self._chunks * TAG_BYTES
        least = 0 if self._chunks == 1 else (self._chunks - 1) * self.chunk_bytes + 1
        if self.size_bytes < least or self._chunks > _MOST_CHUNKS:
            raise EnvelopeBroken("no length that a sealed stream has")
        self._read_chunks(self._chunks - 1, self._chunks, 0, memoryview(bytearray()))

    def read_into(self, offset: int, buffer: memoryview) -> None:
        """Fill a buffer with the plain bytes from an offset on.

        Raises:
            EnvelopeBroken: a tag does not hold; the buffer then holds nothing of that chunk.
            ValueError: the range is not within the stream.
        """
        view = buffer.cast("B")
        if offset < 0 or offset + view.nbytes > self.size_bytes:
            raise ValueError("the range is not within the stream")
        at_once = _at_once(self.chunk_bytes)
        while view.nbytes:
            first, skip = divmod(offset, self.chunk_bytes)
            after = min(-(-(offset + view.nbytes) // self.chunk_bytes), first + at_once)
            count = min(after * self.chunk_bytes, offset + view.nbytes) - offset
            self._read_chunks(first, after, skip, view[:count])
            view, offset = view[count:], offset + count

    def _read_chunks(self, first: int, after: int, skip: int, out: memoryview) -> None:
        """Open the chunks from `first` up to `after`; `out` gets what follows their first `skip` bytes."""
        full = self.chunk_bytes + TAG_BYTES
        start = HEADER_BYTES + first * full
        sealed = _scratch("sealed", min(after * full, self._source.size_bytes - HEADER_BYTES) - first * full)
        if self._source.read_at(start, sealed) != sealed.nbytes:
            raise EnvelopeBroken("the stream ends early")
        # One loop without calls of our own: each takes as long as opening a kilobyte.
        open_into, prefix, aad, last = self._cipher.decrypt_into, self._prefix, self._aad, self._chunks - 1
        at, to, wanted = 0, 0, out.nbytes
        for number in range(first, after):
            piece = sealed[at : at + full]
            size = piece.nbytes - TAG_BYTES
            is_whole = not skip and wanted - to >= size
            plain = out[to : to + size] if is_whole else _scratch("plain", size)
            try:
                open_into(_NONCE.pack(prefix, number, number == last), piece, aad, plain)
            except InvalidTag as error:
                plain[:] = bytes(size)  # OpenSSL writes there what it decrypts before it looks at the tag
                raise EnvelopeBroken(f"the tag of chunk {number} does not hold") from error
            if not is_whole:
                size = min(size - skip, wanted - to)
                out[to : to + size] = plain[skip : skip + size]
                skip = 0
            at, to = at + full, to + size


def _at_once(chunk: int) -> int:
    return max(1, _AT_ONCE_BYTES // chunk)


class _Buffers(threading.local):
    """Each thread's scratch, by use: thousands of open streams share one."""

    def __init__(self) -> None:
        self.by_use: dict[str, bytearray] = {}


_buffers = _Buffers()


def _scratch(use: str, size: int) -> memoryview:
    held = _buffers.by_use.get(use)
    if held is None or len(held) < size:
        held = _buffers.by_use[use] = bytearray(size)
    return memoryview(held)[:size]


def _nonce(prefix: bytes, number: int, *, is_last: bool) -> bytes:
    return _NONCE.pack(prefix, number, is_last)
