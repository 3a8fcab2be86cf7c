"""Tensors and other large bytes, each tenant's under keys of its own, named by the SHA-256 of what they are.

Putting the same bytes twice is putting them once, within a tenant; two tenants share nothing. What is stored
is sealed (app/core/envelope.py) before it reaches a disk. An object is published first and its key noted
after that: what dies between the two leaves bytes that nobody can read, and the sweep removes them.
"""

from __future__ import annotations

import hashlib
import io
import secrets
from collections.abc import Iterable, Iterator, Sequence
from datetime import UTC, datetime, timedelta
from types import TracebackType
from typing import BinaryIO, Self, cast
from uuid import UUID, uuid4

from sqlalchemy.orm import Session

from app.core.blobs import STALE_S, Store, Stored, open_store
from app.core.crypto import Vault
from app.core.db import Database
from app.core.envelope import EnvelopeBroken, Opener, Place, Sealer
from app.core.i18n import _
from app.core.settings import Settings
from app.custody import wraps
from app.custody.errors import BlobDamaged
from app.custody.index import DatabaseIndex, Index
from app.custody.keys import BlobRef, Located
from app.custody.wraps import Root

_STREAM_BYTES = 1 << 18


class OpenBlob(io.RawIOBase):
    """Plain bytes of an open object, at any offset, none before its tag held. Close it."""

    def __init__(self, stored: Stored, located: Located) -> None:
        """Take over an open object; raises BlobDamaged, having closed it."""
        super().__init__()
        self._stored, self._at = stored, 0
        try:
            self._opener = Opener(stored, located.key, located.place)
            if self._opener.size_bytes != located.size_bytes:
                raise EnvelopeBroken("not as long as it was")
        except EnvelopeBroken as error:
            self.close()
            raise BlobDamaged(_("the stored bytes are not what was put there")) from error
        except BaseException:
            self.close()
            raise
        self.size_bytes = located.size_bytes
        self.chunk_bytes: int = self._opener.chunk_bytes

    def read_into(self, offset: int, buffer: memoryview) -> None:
        """Fill a buffer from an offset; raises BlobDamaged, ValueError for a range that is not there."""
        try:
            self._opener.read_into(offset, buffer)
        except EnvelopeBroken as error:
            raise BlobDamaged(_("the stored bytes are not what was put there")) from error

    def chunks(self, size_bytes: int = _STREAM_BYTES) -> Iterator[bytes]:
        """Everything, in order."""
        for offset in range(0, self.size_bytes, size_bytes):
            chunk = bytearray(min(size_bytes, self.size_bytes - offset))
            self.read_into(offset, memoryview(chunk))
            yield bytes(chunk)

    def file(self) -> BinaryIO:
        """The same as a buffered file, which closes this."""
        return cast("BinaryIO", io.BufferedReader(self))

    def readable(self) -> bool:
        """True."""
        return True

    def seekable(self) -> bool:
        """True."""
        return True

    def tell(self) -> int:
        """Where the next read begins."""
        return self._at

    def seek(self, offset: int, whence: int = io.SEEK_SET) -> int:
        """Move there; never before the beginning."""
        start = {io.SEEK_SET: 0, io.SEEK_CUR: self._at, io.SEEK_END: self.size_bytes}[whence]
        self._at = max(0, start + offset)
        return self._at

    def readinto(self, buffer: object) -> int:
        """Fill a buffer, up to the end; raises BlobDamaged."""
        view = memoryview(cast("bytearray", buffer)).cast("B")
        count = max(0, min(view.nbytes, self.size_bytes - self._at))
        self.read_into(self._at if count else 0, view[:count])
        self._at += count
        return count

    def close(self) -> None:
        """Close the object."""
        if not self.closed:
            self._stored.close()
        super().close()


class BlobWriter:
    """Bytes on their way in; `commit` keeps them, leaving the block without it discards them."""

    def __init__(self, blobs: Blobs, tenant: UUID) -> None:
        self._blobs = blobs
        self._place = Place(tenant, uuid4(), blobs.index.region)
        self._key = wraps.new_key()
        self._hash = hashlib.sha256()
        self.size_bytes = 0
        self._incoming = blobs.store.incoming(self._place.object_id.hex)
        try:
            self._sealer = Sealer(self._incoming.write, self._key, self._place)
        except BaseException:
            self._incoming.__exit__(None, None, None)
            raise

    def __enter__(self) -> Self:
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self._incoming.__exit__(kind, error, trace)

    @property
    def sha256(self) -> str:
        """Hex SHA-256 of what was written so far."""
        return self._hash.hexdigest()

    def write(self, chunk: bytes) -> None:
        """Append a chunk; raises StorageFull or Unavailable."""
        self._sealer.write(chunk)
        self._hash.update(chunk)
        self.size_bytes += len(chunk)

    def commit(self) -> str:
        """Publish the object, then note its key; returns the digest. The same bytes again are kept once."""
        located = self.publish()
        self._blobs.keep(located)
        return located.sha256

    def publish(self) -> Located:
        """Publish the object; unless its key is kept within the hour, it is removed, read by nobody."""
        self._sealer.finish()
        self._incoming.publish()
        return Located(self._place, self._key, self.sha256, self.size_bytes)


