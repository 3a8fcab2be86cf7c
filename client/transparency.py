"""The server's audit log, as this client saw it last: it may grow, and never be another.

At the first round the log's key is taken as it comes; from then on every checkpoint has to be signed by a
known key and to go on from the one before (RFC 9162, 2.1.4). A server that shows one client another log than
the next, or that rewrote its past, cannot give that proof. The checkpoint on the disk is what two clients, or
an auditor with an export, compare.

    audit-log.json   in the profile's folder: the keys and the newest checkpoint
"""

from __future__ import annotations

import base64
import json
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from hashlib import sha256
from typing import Annotated, Any

from cryptography.exceptions import InvalidSignature
from cryptography.hazmat.primitives.asymmetric.ed25519 import Ed25519PublicKey
from pydantic import Field

from client.durable import write_whole
from client.errors import ClientError
from client.evidence import Witness
from client.i18n import _
from client.profile import Profile
from client.session import Reply, Session, problem_of
from client.training import Sha256
from client.wire import Answer, parse

_FILE = "audit-log.json"
_MOST_NOTE_BYTES = 8192
_MOST_SIGNATURES = 16
_ED25519 = b"\x01"


class LogKey(Answer):
    """A key that signs the log's checkpoints."""

    name: Annotated[str, Field(min_length=1, max_length=200)]
    public_key: Sha256
    """Raw Ed25519, hex: 32 bytes, as a digest has."""


class LogKeys(Answer):
    """Every key that ever signed."""

    keys: Annotated[list[LogKey], Field(max_length=1000)]


class Consistency(Answer):
    """The proof that one tree begins with another."""

    path: Annotated[list[Sha256], Field(max_length=200)]


@dataclass(frozen=True)
class Head:
    """A checkpoint: how many entries the log has, and the root over them."""

    origin: str
    size: int
    root: bytes


@dataclass(frozen=True)
class Known:
    """What this client holds of the log."""

    keys: tuple[tuple[str, str], ...]
    """(name, raw key in hex)."""
    checkpoint: str
    head: Head
    checked: str | None = None
    """The entry of the newest update that was found in the log."""


def follow(profile: Profile, session: Session, witness: Witness) -> Known | None:
    """See that the server's log goes on from what was seen of it last, and remember it as it is now.

    None as long as the server has no log.

    Raises:
        ClientError: `log_rewritten`, with the log as it was and as it is in the evidence.
    """
    known = _read(profile)
    reply = session.public("GET", "/v1/audit/checkpoint")
    if reply.status == 404 and known is None:
        return None  # nothing was logged yet, or the server is older than its log
    note = _text(reply) if reply.status == 200 else ""
    if known is None:
        keys = _published(session)
    else:
        witness.saw(log_now=note, log_before=known.checkpoint)
        if reply.status not in {200, 404}:
            raise problem_of(reply)
        keys = list(known.keys)
    head, signers = verified(note, keys)
    if known is not None:
        require_grown(session, known.head, head)
        if len(signers) < note.count("\n— "):  # a new key signs beside one that is known
            keys = [one for one in _published(session) if _holds(one, note)] or keys
    now = Known(tuple(keys), note, head, None if known is None else known.checked)
    remember(profile, now)
    return now


def remember(profile: Profile, known: Known) -> None:
    """Keep what was seen of the log."""
    state = {
        "keys": [list(one) for one in known.keys],
        "checkpoint": known.checkpoint,
        "checked": known.checked,
    }
    content = json.dumps(state, indent=2, ensure_ascii=False).encode() + b"\n"
    write_whole(profile.folder / _FILE, content)


def grew(*, first: Head, second: Head, path: Sequence[bytes]) -> bool:
    """Say whether `path` proves that the second log begins with the whole first one (RFC 9162, 2.1.4.2)."""
    if first.size == second.size:
        return not path and first.root == second.root
    hashes = [first.root, *path] if first.size.bit_count() == 1 else list(path)
    if not 0 < first.size < second.size or not hashes:
        return False
    at, last = first.size - 1, second.size - 1
    while at & 1:
        at, last = at >> 1, last >> 1
    former = later = hashes[0]
    for one in hashes[1:]:
        if last == 0:
            return False
        if at & 1 or at == last:
            former, later = node_hash(one, former), node_hash(one, later)
            while at and not at & 1:
                at, last = at >> 1, last >> 1
        else:
            later = node_hash(later, one)
        at, last = at >> 1, last >> 1
    return last == 0 and (former, later) == (first.root, second.root)


