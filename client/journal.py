"""An append-only file of hash-chained JSON lines. Knows nothing of what the lines mean.

A record exists once `append` has returned: its line and the folder are on the disk. A crash in mid-write
leaves a last line without its end; it was never acknowledged, so it is cut. Anything else that does not
chain is damage, and is refused with the number of its line.
"""

from __future__ import annotations

import hashlib
import json
import os
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from datetime import UTC, datetime
from pathlib import Path
from typing import Any

from client.durable import locked, sync_file, sync_folder, unwritable, write_all
from client.errors import ClientError
from client.i18n import _

_GENESIS = "0" * 64
_LOCK_PATIENCE_S = 10.0


@dataclass(frozen=True)
class Record:
    """One line: what happened, when, and its place in the chain."""

    seq: int
    kind: str
    at: str
    fields: dict[str, Any]
    hash: str


class OpenJournal:
    """The journal while this process holds it. Made by `Journal.open` alone."""

    def __init__(self, path: Path, descriptor: int) -> None:
        self._path = path
        self._descriptor = descriptor
        self.records: list[Record] = []
        self.inode = os.fstat(descriptor).st_ino
        """Number of the file on its file system: moving keeps it there, copying does not."""
        self.cut_bytes = 0
        """Length of an unacknowledged last line that a crash left and that was removed."""
        self._end = 0
        self._load()

    def _load(self) -> None:
        content = _read_all(self._descriptor)
        whole, _newline, torn = content.rpartition(b"\n")
        previous = _GENESIS
        for number, line in enumerate(whole.split(b"\n") if whole else [], start=1):
            record = _parse(line, number=number, previous=previous, path=self._path)
            self.records.append(record)
            previous = record.hash
        self._end = len(content) - len(torn)
        if torn:
            os.ftruncate(self._descriptor, self._end)
            sync_file(self._descriptor)
            self.cut_bytes = len(torn)

    def append(self, kind: str, fields: dict[str, Any]) -> Record:
        """Add a record; it is on the disk on return. On failure nothing of it stays."""
        previous = self.records[-1].hash if self.records else _GENESIS
        at = datetime.now(UTC).isoformat(timespec="seconds").replace("+00:00", "Z")
        body = {"seq": len(self.records) + 1, "kind": kind, "at": at, "fields": fields, "prev": previous}
        digest = hashlib.sha256(_canonical(body)).hexdigest()
        line = _canonical({**body, "hash": digest}) + b"\n"
        try:
            write_all(self._descriptor, line)
            sync_file(self._descriptor)
            sync_folder(self._path.parent)
        except OSError as error:
            self._take_back()
            raise unwritable(self._path, error) from error
        self._end += len(line)
        record = Record(seq=len(self.records) + 1, kind=kind, at=at, fields=fields, hash=digest)
        self.records.append(record)
        return record

    def _take_back(self) -> None:
        try:
            os.ftruncate(self._descriptor, self._end)
            sync_file(self._descriptor)
        except OSError:  # the disk is gone: the next opening cuts the torn line, or reads a whole one
            return


class Journal:
    """The file, closed. `open` reads it, checks it whole and holds it against other processes."""

    def __init__(self, path: Path) -> None:
        self.path = path

    @contextmanager
    def open(self) -> Iterator[OpenJournal]:
        """Hold the journal; waits a little for another process, then raises `ledger_busy`."""
        lock = self.path.with_name(f"{self.path.name}.lock")
        refusal = ClientError(
            "ledger_busy", _("another process holds {path}; try again when it is done"), path=str(self.path)
        )
        with locked(lock, refusal=refusal, patience_s=_LOCK_PATIENCE_S):
            try:
                descriptor = os.open(self.path, os.O_RDWR | os.O_CREAT | os.O_APPEND | os.O_CLOEXEC, 0o600)
            except OSError as error:
                raise unwritable(self.path, error) from error
            try:
                yield OpenJournal(self.path, descriptor)
            finally:
                os.close(descriptor)


def damaged(path: Path, number: int) -> ClientError:
    """Refuse a journal whose lines were changed, reordered or lost."""
    return ClientError(
        "ledger_damaged",
        _("line {line} of {path} does not follow from the lines before it: restore the file"),
        line=number,
        path=str(path),
    )


def _parse(line: bytes, *, number: int, previous: str, path: Path) -> Record:
    try:
        value = json.loads(line)
        stated = value.pop("hash")
        fields, kind, at = value["fields"], value["kind"], value["at"]
        chained = value["seq"] == number and value["prev"] == previous
        right = hashlib.sha256(_canonical(value)).hexdigest() == stated
    except (ValueError, KeyError, TypeError, AttributeError) as error:
        raise damaged(path, number) from error
    if not (chained and right and isinstance(fields, dict) and isinstance(kind, str)):
        raise damaged(path, number)
    return Record(seq=number, kind=kind, at=str(at), fields=fields, hash=stated)


def _canonical(value: Any) -> bytes:
    return json.dumps(
        value, sort_keys=True, separators=(",", ":"), ensure_ascii=False, allow_nan=False
    ).encode()


def _read_all(descriptor: int) -> bytes:
    parts: list[bytes] = []
    os.lseek(descriptor, 0, os.SEEK_SET)
    while part := os.read(descriptor, 1 << 20):
        parts.append(part)
    return b"".join(parts)
