"""Where sealed bytes lie: a folder of this host, or a bucket. Both take a name once, whole, and durably.

Nothing here knows what the bytes are or whose (app/custody does): names are 32 random hex digits. An object
becomes visible only whole: it is written aside, synced, then published; `publish` returns when it would
outlive a loss of power.
"""

from __future__ import annotations

import errno
import os
import re
import tempfile
import time
from collections.abc import Iterator
from contextlib import suppress
from datetime import UTC, datetime
from pathlib import Path
from types import TracebackType
from typing import BinaryIO, Protocol, Self
from urllib.parse import unquote, urlsplit

from app.core.errors import StorageFull, Unavailable
from app.core.i18n import _

_NAME = re.compile(r"[0-9a-f]{32}")
_NO_SPACE = {errno.ENOSPC, errno.EDQUOT, errno.EFBIG}
STALE_S = 3600.0
"""What was written aside so long ago belongs to a process that is gone."""


class Stored(Protocol):
    """A published object, open for reading at any offset; a context manager."""

    @property
    def size_bytes(self) -> int:
        """Its length."""

    def read_at(self, offset: int, buffer: memoryview) -> int:
        """Fill a buffer from an offset; returns how many bytes were there. Raises Unavailable."""

    def close(self) -> None:
        """Let go of it."""


class Incoming(Protocol):
    """Bytes on their way in; a context manager that discards what was not published."""

    def __enter__(self) -> Self: ...

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None: ...

    def write(self, data: memoryview) -> None:
        """Append bytes; raises StorageFull or Unavailable."""

    def flush(self) -> None:
        """Bring what was written to this host's disk; raises StorageFull or Unavailable."""

    def publish(self) -> None:
        """Make the object visible and durable; raises StorageFull or Unavailable."""


class Store(Protocol):
    """A place for objects."""

    def incoming(self, name: str) -> Incoming:
        """Begin an object; raises StorageFull or Unavailable."""

    def open(self, name: str, *, whole: bool = False) -> Stored:
        """Open an object; raises Unavailable where it is not there.

        `whole` says that every byte will be read, in any order, some more than once: a store that is far away
        then fetches it once.
        """

    def has(self, name: str) -> bool:
        """Say whether the object is there."""

    def delete(self, name: str) -> None:
        """Remove an object; removing what is not there is no error."""

    def names(self, prefix: str) -> Iterator[tuple[str, datetime]]:
        """Names that begin with two hex digits, and when each was published; raises Unavailable."""

    def remove_stale(self) -> int:
        """Remove what dead processes left aside; returns how many."""

    def check(self) -> None:
        """Raise StorageFull or Unavailable where nothing could be written now."""


def open_store(url: str) -> Store:
    """Return the store that BLOB_URL names; raises ValueError for a form that is none."""
    parts = urlsplit(url)
    if parts.scheme == "file" and not parts.netloc and parts.path.startswith("/"):
        return LocalStore(Path(unquote(parts.path)))
    if parts.scheme == "s3":
        from app.core.buckets import BucketStore  # noqa: PLC0415  its library is loaded only where it is used

        return BucketStore.of(url)
    raise ValueError("BLOB_URL is file:///an/absolute/folder or s3://bucket/prefix?endpoint=https://host")


def storage_error(error: OSError) -> StorageFull | Unavailable:
    """What an error of the disk means to a caller."""
    if error.errno in _NO_SPACE:
        return StorageFull(_("no space is left for the bytes"))
    return Unavailable(_("the blob folder cannot be used"))


def checked(name: str) -> str:
    """Return the name; raises ValueError unless it is one that a store takes."""
    if not _NAME.fullmatch(name):
        raise ValueError("an object's name is 32 lower-case hex digits")
    return name


class StoredFile:
    """An object in a file; also what a store that is far away has fetched."""

    def __init__(self, file: BinaryIO) -> None:
        self._file = file
        self.size_bytes = os.fstat(file.fileno()).st_size

    def __enter__(self) -> Self:
        return self

    def __exit__(self, *_exc: object) -> None:
        self.close()

    def read_at(self, offset: int, buffer: memoryview) -> int:
        """Fill a buffer from an offset; returns how many bytes were there. Raises Unavailable."""
        done = 0
        try:
            while done < buffer.nbytes:
                count = os.preadv(self._file.fileno(), [buffer[done:]], offset + done)
                if not count:
                    break
                done += count
        except OSError as error:
            raise Unavailable(_("a stored file is missing or cannot be read")) from error
        return done

    def close(self) -> None:
        """Close the file."""
        self._file.close()