def require_grown(session: Session, first: Head, second: Head) -> None:
    """Have the server prove that the second log begins with the first; raises `log_rewritten`."""
    path: list[bytes] = []
    if first.origin == second.origin and first.size < second.size:
        reply = session.public("GET", f"/v1/audit/proofs/consistency?first={first.size}&second={second.size}")
        answer = parse(Consistency, reply.json("log"), what="log") if reply.status == 200 else None
        path = [] if answer is None else [bytes.fromhex(one) for one in answer.path]
    if first.origin != second.origin or not grew(first=first, second=second, path=path):
        raise _rewritten()


def _published(session: Session) -> list[tuple[str, str]]:
    reply = session.public("GET", "/v1/audit/keys")
    if reply.status != 200:
        raise problem_of(reply)
    return [(one.name, one.public_key) for one in parse(LogKeys, reply.json("log"), what="log").keys]


def verified(note: str, keys: Sequence[tuple[str, str]]) -> tuple[Head, list[tuple[str, str]]]:
    """The checkpoint of a note, and who of `keys` signed it; raises `log_rewritten` if nobody did."""
    head = _parsed(note)[0]
    signers = [one for one in keys if _holds(one, note)]
    if not signers:
        raise _rewritten()
    return head, signers


def _holds(key: tuple[str, str], note: str) -> bool:
    name, raw = key[0], bytes.fromhex(key[1])
    key_id = sha256(name.encode() + b"\n" + _ED25519 + raw).digest()[:4]
    head_text, signatures = _parsed(note)[1:]
    for signer, held in signatures:
        if (signer, held[:4]) == (name, key_id):
            try:
                Ed25519PublicKey.from_public_bytes(raw).verify(held[4:], head_text.encode())
            except (InvalidSignature, ValueError):
                continue
            return True
    return False


def _parsed(note: str) -> tuple[Head, str, list[tuple[str, bytes]]]:
    """A note's checkpoint, its signed text and its signatures (name, key id and signature)."""
    text, _blank, below = note.partition("\n\n")
    lines, signed = text.split("\n"), below.removesuffix("\n").split("\n")
    try:
        origin, size, root = lines
        head = Head(origin, int(size), base64.b64decode(root, validate=True))
        split = [line.removeprefix("— ").partition(" ") for line in signed[:_MOST_SIGNATURES]]
        signatures = [(name, base64.b64decode(held, validate=True)) for name, _gap, held in split]
    except ValueError as error:
        raise _rewritten() from error
    if str(head.size) != size or head.size < 1 or len(head.root) != 32:
        raise _rewritten()
    return head, text + "\n", signatures


def node_hash(left: bytes, right: bytes) -> bytes:
    """SHA-256(0x01 | left | right)."""
    return sha256(b"\x01" + left + right).digest()


def _text(reply: Reply) -> str:
    try:
        return reply.content[:_MOST_NOTE_BYTES].decode()
    except UnicodeDecodeError as error:
        raise _rewritten() from error


def _read(profile: Profile) -> Known | None:
    path = profile.folder / _FILE
    try:
        held: Mapping[str, Any] = json.loads(path.read_text(encoding="utf-8"))
        keys = tuple((str(name), bytes.fromhex(raw).hex()) for name, raw in held["keys"])
        checked, note = held["checked"], str(held["checkpoint"])
        return Known(keys, note, _parsed(note)[0], None if checked is None else str(checked))
    except FileNotFoundError:
        return None
    except (OSError, ValueError, KeyError, TypeError, ClientError) as error:
        raise ClientError("log_unreadable", _("{path} cannot be read"), path=str(path)) from error


def _rewritten() -> ClientError:
    return ClientError(
        "log_rewritten",
        _("the server's audit log does not go on from what was seen of it: nothing is fetched or sent"),
    )
