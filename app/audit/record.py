"""Writing to the audit log: one row in the transaction of the act, neither of them without the other.

A leaf stays for ever. Therefore it holds identifiers, codes and whole numbers alone; names, free text and
whatever else may have to be erased go in as commitments, and so does what only the operator may see.
"""

from __future__ import annotations

import re
import secrets
import unicodedata
from collections.abc import Iterator, Mapping, Sequence
from datetime import UTC, datetime
from hashlib import sha256
from typing import Any
from uuid import UUID

import sqlalchemy as sa
from sqlalchemy.orm import Session

from app.audit.actions import Action
from app.audit.merkle import leaf_hash
from app.audit.models import MOST_BYTES, AuditEntry, AuditPersonal
from app.core import clock
from app.core.canonical import canonical_bytes
from app.core.ids import new_id

__all__ = ["Action", "Detail", "commitment", "erase", "record"]

Plain = str | int | bool | None
Detail = Plain | Sequence[Plain] | Mapping[str, Plain]

VERSION = 1
_MOST_CHARACTERS = 200
_LARGEST_INTEGER = 2**53 - 1
"""Beyond it RFC 8785 has no integers."""
_NAME = re.compile(r"[a-z][a-z0-9_]{0,39}")
_SUBJECT = re.compile(r"[a-z_]+(:[A-Za-z0-9._-]+)+")
_UNSEEN = frozenset({"Cc", "Cf", "Cs", "Co", "Zl", "Zp"})
_COMMITMENT = b"dpfl-audit-commitment-v1\0"
_ADD_ENTRY = sa.insert(AuditEntry.metadata.tables["audit_entries"])
_ADD_OPENING = sa.insert(AuditPersonal.metadata.tables["audit_personal"])
"""Plain inserts: an act has one entry, and the unit of work would cost as much as the row."""


def record(
    session: Session,
    *,
    action: Action,
    actor: str,
    organisation_id: UUID | None,
    subject: str,
    details: Mapping[str, Detail] | None = None,
    committed: Mapping[str, Any] | None = None,
    concealed: Mapping[str, Any] | None = None,
) -> UUID:
    """Note an act, in its own transaction; returns the entry's id.

    Args:
        organisation_id: whose auditors may read it; None for what only the federation's may.
        subject: what was acted on, as `kind:id`.
        details: identifiers, codes and integers (nano-units for epsilon); no floats, no names, no free text.
        committed: what may have to be erased: names, addresses, free text. The leaf holds a commitment.
        concealed: what no role may ever be shown, such as who is in a secret cohort or a digest of what is
            not noised. The leaf holds a commitment of the same length whatever the value is.
    Raises:
        ValueError: the caller's mistake: a float, a name that is no identifier, too long.
    """
    entry: dict[str, Any] = {
        "id": new_id(),
        "at": clock.now(),
        "actor": _text(actor),
        "organisation_id": organisation_id,
        "action": str(Action(action)),
        "subject": subject,
    }
    openings = [
        *_openings(entry["id"], committed or {}, concealed=False),
        *_openings(entry["id"], concealed or {}, concealed=True),
    ]
    canonical = _canonical(entry, _checked(details or {}), openings)
    session.execute(_ADD_ENTRY, entry | {"canonical": canonical, "leaf_hash": leaf_hash(canonical)})
    if openings:
        session.execute(_ADD_OPENING, openings)
    return entry["id"]  # type: ignore[no-any-return]  # a UUID, as it was put in


def _canonical(entry: dict[str, Any], details: dict[str, Any], openings: Sequence[dict[str, Any]]) -> bytes:
    """The entry's bytes, which its leaf is the hash of."""
    named = {one["name"]: commitment(one["name"], one["salt"], one["clear"]).hex() for one in openings}
    if len(named) < len(openings) or not _SUBJECT.fullmatch(entry["subject"]):
        raise ValueError(f"a member is committed to twice, or no subject: {entry['subject']!r}")
    owner = entry["organisation_id"]
    canonical = canonical_bytes(
        entry
        | {
            "version": VERSION,
            "id": str(entry["id"]),
            "at": _time(entry["at"]),
            "organisation_id": None if owner is None else str(owner),
            "details": details,
            "commitments": named,
            # Whoever knows a leaf's hash from another entry's proof cannot guess what it is the hash of.
            "nonce": secrets.token_hex(16),
        }
    )
    if len(canonical) > MOST_BYTES:
        raise ValueError(f"an audit entry has at most {MOST_BYTES} bytes")
    return canonical


def commitment(name: str, salt: bytes, clear: bytes) -> bytes:
    """What a leaf holds in a value's place: SHA-256 over prefix, salt (32 bytes), name, NUL and value."""
    return sha256(_COMMITMENT + salt + name.encode() + b"\0" + clear).digest()


def erase(session: Session, *, about: str, actor: str) -> int:
    """Delete for good what was committed to in entries on `about` or by it (`member:<id>`); how many.

    The entries, the tree and every receipt stay as they are. What is concealed stays: it is no person's.
    """
    entries = sa.select(AuditEntry.id).where(sa.or_(AuditEntry.subject == about, AuditEntry.actor == about))
    gone = session.scalars(
        sa.delete(AuditPersonal)
        .where(AuditPersonal.entry_id.in_(entries), AuditPersonal.concealed.is_(False))
        .returning(AuditPersonal.entry_id)
        .execution_options(synchronize_session=False)
    ).all()
    record(
        session,
        action=Action.AUDIT_ERASED,
        actor=actor,
        organisation_id=None,
        subject=about,
        details={"values": len(gone)},
    )
    return len(gone)


def _openings(entry_id: UUID, values: Mapping[str, Any], *, concealed: bool) -> Iterator[dict[str, Any]]:
    for name, value in values.items():
        if not _NAME.fullmatch(name):
            raise ValueError(f"no name of a member: {name!r}")
        yield {
            "entry_id": entry_id,
            "name": name,
            "salt": secrets.token_bytes(32),
            "clear": canonical_bytes(value),
            "concealed": concealed,
        }


def _time(moment: datetime) -> str:
    return moment.astimezone(UTC).strftime("%Y-%m-%dT%H:%M:%S.%fZ")


def _text(text: str) -> str:
    """One line without anything unseen: a log that is read must not be steered by who is written about."""
    seen = text if text.isprintable() else "".join(map(_written_out, text))
    if len(seen) > _MOST_CHARACTERS:
        raise ValueError(f"a text in the audit log has at most {_MOST_CHARACTERS} characters")
    return seen


def _written_out(one: str) -> str:
    return f"\\u{{{ord(one):x}}}" if unicodedata.category(one) in _UNSEEN else one


def _checked(details: Mapping[str, Detail]) -> dict[str, Any]:
    if wrong := [name for name in details if not _NAME.fullmatch(name)]:
        raise ValueError(f"no names of members: {wrong}")
    return {name: _value(value) for name, value in details.items()}


def _value(value: Detail) -> Any:
    match value:
        case None | bool():
            return value
        case str():
            return _text(value)
        case int() if abs(value) <= _LARGEST_INTEGER:
            return value
        case Mapping():
            return _checked(value)
        case list() | tuple():
            return [_value(one) for one in value]
    raise ValueError(f"a {type(value).__name__} does not go into the audit log")