class IncomingFile:
    """An object of a folder, on its way in."""

    def __init__(self, store: LocalStore, name: str) -> None:
        self._store, self._name = store, checked(name)
        try:
            descriptor, path = tempfile.mkstemp(dir=store.aside)
        except OSError as error:
            raise storage_error(error) from error
        self._path: Path | None = Path(path)
        self._file: BinaryIO = os.fdopen(descriptor, "wb")

    def __enter__(self) -> Self:
        return self

    def __exit__(self, *_exc: object) -> None:
        with suppress(OSError):  # an unflushable tail of a file that is thrown away
            self._file.close()
        if self._path is not None:
            self._path.unlink(missing_ok=True)

    def write(self, data: memoryview) -> None:
        """Append bytes; raises StorageFull or Unavailable."""
        try:
            self._file.write(data)
        except OSError as error:
            raise storage_error(error) from error

    def flush(self) -> None:
        """Bring the bytes to the disk itself."""
        try:
            self._file.flush()
            os.fsync(self._file.fileno())
        except OSError as error:
            raise storage_error(error) from error

    def publish(self) -> None:
        """Sync the file, rename it, sync the folder; a new folder's own entry is synced as well."""
        if self._path is None:
            raise ValueError("the object was published already")
        self.flush()
        target = self._store.path(self._name)
        try:
            if not target.parent.is_dir():
                target.parent.mkdir(mode=0o700, exist_ok=True)
                _sync_folder(target.parent.parent)
            os.replace(self._path, target)
            _sync_folder(target.parent)
        except OSError as error:
            raise storage_error(error) from error
        self._path = None


class LocalStore:
    """Objects in a folder of this host: `ab/ab34...`, and `incoming/` for what is not whole yet."""

    def __init__(self, folder: Path) -> None:
        self.folder = folder
        self.aside = folder / "incoming"
        try:
            self.aside.mkdir(mode=0o700, parents=True, exist_ok=True)
        except OSError as error:
            raise storage_error(error) from error

    def path(self, name: str) -> Path:
        """The file of an object, there or not."""
        return self.folder / checked(name)[:2] / name

    def incoming(self, name: str) -> IncomingFile:
        """Begin a file; raises StorageFull or Unavailable."""
        return IncomingFile(self, name)

    def open(self, name: str, *, whole: bool = False) -> StoredFile:
        """Open a file; raises Unavailable where it is not there."""
        try:
            return StoredFile(self.path(name).open("rb", buffering=0))
        except OSError as error:
            raise Unavailable(_("a stored file is missing or cannot be read")) from error

    def has(self, name: str) -> bool:
        """Say whether the file is there."""
        return self.path(name).is_file()

    def delete(self, name: str) -> None:
        """Remove a file; removing what is not there is no error."""
        with suppress(FileNotFoundError):
            self.path(name).unlink()

    def names(self, prefix: str) -> Iterator[tuple[str, datetime]]:
        """Names in one of the 256 folders, and when each was published."""
        for path in sorted((self.folder / prefix).glob("*")):
            with suppress(FileNotFoundError):
                if _NAME.fullmatch(path.name):
                    yield path.name, datetime.fromtimestamp(path.stat().st_mtime, UTC)

    def remove_stale(self) -> int:
        """Remove temporary files whose writer is long gone; returns how many."""
        removed = 0
        for path in self.aside.iterdir():
            with suppress(FileNotFoundError):  # its writer was alive and has just renamed it
                if time.time() - path.stat().st_mtime > STALE_S:
                    path.unlink()
                    removed += 1
        return removed

    def check(self) -> None:
        """Write, sync and discard a few bytes."""
        with self.incoming("0" * 32) as file:
            file.write(memoryview(b"ready?"))
            file.flush()


def _sync_folder(folder: Path) -> None:
    descriptor = os.open(folder, os.O_RDONLY)
    try:
        os.fsync(descriptor)
    finally:
        os.close(descriptor)
