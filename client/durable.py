"""Files that survive a power cut, and locks between processes. On return, what was written is on the disk."""

from __future__ import annotations

import contextlib
import fcntl
import os
import time
from collections.abc import Iterator
from pathlib import Path

from client.errors import ClientError
from client.i18n import _

_FULL_SYNC: int | None = getattr(fcntl, "F_FULLFSYNC", None)
"""On Apple systems fsync leaves the bytes in the drive's cache; this empties it."""


def sync_file(descriptor: int) -> None:
    """Force a file's bytes to the disk."""
    if _FULL_SYNC is None:
        os.fsync(descriptor)
        return
    try:
        fcntl.fcntl(descriptor, _FULL_SYNC)
    except OSError:  # a file system without it (a network share)
        os.fsync(descriptor)


def sync_folder(folder: Path) -> None:
    """Force a folder's entries to the disk: without it a new file's name may vanish."""
    descriptor = os.open(folder, os.O_RDONLY | os.O_DIRECTORY)
    try:
        sync_file(descriptor)
    finally:
        os.close(descriptor)


def private_folder(folder: Path) -> Path:
    """Make a folder, its parents too, that only this account can enter."""
    try:
        folder.mkdir(parents=True, exist_ok=True, mode=0o700)
        folder.chmod(0o700)
        sync_folder(folder.parent)
    except OSError as error:
        raise unwritable(folder, error) from error
    return folder


def write_whole(path: Path, content: bytes, *, mode: int = 0o600) -> None:
    """Replace a file as a whole: after a crash it holds either the old bytes or all of the new ones."""
    temporary = path.with_name(f".{path.name}.new")
    try:
        temporary.unlink(missing_ok=True)  # a crash may have left one, read-only even
        descriptor = os.open(temporary, os.O_WRONLY | os.O_CREAT | os.O_EXCL | os.O_CLOEXEC, 0o600)
        try:
            write_all(descriptor, content)
            sync_file(descriptor)
        finally:
            os.close(descriptor)
        temporary.chmod(mode)
        temporary.replace(path)
        sync_folder(path.parent)
    except OSError as error:
        temporary.unlink(missing_ok=True)
        raise unwritable(path, error) from error


def write_all(descriptor: int, content: bytes) -> None:
    """Write every byte, in as many calls as the system wants."""
    left = memoryview(content)
    while left:
        left = left[os.write(descriptor, left) :]


def unwritable(path: Path, error: OSError) -> ClientError:
    """Say in one line that the disk refused; nothing half-written is left behind."""
    return ClientError(
        "cannot_write", _("cannot write {path}: {reason}"), path=str(path), reason=error.strerror or "error"
    )


@contextlib.contextmanager
def locked(path: Path, *, refusal: ClientError, patience_s: float = 0.0) -> Iterator[None]:
    """Hold `path` for this process alone, or raise `refusal` when another one has it.

    The lock goes with the process: a killed one leaves none behind.
    """
    try:
        descriptor = os.open(path, os.O_RDWR | os.O_CREAT | os.O_CLOEXEC, 0o600)
    except OSError as error:
        raise unwritable(path, error) from error
    try:
        deadline = time.monotonic() + patience_s
        while True:
            try:
                fcntl.flock(descriptor, fcntl.LOCK_EX | fcntl.LOCK_NB)
                break
            except BlockingIOError:
                if time.monotonic() >= deadline:
                    raise refusal from None
                time.sleep(0.02)
        yield
    finally:
        os.close(descriptor)


def read_text(path: Path) -> str:
    """Read a small text file, or say in one line why not."""
    try:
        return path.read_text(encoding="utf-8")
    except (OSError, UnicodeDecodeError) as error:
        reason = getattr(error, "strerror", None) or "not text"
        raise ClientError(
            "cannot_read", _("cannot read {path}: {reason}"), path=str(path), reason=reason
        ) from error
