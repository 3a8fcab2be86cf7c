"""Content-addressed storage of tensors and other large bytes, in a folder.

A blob's name is the SHA-256 of its bytes, so putting it twice is putting it once. Bytes become visible
only whole: they are written to a temporary file, synced, then renamed.
"""

from __future__ import annotations

import errno
import hashlib
import os
import re
import tempfile
import time
from collections.abc import Iterator
from contextlib import suppress
from pathlib import Path
from typing import BinaryIO, Self
from uuid import uuid4

from app.core.errors import StorageFull, Unavailable
from app.core.i18n import _

_NAME = re.compile(r"[0-9a-f]{64}")
_NO_SPACE = {errno.ENOSPC, errno.EDQUOT, errno.EFBIG}


def _storage_error(error: OSError) -> StorageFull | Unavailable:
    if error.errno in _NO_SPACE:
        return StorageFull(_("no space is left for the bytes"))
    return Unavailable(_("the blob folder cannot be used"))


class BlobWriter:
    """Bytes on their way in; `commit` publishes them, leaving the block without it discards them."""

    def __init__(self, store: LocalBlobs) -> None:
        self._store = store
        self._hash = hashlib.sha256()
        self.size_bytes = 0
        try:
            descriptor, name = tempfile.mkstemp(dir=store.incoming)
        except OSError as error:
            raise _storage_error(error) from error
        self._path: Path | None = Path(name)
        self._file: BinaryIO = os.fdopen(descriptor, "wb")

    def __enter__(self) -> Self:
        return self

    def __exit__(self, *_exc: object) -> None:
        with suppress(OSError):  # an unflushable tail of a file that is thrown away
            self._file.close()
        if self._path is not None:
            self._path.unlink(missing_ok=True)

    @property
    def sha256(self) -> str:
        """Hex SHA-256 of what was written so far."""
        return self._hash.hexdigest()

    @property
    def path(self) -> Path:
        """The temporary file, for checks before `commit`; call `flush` first."""
        if self._path is None:
            raise ValueError("the blob was committed already")
        return self._path

    def write(self, chunk: bytes) -> None:
        """Append a chunk; raises StorageFull or Unavailable."""
        try:
            self._file.write(chunk)
        except OSError as error:
            raise _storage_error(error) from error
        self._hash.update(chunk)
        self.size_bytes += len(chunk)

    def flush(self) -> None:
        """Bring the bytes to the disk itself."""
        try:
            self._file.flush()
            os.fsync(self._file.fileno())
        except OSError as error:
            raise _storage_error(error) from error

    def commit(self) -> str:
        """Publish the bytes under their digest and return it. Idempotent for equal bytes."""
        self.flush()
        target = self._store.path(self.sha256)
        try:
            target.parent.mkdir(mode=0o700, exist_ok=True)
            os.replace(self.path, target)
            _sync_folder(target.parent)
        except OSError as error:
            raise _storage_error(error) from error
        self._path = None
        return self.sha256


class LocalBlobs:
    """Blobs in a folder of this host: `ab/ab34...`, and `incoming/` for what is not whole yet."""

    def __init__(self, folder: Path) -> None:
        self.folder = folder
        self.incoming = folder / "incoming"
        try:
            self.incoming.mkdir(mode=0o700, parents=True, exist_ok=True)
        except OSError as error:
            raise _storage_error(error) from error

    def path(self, digest: str) -> Path:
        """The file of a blob, there or not. Raises ValueError unless `digest` is 64 hex digits."""
        if not _NAME.fullmatch(digest):
            raise ValueError("a blob's name is 64 lower-case hex digits")
        return self.folder / digest[:2] / digest

    def has(self, digest: str) -> bool:
        """Say whether the blob is there."""
        return self.path(digest).is_file()

    def writer(self) -> BlobWriter:
        """Open a writer; use it as a context manager."""
        return BlobWriter(self)

    def put(self, data: bytes) -> str:
        """Store bytes that are in memory; returns their digest."""
        with self.writer() as writer:
            writer.write(data)
            return writer.commit()

    def open(self, digest: str) -> BinaryIO:
        """Open a blob for reading; raises Unavailable when it is not there."""
        try:
            return self.path(digest).open("rb")
        except OSError as error:
            raise Unavailable(_("a stored file is missing or cannot be read")) from error

    def read(self, digest: str) -> bytes:
        """The whole blob; for small ones."""
        with self.open(digest) as file:
            return file.read()

    def chunks(self, digest: str, *, size_bytes: int = 1 << 18) -> Iterator[bytes]:
        """Stream a blob."""
        with self.open(digest) as file:
            while chunk := file.read(size_bytes):
                yield chunk

    def delete_old(self, digest: str, *, min_age_s: float) -> None:
        """Remove a blob unless it was put, or put again, within the last `min_age_s` seconds.

        It is moved aside before its age is read: the same bytes that come again between the look and the
        removal are another file by then, and stay. Removing what is not there is no error.
        """
        path, aside = self.path(digest), self.incoming / f"{digest}.{uuid4().hex}"
        with suppress(FileNotFoundError):
            os.replace(path, aside)
            if time.time() - aside.stat().st_mtime < min_age_s:
                with suppress(FileExistsError):
                    os.link(aside, path)
            aside.unlink()


def _sync_folder(folder: Path) -> None:
    descriptor = os.open(folder, os.O_RDONLY)
    try:
        os.fsync(descriptor)
    finally:
        os.close(descriptor)
