"""The privacy ledger of one data set: under local trust this, not the server's mirror, is the authority.

It belongs to the data set, so every run and every server that asks for it shares one ceiling. An entry is
on the disk before its method returns; `spend` therefore has to return before a first byte leaves.

A ledger names the inode of its own file, so that a copy made by accident is refused. An older state that is
written back into the same file cannot be told from the ledger that it was.
"""

from __future__ import annotations

import hashlib
import re
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import asdict, dataclass
from datetime import UTC, datetime, timedelta
from pathlib import Path
from typing import Any

from client.amounts import delta_text, epsilon_text
from client.book import Book, Commitment, Contribution, Illegal, Stage
from client.durable import locked, private_folder
from client.errors import ClientError
from client.i18n import _
from client.journal import Journal, OpenJournal, damaged

_LOCK_PATIENCE_S = 60.0
_REASONS = {
    "run_taken": _("this data set already takes part in the run, as another client or under other terms"),
    "run_not_committed": _("the run was never accepted for this data set: fetch it first"),
    "run_disclaimed": _("you signed that nothing is sent for this run"),
    "round_taken": _(
        "an update of this data set for this round may have left: only its bytes are sent again"
    ),
    "round_not_priced": _("the round is not part of the schedule that was priced"),
    "round_replayed": _("this round was sent already, trained from another adapter: nothing more is sent"),
    "update_not_prepared": _("there is no finished update for this round: train it first"),
    "update_changed": _("the update on the disk is not the one in the ledger: nothing is sent"),
    "already_sent": _("an update of this run may have left, so its cost stays"),
}


@dataclass(frozen=True)
class Ceiling:
    """What the holder of the data allows in total, for all runs and servers (integer amounts)."""

    epsilon: int
    delta: int
    epsilon_per_year: int | None = None


@dataclass(frozen=True)
class Terms:
    """What a run will cost this data set: its whole schedule, priced by this client."""

    run_id: str
    client_id: str
    server: str
    manifest_sha256: str
    trust: str
    epsilon: int
    delta: int
    epsilon_by_round: tuple[int, ...]
    unit: str = "example"
    rounds: int = 0


def folder_of(home: Path, dataset: str) -> Path:
    """Name the folder that holds a data set's ledger and policy."""
    readable = re.sub(r"[^A-Za-z0-9_.-]+", "-", dataset).strip(".-")[:40] or "data"
    return home / f"{readable}-{hashlib.sha256(dataset.encode()).hexdigest()[:12]}"


class Ledger:
    """One data set's ledger file. Several processes may use it: each operation holds it briefly."""

    def __init__(self, home: Path, dataset: str) -> None:
        self.home = home
        self.dataset = dataset
        self.folder = folder_of(home, dataset)
        self._journal = Journal(self.folder / "ledger.jsonl")

    def book(self) -> Book:
        """Read what the ledger says now."""
        with self._held() as (book, _journal):
            return book

    def head(self) -> tuple[int, str]:
        """Number of entries, and the hash that chains them all."""
        with self._held() as (_book, journal):
            last = journal.records[-1]
            return last.seq, last.hash

    def enrol_data(self, sha256: str) -> None:
        """Note that a file is this data set; refuse a file that is enrolled under another name.

        One lock over all ledgers of the home: of two processes that enrol one file as two data sets, the
        second sees what the first wrote.
        """
        private_folder(self.home)
        refusal = ClientError(
            "ledger_busy", _("another process holds {path}; try again when it is done"), path=str(self.home)
        )
        with locked(self.home / "enrolling.lock", refusal=refusal, patience_s=_LOCK_PATIENCE_S):
            for other in sorted(self.home.glob("*/ledger.jsonl")):
                if other.parent != self.folder and sha256 in _read(Journal(other)).digests:
                    raise ClientError(
                        "data_known",
                        _("this file is enrolled as the data set {name}: one data set has one ledger"),
                        name=_read(Journal(other)).dataset,
                    )
            with self._held() as (book, journal):
                if sha256 not in book.digests:
                    _write(book, journal, "data", {"sha256": sha256})

    def commit(self, terms: Terms, *, ceiling: Ceiling) -> Commitment:
        """Set the whole schedule of a run aside, once; the same terms again change nothing."""
        with self._held() as (book, journal):
            known = book.commitments.get(terms.run_id)
            if known is None:
                _require_room(book, terms, ceiling)
                _write(book, journal, "commit", asdict(terms))
                return book.commitments[terms.run_id]
        if known.void:
            raise _refused("run_disclaimed")
        if known.manifest_sha256 != terms.manifest_sha256:
            raise manifest_changed(terms.run_id)
        if not known.is_the_same(manifest_sha256=terms.manifest_sha256, client_id=terms.client_id):
            raise _refused("run_taken")
        return known

    def prepare(self, run_id: str, number: int, one: Contribution) -> None:
        """Record a finished update: its file and digest are on the disk, no byte has left."""
        fields = {**asdict(one), "run_id": run_id, "number": number}
        del fields["stage"], fields["receipt"]
        self._enter("prepared", fields)

    def discard(self, run_id: str, number: int, *, sha256: str) -> None:
        """Drop an update of which no byte has left; the round may then be trained again."""
        self._enter("discarded", {"run_id": run_id, "number": number, "sha256": sha256})

    def spend(self, run_id: str, number: int, *, sha256: str) -> None:
        """Record, before the first byte, that this update and no other is sent for the round."""
        self._enter("spent", {"run_id": run_id, "number": number, "sha256": sha256})

    def readdress(self, run_id: str, number: int, one: Contribution) -> None:
        """Let the same bytes answer a round that the server opened again under another id."""
        names = ("round_id", "update_id", "sha256", "adapter_sha256")
        fields = {name: getattr(one, name) for name in names}
        self._enter("readdressed", {**fields, "run_id": run_id, "number": number})

    def acknowledge(self, run_id: str, number: int, *, sha256: str, receipt: dict[str, Any]) -> None:
        """Keep the server's receipt."""
        fields = {"run_id": run_id, "number": number, "sha256": sha256, "receipt": receipt}
        self._enter("sent", fields)

    def void(self, run_id: str) -> None:
        """Give back what a run reserved, for ever without sending: only if no byte ever left."""
        self._enter("void", {"run_id": run_id})

    def rebind(self) -> None:
        """Bind the ledger to the file that it is in now: a person says that the one it was in is gone."""
        with self._held(is_bound=False) as (book, journal):
            _write(book, journal, "bound", {"inode": journal.inode})

    def _enter(self, kind: str, fields: dict[str, Any]) -> None:
        with self._held() as (book, journal):
            _write(book, journal, kind, fields)

    @contextmanager
    def _held(self, *, is_bound: bool = True) -> Iterator[tuple[Book, OpenJournal]]:
        if not self.folder.is_dir():
            private_folder(self.folder)
        with self._journal.open() as journal:
            book = _replay(self._journal.path, journal)
            if not journal.records:
                _write(book, journal, "open", {"dataset": self.dataset})
            if book.dataset != self.dataset:
                raise damaged(self._journal.path, 1)
            if is_bound and book.inode not in {None, journal.inode}:
                raise _copied(self._journal.path)
            if journal.cut_bytes:
                _write(book, journal, "repaired", {"cut_bytes": journal.cut_bytes})
            yield book, journal


