"""The tree at one size as a text that is signed: C2SP tlog-checkpoint in a C2SP signed note, Ed25519. Pure.

    <origin>
    <size>
    <base64 of the root>

    — <key's name> <base64 of 4 bytes of key id and 64 of signature>

A note is taken in its one byte form or not at all.
"""

from __future__ import annotations

import base64
import binascii
import re
from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from hashlib import sha256
from typing import Self

from cryptography.exceptions import InvalidSignature
from cryptography.hazmat.primitives.asymmetric.ed25519 import Ed25519PrivateKey, Ed25519PublicKey

from app.audit.merkle import HASH_BYTES

MOST_CHARACTERS = 4096
_MOST_SIGNATURES = 16
_ED25519 = b"\x01"
"""The signature type in key ids and verifier keys."""
_DASH = "— "
_NAME = re.compile(r"[^\s+\x00-\x1f\x7f]{1,200}")


class NoteInvalid(ValueError):
    """The text is no checkpoint, or not signed by whom it has to be."""


@dataclass(frozen=True, slots=True)
class PublicKey:
    """Who signs: the name in the signature's line, and the raw Ed25519 key."""

    name: str
    raw: bytes

    @property
    def id(self) -> bytes:
        """4 bytes: SHA-256(name | newline | type | key), cut."""
        return sha256(self.name.encode() + b"\n" + _ED25519 + self.raw).digest()[:4]

    @property
    def text(self) -> str:
        """The verifier key as one line, as tools of this format take it: `name+id+key`."""
        return f"{self.name}+{self.id.hex()}+{_encode(_ED25519 + self.raw)}"

    @classmethod
    def parse(cls, text: str) -> Self:
        """Reverse `text`; raises NoteInvalid."""
        name, _plus, rest = text.partition("+")
        raw = _decode(rest.partition("+")[2])
        found = cls(name, raw[1:])
        if not _NAME.fullmatch(name) or len(raw) != 33 or found.text != text:
            raise NoteInvalid("no verifier key")
        return found


@dataclass(frozen=True, slots=True)
class Checkpoint:
    """What is signed."""

    origin: str
    size: int
    root: bytes

    @property
    def text(self) -> str:
        """The signed text, its last newline included."""
        return f"{self.origin}\n{self.size}\n{_encode(self.root)}\n"


@dataclass(frozen=True, slots=True)
class Signature:
    """A line under the text."""

    name: str
    key_id: bytes
    raw: bytes


def sign(checkpoint: Checkpoint, keys: Iterable[tuple[str, Ed25519PrivateKey]]) -> str:
    """The checkpoint with a signature of each key, in their order."""
    lines = []
    for name, key in keys:
        public = PublicKey(name, key.public_key().public_bytes_raw())
        lines.append(_line(Signature(name, public.id, key.sign(checkpoint.text.encode()))))
    return f"{checkpoint.text}\n{''.join(lines)}"


def parse(note: str) -> tuple[Checkpoint, list[Signature]]:
    """Read a note without believing it; raises NoteInvalid."""
    if len(note) > MOST_CHARACTERS:
        raise NoteInvalid("too long")
    text, _blank, below = note.partition("\n\n")
    lines = text.split("\n")
    if len(lines) != 3 or not re.fullmatch(r"0|[1-9][0-9]{0,18}", lines[1], re.ASCII):
        raise NoteInvalid("not of the form of a checkpoint")
    checkpoint = Checkpoint(lines[0], int(lines[1]), _decode(lines[2]))
    signatures = [_signature(line) for line in below.split("\n")[:-1]]
    form = f"{checkpoint.text}\n{''.join(_line(one) for one in signatures)}"
    if form != note or not _NAME.fullmatch(checkpoint.origin) or len(checkpoint.root) != HASH_BYTES:
        raise NoteInvalid("not in the one byte form of a checkpoint")
    if not 0 < len(signatures) <= _MOST_SIGNATURES:
        raise NoteInvalid("without signatures, or with too many")
    return checkpoint, signatures


def verified(note: str, keys: Sequence[PublicKey], *, by_all: bool = False) -> Checkpoint:
    """The checkpoint of a note that one of `keys` signed; raises NoteInvalid.

    Signatures of keys that are not among `keys` are passed over, as the format asks for; with `by_all` they
    are refused, so that no byte of the note is unaccounted for.
    """
    checkpoint, signatures = parse(note)
    known = {(key.name, key.id): key for key in keys}
    held = 0
    for one in signatures:
        key = known.get((one.name, one.key_id))
        if key is None and by_all:
            raise NoteInvalid("signed by a key that is not named")
        if key is not None:
            _verify(key, one, checkpoint.text)
            held += 1
    if not held:
        raise NoteInvalid("not signed by a key that is known")
    return checkpoint


def _verify(key: PublicKey, signature: Signature, text: str) -> None:
    try:
        Ed25519PublicKey.from_public_bytes(key.raw).verify(signature.raw, text.encode())
    except (InvalidSignature, ValueError) as error:
        raise NoteInvalid("a signature does not hold") from error


def _line(signature: Signature) -> str:
    return f"{_DASH}{signature.name} {_encode(signature.key_id + signature.raw)}\n"


def _signature(line: str) -> Signature:
    name, _blank, encoded = line.removeprefix(_DASH).partition(" ")
    raw = _decode(encoded)
    if not line.startswith(_DASH) or not _NAME.fullmatch(name) or len(raw) != 68:
        raise NoteInvalid("not of the form of a signature")
    return Signature(name, raw[:4], raw[4:])


def _encode(raw: bytes) -> str:
    return base64.b64encode(raw).decode()


def _decode(text: str) -> bytes:
    try:
        return base64.b64decode(text, validate=True)
    except (ValueError, binascii.Error) as error:
        raise NoteInvalid("no base64") from error