class TenantBlobs:
    """The blobs of one tenant, by their digests."""

    def __init__(self, blobs: Blobs, tenant: UUID) -> None:
        self.blobs, self.tenant = blobs, tenant

    def ref(self, digest: str) -> BlobRef:
        """The full name of a blob."""
        return BlobRef(self.tenant, digest)

    def beside(self, tenant: UUID) -> TenantBlobs:
        """Another tenant's: where a run goes on from what another organisation has released."""
        return TenantBlobs(self.blobs, tenant)

    def writer(self) -> BlobWriter:
        """Open a writer; use it as a context manager."""
        return BlobWriter(self.blobs, self.tenant)

    def put(self, data: bytes) -> str:
        """Store bytes that are in memory; returns their digest."""
        with self.writer() as writer:
            writer.write(data)
            return writer.commit()

    def open(self, digest: str) -> OpenBlob:
        """Open a blob; raises BlobGone, WrongRegion, BlobDamaged, or Unavailable where the store lacks it."""
        (located,) = self.blobs.index.find([self.ref(digest)])
        return self.blobs.open(located)

    def read(self, digest: str) -> bytes:
        """The whole blob; for small ones."""
        with self.open(digest) as blob:
            return b"".join(blob.chunks())


class Blobs:
    """A process's way to all blobs that its region may read."""

    def __init__(self, store: Store, index: Index) -> None:
        self.store, self.index = store, index

    @classmethod
    def of_process(cls, settings: Settings, database: Database) -> Blobs:
        """The store and the keys that the settings name."""
        return cls(open_store(settings.blob_url), DatabaseIndex(database, root_of(settings)))

    def of(self, tenant: UUID) -> TenantBlobs:
        """One tenant's."""
        return TenantBlobs(self, tenant)

    def locate(self, refs: Sequence[BlobRef], *, session: Session | None = None) -> list[Located]:
        """Find many at once, in the caller's transaction where one is open; see app/custody/keys.py."""
        return self.index.find(refs, session=session)

    def open(self, located: Located, *, whole: bool = False) -> OpenBlob:
        """Open what was located; raises BlobDamaged, Unavailable. On `whole` see app.core.blobs.Store."""
        return OpenBlob(self.store.open(located.place.object_id.hex, whole=whole), located)

    def keep(self, located: Located, *, session: Session | None = None) -> None:
        """Note a published object's key, and remove the object where these bytes are kept already.

        In the caller's own transaction where the key has to come and go with it.
        """
        kept = self.index.keep(located, session=session)
        if kept == located.place.object_id:
            return
        if self.store.has(kept.hex):
            self.store.delete(located.place.object_id.hex)
            return
        # The key outlived its object: a disk that was lost. What came again takes its place.
        self.index.forget(BlobRef(located.place.tenant, located.sha256), min_age_s=0.0)
        self.keep(located)

    def delete_old(self, ref: BlobRef, *, min_age_s: float) -> None:
        """Remove a blob unless it was put, or put again, within the last `min_age_s` seconds: its key first.

        Removing what is not there is no error.
        """
        object_id = self.index.forget(ref, min_age_s=min_age_s)
        if object_id is not None:
            self.store.delete(object_id.hex)

    def young(self, refs: Iterable[BlobRef], *, within_s: float) -> set[BlobRef]:
        """Those that came within the last `within_s` seconds."""
        return self.index.young(refs, within_s=within_s)

    def tidy(self, prefix: str | None = None) -> int:
        """Remove what dead processes left, and in one of 256 parts what has no key; returns how many."""
        removed, since = self.store.remove_stale(), self.index.since()
        if since is None:  # the tables of keys were restored empty, it may be: then nothing is judged
            return removed
        latest = datetime.now(UTC) - timedelta(seconds=STALE_S)
        listed = self.store.names(prefix or secrets.token_hex(1))
        names = [name for name, published_at in listed if since <= published_at <= latest]
        known = self.index.known(UUID(name) for name in names)
        for name in names:
            if UUID(name) not in known:
                self.store.delete(name)
                removed += 1
        return removed


def root_of(settings: Settings) -> Root:
    """The root of this region's keys: its own, or else one derived from the master key."""
    return Root(settings.region_root_bytes or derived_root(settings), settings.region)


def derived_root(settings: Settings) -> bytes:
    """The root of a process that is given none."""
    return Vault(settings.master_key_bytes).derive("custody-root")