def manifest_changed(run_id: str) -> ClientError:
    """Refuse a run whose manifest is another than when this data set joined it."""
    return ClientError(
        "manifest_changed",
        _("run {run} was accepted under another manifest: nothing is trained or sent"),
        run=run_id,
    )


def _read(journal: Journal) -> Book:
    with journal.open() as opened:
        return _replay(journal.path, opened)


def _replay(path: Path, journal: OpenJournal) -> Book:
    book = Book()
    for record in journal.records:
        try:
            book.apply(record.kind, record.fields, at=record.at)
        except (Illegal, KeyError, TypeError, ValueError) as error:
            raise damaged(path, record.seq) from error
    return book


def _write(book: Book, journal: OpenJournal, kind: str, fields: dict[str, Any]) -> None:
    """Check an entry against the book, then put it on the disk; a ledger is bound with its first one."""
    try:
        book.apply(kind, fields, at=_now())
    except Illegal as error:
        raise _refused(error.code) from error
    journal.append(kind, fields)
    if book.inode is None:
        _write(book, journal, "bound", {"inode": journal.inode})


def _copied(path: Path) -> ClientError:
    return ClientError(
        "ledger_copied",
        _(
            "{path} is not the file that its ledger was written in. If it is a copy, delete it and use the "
            "one that it was copied from: two would spend twice. If it was moved, and none is left where it "
            "was, say so with `dpfl client ledger-moved`"
        ),
        path=str(path),
    )


def _require_room(book: Book, terms: Terms, ceiling: Ceiling) -> None:
    if book.epsilon_committed + terms.epsilon > ceiling.epsilon:
        raise ClientError(
            "over_ceiling",
            _("the run costs epsilon {cost}; {left} of this data set's ceiling of {ceiling} is left"),
            cost=epsilon_text(terms.epsilon, spent=True),
            left=epsilon_text(max(ceiling.epsilon - book.epsilon_committed, 0), spent=False),
            ceiling=epsilon_text(ceiling.epsilon, spent=False),
        )
    if book.delta_committed + terms.delta > ceiling.delta:
        raise ClientError(
            "over_ceiling",
            _("the run costs delta {cost}; {left} of this data set's ceiling of {ceiling} is left"),
            cost=delta_text(terms.delta),
            left=delta_text(max(ceiling.delta - book.delta_committed, 0)),
            ceiling=delta_text(ceiling.delta),
        )
    a_year_ago = (datetime.now(UTC) - timedelta(days=365)).isoformat(timespec="seconds")
    in_a_year = book.epsilon_committed_since(a_year_ago.replace("+00:00", "Z")) + terms.epsilon
    if ceiling.epsilon_per_year is not None and in_a_year > ceiling.epsilon_per_year:
        raise ClientError(
            "over_ceiling",
            _("with this run epsilon {sum} would be committed in 365 days; the policy allows {ceiling}"),
            sum=epsilon_text(in_a_year, spent=True),
            ceiling=epsilon_text(ceiling.epsilon_per_year, spent=False),
        )


def _refused(code: str) -> ClientError:
    return ClientError(code, _REASONS[code])


def _now() -> str:
    return datetime.now(UTC).isoformat(timespec="seconds").replace("+00:00", "Z")


__all__ = [
    "Ceiling",
    "Commitment",
    "Contribution",
    "Ledger",
    "Stage",
    "Terms",
    "folder_of",
    "manifest_changed",
]
