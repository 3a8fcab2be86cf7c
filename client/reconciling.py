"""The client's durable ledger against the server's mirror of it: where the two first say different things.

Pure: entries in, differences out. The client's own ledger is the authority; the mirror is what is examined.
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from dataclasses import dataclass, field
from typing import Any

from client.book import Book, Commitment, Stage
from client.i18n import _
from client.wire import Answer


class MirroredAccount(Answer):
    """The head of the server's mirror."""

    id: str
    kind: str
    entries: int


class MirroredEntry(Answer):
    """One entry of the server's mirror."""

    seq: int
    kind: str
    ref: str
    reserve_ref: str | None
    amount: int
    delta_amount: int
    event: dict[str, Any]
    prev_hash: str
    hash: str


@dataclass(frozen=True)
class Difference:
    """Where the two ledgers part: a stable code, the entry, and a text that is marked for translation."""

    code: str
    where: str
    text: str


@dataclass
class Comparison:
    """What a comparison found: the first difference, or None; and how many charges were harmless extras."""

    first: Difference | None = None
    never_drawn: int = 0
    """Rounds that the server charged under `central` in runs that this client never joined."""
    pending: list[str] = field(default_factory=list)
    """Runs that reserve on the account and that this client has not fetched yet."""


def compare(
    book: Book, account: MirroredAccount, entries: Sequence[MirroredEntry], *, server: str
) -> Comparison:
    """Walk the mirror's entries in their order, then what only the client's ledger holds."""
    found = Comparison()
    for difference in _differences(book, account, entries, server, found):
        found.first = difference
        break
    return found


def _differences(
    book: Book,
    account: MirroredAccount,
    entries: Sequence[MirroredEntry],
    server: str,
    found: Comparison,
) -> Iterator[Difference]:
    yield from _broken_chain(account, entries)
    for entry in entries:
        if entry.kind == "grant":
            continue
        run = book.commitments.get(_run_of(entry))
        if run is None:
            yield from _without_commitment(entry, found)
        else:
            yield from _of_entry(entry, run, is_basic=account.kind == "basic")
    yield from _missing(book, entries, server)


def _broken_chain(account: MirroredAccount, entries: Sequence[MirroredEntry]) -> Iterator[Difference]:
    """Entries that do not follow each other, or are fewer than the account says."""
    previous: MirroredEntry | None = None
    for number, entry in enumerate(entries, start=1):
        if entry.seq != number or (previous is not None and entry.prev_hash != previous.hash):
            yield _at(entry, "chain_broken", _("the entry does not follow the one before it"))
        previous = entry
    if len(entries) < account.entries:  # more may have been added since the account was read
        yield Difference("chain_broken", f"#{len(entries) + 1}", _("entries are missing at the end"))


def _without_commitment(entry: MirroredEntry, found: Comparison) -> Iterator[Difference]:
    """A run that the client never joined: harmless as long as nothing, or only `central`, charges for it."""
    if entry.kind == "reserve":
        found.pending.append(_run_of(entry))
    elif entry.kind == "spend" and entry.event.get("trust") == "central":
        found.never_drawn += 1
    elif entry.kind == "spend":
        yield _at(entry, "unknown_charge", _("the server charges a run that this data set never joined"))


def _of_entry(entry: MirroredEntry, run: Commitment, *, is_basic: bool) -> Iterator[Difference]:
    if entry.event.get("manifest_sha256", run.manifest_sha256) != run.manifest_sha256:
        yield _at(entry, "manifest_differs", _("the server books the run under another manifest"))
    if (
        entry.kind == "reserve"
        and is_basic
        and (entry.amount, entry.delta_amount) != (run.epsilon, run.delta)
    ):
        yield _at(entry, "amount_differs", _("the server reserved another cost than this client computed"))
    if entry.kind == "void" and not run.void:
        yield _at(entry, "not_disclaimed", _("the server gave back what this client never disclaimed"))
    if entry.kind == "spend" and run.trust != "central" and not _may_have_left(entry, run):
        yield _at(entry, "unknown_charge", _("the server charges a round for which nothing was sent"))


def _may_have_left(entry: MirroredEntry, run: Commitment) -> bool:
    number = entry.event.get("round")
    one = run.contributions.get(number) if isinstance(number, int) else None
    return one is not None and one.stage is not Stage.PREPARED


def _missing(book: Book, entries: Sequence[MirroredEntry], server: str) -> Iterator[Difference]:
    """What the client committed, disclaimed or has a receipt for, and the mirror does not hold."""
    held = {(entry.kind, _run_of(entry), entry.event.get("round")) for entry in entries}
    kinds = {(kind, run_id) for kind, run_id, _number in held}
    for run in book.commitments.values():
        if run.server != server or not run.is_private:
            continue
        if ("reserve", run.run_id) not in kinds:
            yield Difference("not_mirrored", f"run {run.run_id}", _("the server holds no reservation for it"))
        if run.void and ("void", run.run_id) not in kinds:
            yield Difference("not_mirrored", f"run {run.run_id}", _("the server did not give its cost back"))
        for number, one in sorted(run.contributions.items()):
            is_due = run.trust == "local" and one.stage is Stage.SENT
            if is_due and ("spend", run.run_id, number) not in held:
                yield Difference(
                    "not_mirrored",
                    f"run {run.run_id}, round {number}",
                    _("the server gave a receipt and charged nothing"),
                )


def _run_of(entry: MirroredEntry) -> str:
    return (entry.reserve_ref or entry.ref).removeprefix("run:")


def _at(entry: MirroredEntry, code: str, text: str) -> Difference:
    return Difference(code, f"#{entry.seq} ({entry.kind} {entry.ref})", text)
