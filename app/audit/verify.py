"""Checking an export with nothing but the file: every leaf, the root, the signatures.

It shows that the entries are those that a signed checkpoint commits to. Whose key signed it is known only if
the key came another way, and that nothing older was dropped only by a checkpoint that was kept elsewhere.
"""

from __future__ import annotations

import json
from collections.abc import Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from typing import Any

from app.audit.checkpoint import Checkpoint, NoteInvalid, PublicKey, parse, verified
from app.audit.merkle import CompactRange, leaf_hash
from app.core.canonical import canonical_bytes
from app.core.i18n import _

FORMAT = "dpfl-audit-export/1"
FEDERATION = "federation"
MOST_LINE_BYTES = 16 * 1024
_MOST_KEYS = 16


class ExportInvalid(Exception):
    """The file is not what a checkpoint commits to; `line` counts from 1."""

    def __init__(self, line: int, reason: str, /, **members: object) -> None:
        super().__init__(f"line {line}: {reason.format_map(members)}")
        self.line, self.reason, self.members = line, reason, members


@dataclass(frozen=True, slots=True)
class Verified:
    """What an export was found to be."""

    checkpoint: Checkpoint
    scope: str
    shown: int
    """Entries that are in the file; of the others there is the hash alone."""
    key: PublicKey
    """The key whose signature counted."""


class _Lines:
    """The lines of a file, each in the one byte form of an object, counted."""

    def __init__(self, lines: Iterable[bytes]) -> None:
        self._lines: Iterator[bytes] = iter(lines)
        self.number = 0

    def next(self, *members: str, optional: Sequence[str] = ()) -> dict[str, Any]:
        """The next line's object, which has these members and no others but optional ones."""
        self.number += 1
        raw = next(self._lines, b"")
        if len(raw) > MOST_LINE_BYTES:
            raise self.wrong(_("the line is too long"))
        if not raw.endswith(b"\n"):
            raise self.wrong(_("the file ends here"))
        try:
            value = json.loads(raw)
            is_own_form = canonical_bytes(value) + b"\n" == raw
        except (ValueError, RecursionError) as error:
            raise self.wrong(_("this is not JSON")) from error
        if not isinstance(value, dict) or not is_own_form:
            raise self.wrong(_("this is not the one byte form of an object"))
        if not set(members) <= set(value) <= {*members, *optional}:
            raise self.wrong(_("the line has to have the members {members}"), members=", ".join(members))
        return value

    def end(self) -> None:
        """Raise if there is more."""
        self.number += 1
        if next(self._lines, b""):
            raise self.wrong(_("something follows the keys"))

    def wrong(self, reason: str, /, **members: object) -> ExportInvalid:
        """The error that names this line."""
        return ExportInvalid(self.number, reason, **members)


def verify(lines: Iterable[bytes], *, key: bytes | None = None, kept: str | None = None) -> Verified:
    """Check an export, read line by line.

    Args:
        lines: with their newlines, as a file that was opened in binary gives them.
        key: the raw Ed25519 public key that has to have signed; None: whichever the file names.
        kept: a checkpoint that was kept from before, which this log has to go on from.
    Raises:
        ExportInvalid: names the first line that is wrong.
    """
    file = _Lines(lines)
    head = file.next("format", "origin", "scope", "size")
    size, scope = head["size"], head["scope"]
    if head["format"] != FORMAT or type(size) is not int or not isinstance(scope, str):
        raise file.wrong(_("this is not the head of a {format}"), format=FORMAT)
    known = None if kept is None else _kept(kept, head)
    tree, shown, known_root = CompactRange(), 0, None
    for index in range(size):
        leaf, is_shown = _leaf(file, index, scope=scope)
        tree.add(leaf)
        shown += is_shown
        if known is not None and tree.size == known.size:
            known_root = tree.root()
    note = file.next("checkpoint")["checkpoint"]
    signed_at = file.number
    keys = _keys(file, file.next("keys")["keys"])
    file.end()
    signed = _signed(signed_at, note, keys, key)
    if (signed.origin, signed.size, signed.root) != (head["origin"], size, tree.root()):
        raise ExportInvalid(signed_at, _("the entries above are not those that were signed"))
    if known is not None and known.root != known_root:
        raise ExportInvalid(
            known.size + 1, _("the log up to here is not that of the checkpoint that was kept")
        )
    counted = next(one for one in keys if key in {None, one.raw})
    return Verified(checkpoint=signed, scope=scope, shown=shown, key=counted)


def _leaf(file: _Lines, index: int, *, scope: str) -> tuple[bytes, bool]:
    """The hash of the next entry, recomputed where the entry is shown."""
    line = file.next("leaf_hash", "leaf_index", optional=("entry",))
    if line["leaf_index"] != index or type(line["leaf_index"]) is not int:
        raise file.wrong(_("entry {index} is not where it belongs"), index=index)
    stated = _hex(line["leaf_hash"])
    if stated is None:
        raise file.wrong(_("this is no leaf's hash"))
    if "entry" not in line:
        if scope == FEDERATION:
            raise file.wrong(_("the entry is missing, and this export shows all"))
        return stated, False
    entry = line["entry"]
    if not isinstance(entry, dict):
        raise file.wrong(_("this is no entry"))
    if leaf_hash(canonical_bytes(entry)) != stated:
        raise file.wrong(_("the entry is not the one that was logged"))
    if scope not in {FEDERATION, entry.get("organisation_id")}:
        raise file.wrong(_("the entry is another organisation's"))
    return stated, True


def _hex(text: object) -> bytes | None:
    try:
        raw = bytes.fromhex(text) if isinstance(text, str) else b""
    except ValueError:
        return None
    return raw if len(raw) == 32 and raw.hex() == text else None


def _keys(file: _Lines, texts: object) -> list[PublicKey]:
    if (
        not isinstance(texts, list)
        or not 0 < len(texts) <= _MOST_KEYS
        or len({*map(str, texts)}) < len(texts)
    ):
        raise file.wrong(_("this is no list of keys"))
    try:
        return [PublicKey.parse(str(one)) for one in texts]
    except NoteInvalid as error:
        raise file.wrong(_("this is no list of keys")) from error


def _signed(line: int, note: object, keys: Sequence[PublicKey], key: bytes | None) -> Checkpoint:
    """The checkpoint, signed by every key that the file names and by no other, `key` among them."""
    if not isinstance(note, str):
        raise ExportInvalid(line, _("this is no checkpoint"))
    if key is not None and key not in {one.raw for one in keys}:
        raise ExportInvalid(line, _("the log is not signed by the key that was given"))
    try:
        for one in keys:
            verified(note, [one])
        return verified(note, keys, by_all=True)
    except NoteInvalid as error:
        raise ExportInvalid(line, _("the checkpoint does not hold: {why}"), why=str(error)) from error


def _kept(note: str, head: Mapping[str, Any]) -> Checkpoint:
    """The checkpoint that was kept, if it can be one of this log and not of a later time."""
    try:
        found, _signatures = parse(note)
    except NoteInvalid as error:
        raise ExportInvalid(1, _("the checkpoint that was kept is none: {why}"), why=str(error)) from error
    if found.origin != head["origin"] or not 0 < found.size <= head["size"]:
        raise ExportInvalid(
            1, _("the checkpoint that was kept is another log's, or of more entries than these")
        )
    return found
