"""Objects in a bucket of an S3-compatible service, through `obstore`.

Credentials come from the environment (AWS_ACCESS_KEY_ID, AWS_SECRET_ACCESS_KEY, AWS_SESSION_TOKEN), never
from the address. What comes in is kept, sealed, in an unnamed temporary file until it is whole: an upload can
then be tried again, and no thread waits for the network while a client sends.
"""

from __future__ import annotations

import tempfile
from collections.abc import Iterator
from contextlib import suppress
from datetime import datetime, timedelta
from typing import IO, Any, Self
from urllib.parse import parse_qs, urlsplit

import obstore
from obstore.exceptions import AlreadyExistsError, BaseError
from obstore.store import S3Store

from app.core.blobs import StoredFile, checked, storage_error
from app.core.errors import Unavailable
from app.core.i18n import _

PART_BYTES = 8 << 20
"""The size of a part, of what is fetched at once, and the largest object that is put in one request."""
_FAILURES = (BaseError, OSError)
"""What obstore raises: its own errors, and Python's for what is missing or forbidden."""
_CONCURRENCY = 4
_TIMEOUT = timedelta(seconds=60)
_RETRY: Any = {
    "max_retries": 4,
    "retry_timeout": timedelta(seconds=30),
    "backoff": {"init_backoff": timedelta(milliseconds=100), "max_backoff": timedelta(seconds=5), "base": 2},
}


def _unavailable(_error: Exception) -> Unavailable:
    return Unavailable(_("the object store does not answer, or does not have what was asked for"))


class _Remote:
    """An object that is read in windows, each by one ranged request."""

    def __init__(self, store: S3Store, path: str) -> None:
        self._store, self._path = store, path
        self.size_bytes = int(obstore.head(store, path)["size"])
        self._start, self._window = 0, memoryview(b"")

    def __enter__(self) -> Self:
        return self

    def __exit__(self, *_exc: object) -> None:
        self.close()

    def read_at(self, offset: int, buffer: memoryview) -> int:
        done, wanted = 0, min(buffer.nbytes, max(0, self.size_bytes - offset))
        while done < wanted:
            at = offset + done - self._start
            if not 0 <= at < self._window.nbytes:
                self._fetch(offset + done)
                at = offset + done - self._start
            piece = self._window[at : at + wanted - done]
            buffer[done : done + piece.nbytes] = piece
            done += piece.nbytes
        return done

    def _fetch(self, offset: int) -> None:
        length = min(PART_BYTES, self.size_bytes - offset)
        try:
            found = obstore.get_range(self._store, self._path, start=offset, length=length)
        except _FAILURES as error:
            raise _unavailable(error) from error
        self._start, self._window = offset, memoryview(found)
        if self._window.nbytes != length:
            raise Unavailable(_("the object store answered with fewer bytes than it has"))

    def close(self) -> None:
        self._window = memoryview(b"")


class _Upload:
    """An object on its way in, kept aside on this host until it is whole."""

    def __init__(self, store: BucketStore, name: str) -> None:
        self._store, self._name, self._size_bytes = store, name, 0
        try:
            self._file: IO[bytes] = tempfile.TemporaryFile()  # noqa: SIM115  closed on leaving the block
        except OSError as error:
            raise storage_error(error) from error

    def __enter__(self) -> Self:
        return self

    def __exit__(self, *_exc: object) -> None:
        with suppress(OSError):
            self._file.close()

    def write(self, data: memoryview) -> None:
        try:
            self._size_bytes += self._file.write(data)
        except OSError as error:
            raise storage_error(error) from error

    def flush(self) -> None:
        """Find out early that the disk is full; what is durable is decided by the service's answer."""
        try:
            self._file.flush()
        except OSError as error:
            raise storage_error(error) from error

    def publish(self) -> None:
        self.flush()
        self._file.seek(0)
        self._store.put(self._name, self._file, size_bytes=self._size_bytes)


