"""Receiving an update's bytes: under a byte ceiling and a clock, hashed as they come, whole or not at all."""

from __future__ import annotations

import asyncio
import base64
import binascii
import re
from collections import Counter
from collections.abc import AsyncIterator, Iterator, Mapping
from contextlib import contextmanager
from io import BytesIO
from uuid import UUID

from fastapi.concurrency import run_in_threadpool
from starlette.requests import ClientDisconnect

from app.core.errors import BadRequest, Invalid, Unavailable
from app.core.i18n import _
from app.custody.blobs import BlobWriter
from app.updates.wire import LARGEST_HEAD_BYTES, Expected, check_header

IDLE_S = 30.0
"""The longest wait for the next bytes of a body."""
GRACE_S = 60.0
SLOWEST_BYTES_PER_S = 16 * 1024
"""A body has a minute, and as long as this rate takes, in all."""
_DIGEST = re.compile(r"(?:^|,)\s*sha-256=:([A-Za-z0-9+/]{43}=):\s*(?=,|$)")


class LengthRequired(BadRequest):
    """No usable Content-Length."""

    code, title = "length_required", _("Length required")
    meaning = _("The size has to be announced before the body: it is checked, and paid for, first.")
    remedy = _("Send Content-Length, and no chunked transfer coding.")


class DigestMissing(BadRequest):
    """No usable Content-Digest."""

    code, title = "digest_missing", _("Digest missing")
    meaning = _("The header Content-Digest (RFC 9530) with sha-256 has to announce the body.")
    remedy = _("Send Content-Digest: sha-256=:<base64 of the SHA-256>:")


class BodyBroken(BadRequest):
    """The body ended early, or went on too long."""

    code, title = "body_broken", _("The body broke off")
    meaning = _("Fewer or more bytes arrived than were announced. Nothing was kept; the budget stays spent.")
    remedy = _("Send the same bytes again under the same id: that is not charged again.")


class BodyTooSlow(BadRequest):
    """The body did not arrive in time."""

    code, title = "body_too_slow", _("The body came too slowly")
    meaning = _("The bytes did not arrive in time. Nothing was kept; the budget stays spent.")
    remedy = _("Send the same bytes again under the same id: that is not charged again.")
    retry_after_s = 5


class DigestMismatch(Invalid):
    """Other bytes than announced."""

    code, title = "digest_mismatch", _("The digest does not match")
    meaning = _("The bytes that arrived are not those that Content-Digest announced. Nothing was kept.")
    remedy = _("Send the announced bytes again under the same id: that is not charged again.")


class TooManyUploads(Unavailable):
    """One client sends several bodies at once."""

    code, title = "too_many_uploads", _("Too many uploads at once")
    meaning = _("Several bodies of this client are on their way; each takes room on the server's disk.")
    remedy = _("Let the others end, then send the same bytes again after the time in Retry-After.")
    retry_after_s = 5


class Uploads:
    """How many bodies of each client this process receives now. Used on the event loop only."""

    MOST = 4
    """One, and connections that broke without a word until their silence is noticed."""

    def __init__(self) -> None:
        self._running: Counter[UUID] = Counter()

    @contextmanager
    def one(self, client_id: UUID) -> Iterator[None]:
        """Count an upload for the length of a block; raises TooManyUploads."""
        if self._running[client_id] >= self.MOST:
            raise TooManyUploads(_("at most {most} at once"), most=self.MOST)
        self._running[client_id] += 1
        try:
            yield
        finally:
            self._running[client_id] -= 1
            if not self._running[client_id]:
                del self._running[client_id]


def announced(headers: Mapping[str, str]) -> tuple[int, str]:
    """Length and SHA-256 (hex) from the headers; raises LengthRequired or DigestMissing."""
    length = headers.get("content-length", "")
    if not (length.isascii() and length.isdigit() and len(length) < 16) or "transfer-encoding" in headers:
        raise LengthRequired(_("Content-Length is missing or is no number"))
    found = _DIGEST.search(headers.get("content-digest", "")[:1000])
    if found is None:
        raise DigestMissing(_("Content-Digest with sha-256 is missing or malformed"))
    try:
        return int(length), base64.b64decode(found[1], validate=True).hex()
    except binascii.Error as error:
        raise DigestMissing(_("the sha-256 of Content-Digest is not base64")) from error


async def receive(
    chunks: AsyncIterator[bytes], writer: BlobWriter, *, size_bytes: int, sha256: str, expected: Expected
) -> None:
    """Write the body and check it; on return the writer may be committed.

    Raises:
        BodyBroken, BodyTooSlow, DigestMismatch, UpdateMalformed; StorageFull from the writer.
    """
    try:
        async with asyncio.timeout(GRACE_S + size_bytes / SLOWEST_BYTES_PER_S):
            head = await _write_all(chunks, writer, size_bytes=size_bytes)
    except TimeoutError as error:
        raise BodyTooSlow(_("the body did not arrive in time")) from error
    except ClientDisconnect as error:
        raise BodyBroken(_("the connection was closed within the body")) from error
    if writer.size_bytes != size_bytes:
        raise BodyBroken(
            _("{arrived} of {announced} bytes arrived"), arrived=writer.size_bytes, announced=size_bytes
        )
    if writer.sha256 != sha256:
        raise DigestMismatch(_("the bytes are not those that were announced"))
    await run_in_threadpool(check_header, BytesIO(head), size_bytes=size_bytes, expected=expected)


async def _write_all(chunks: AsyncIterator[bytes], writer: BlobWriter, *, size_bytes: int) -> bytes:
    """Write a body; returns its beginning, in which its header lies: what is stored is sealed."""
    head = bytearray()
    while True:
        try:
            async with asyncio.timeout(IDLE_S):
                chunk = await anext(chunks)
        except StopAsyncIteration:
            return bytes(head)
        if writer.size_bytes + len(chunk) > size_bytes:
            raise BodyBroken(
                _("{arrived} of {announced} bytes arrived"),
                arrived=writer.size_bytes + len(chunk),
                announced=size_bytes,
            )
        head += chunk[: LARGEST_HEAD_BYTES - len(head)]
        writer.write(chunk)  # a network chunk, sealed into the page cache; only fsync waits, on a thread