class BucketStore:
    """Objects under `prefix/ab/ab34...` of a bucket."""

    def __init__(self, store: S3Store, prefix: str) -> None:
        self._store, self._prefix = store, prefix

    @classmethod
    def of(cls, url: str) -> BucketStore:
        """Open s3://bucket/prefix?endpoint=https://host&region=name; raises ValueError."""
        parts = urlsplit(url)
        asked = {name: values[-1] for name, values in parse_qs(parts.query, strict_parsing=False).items()}
        unknown = asked.keys() - {"endpoint", "region"}
        if unknown or not parts.hostname or parts.username or parts.password:
            raise ValueError("BLOB_URL is s3://bucket/prefix?endpoint=https://host&region=name, no more")
        endpoint = asked.get("endpoint")
        config: Any = {"region": asked.get("region", "us-east-1")}
        if endpoint is not None:
            config["endpoint"] = endpoint
        plain = endpoint is not None and endpoint.startswith(
            "http://"
        )  # production refuses it in its settings
        options: Any = {"allow_http": plain, "timeout": _TIMEOUT}
        store = S3Store(parts.netloc, config=config, client_options=options, retry_config=_RETRY)
        return cls(store, parts.path.strip("/"))

    def path(self, name: str) -> str:
        """The key of an object, there or not."""
        return "/".join(part for part in (self._prefix, checked(name)[:2], name) if part)

    def incoming(self, name: str) -> _Upload:
        """Begin an object; raises StorageFull or Unavailable."""
        return _Upload(self, checked(name))

    def put(self, name: str, file: IO[bytes], *, size_bytes: int) -> None:
        """Store what a file holds. A name is taken once: the service is asked to refuse a second one.

        In parts where it is large, and then after a look instead: names are random and never used again.
        """
        try:
            if size_bytes <= PART_BYTES:
                with suppress(AlreadyExistsError):  # an answer was lost, and the request repeated
                    obstore.put(self._store, self.path(name), file, mode="create", use_multipart=False)
                return
            if self.has(name):
                raise Unavailable(_("an object of this name is there already"))
            obstore.put(
                self._store,
                self.path(name),
                file,
                use_multipart=True,
                chunk_size=PART_BYTES,
                max_concurrency=_CONCURRENCY,
            )
        except _FAILURES as error:
            raise _unavailable(error) from error

    def open(self, name: str, *, whole: bool = False) -> StoredFile | _Remote:
        """Open an object; raises Unavailable. What is read whole is fetched once, still sealed."""
        try:
            return self._fetched(name) if whole else _Remote(self._store, self.path(name))
        except _FAILURES as error:
            raise Unavailable(_("a stored file is missing or cannot be read")) from error

    def _fetched(self, name: str) -> StoredFile:
        file = tempfile.TemporaryFile()  # noqa: SIM115  it is what is returned
        try:
            for chunk in obstore.get(self._store, self.path(name)).stream(min_chunk_size=PART_BYTES):
                file.write(chunk)
            file.flush()
        except OSError as error:
            file.close()
            if isinstance(error, FileNotFoundError):
                raise
            raise storage_error(error) from error
        except BaseException:
            file.close()
            raise
        return StoredFile(file)

    def has(self, name: str) -> bool:
        """Say whether the object is there; raises Unavailable."""
        try:
            obstore.head(self._store, self.path(name))
        except FileNotFoundError:
            return False
        except _FAILURES as error:
            raise _unavailable(error) from error
        return True

    def delete(self, name: str) -> None:
        """Remove an object; removing what is not there is no error."""
        try:
            with suppress(FileNotFoundError):
                obstore.delete(self._store, self.path(name))
        except _FAILURES as error:
            raise _unavailable(error) from error

    def names(self, prefix: str) -> Iterator[tuple[str, datetime]]:
        """Names that begin with two hex digits, and when each was published; raises Unavailable."""
        folder = "/".join(part for part in (self._prefix, prefix) if part)
        try:
            for batch in obstore.list(self._store, folder):
                yield from ((str(one["path"]).rsplit("/", 1)[-1], one["last_modified"]) for one in batch)
        except _FAILURES as error:
            raise _unavailable(error) from error

    def remove_stale(self) -> int:
        """Nothing: temporary files have no names here, and the bucket's rule ends broken uploads."""
        return 0

    def check(self) -> None:
        """Put and delete an object."""
        name = "0" * 32
        try:
            obstore.put(self._store, self.path(name), b"ready?", use_multipart=False)
        except _FAILURES as error:
            raise _unavailable(error) from error
        self.delete(name)
