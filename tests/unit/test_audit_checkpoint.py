"""Checkpoints are C2SP signed notes: taken in one byte form, by keys that are known, or not at all."""

import random

import pytest
from cryptography.hazmat.primitives.asymmetric.ed25519 import Ed25519PrivateKey

from app.audit.checkpoint import Checkpoint, NoteInvalid, PublicKey, parse, sign, verified

KEYS = [Ed25519PrivateKey.from_private_bytes(bytes([number]) * 32) for number in (1, 2, 3)]
NAME = "lab.example.org/audit"
PUBLIC = [PublicKey(NAME, key.public_key().public_bytes_raw()) for key in KEYS]
CHECKPOINT = Checkpoint(NAME, 1234, bytes(range(32)))
NOTE = sign(CHECKPOINT, [(NAME, KEYS[0])])

# The example key of the format, as golang.org/x/mod/sumdb/note publishes it.
PETER_KEY = "PeterNeumann+c74f20a3+ARpc2QcUPDhMQegwxbzhKqiBfsVkmqq/LDE4izWy10TW"


def test_key_ids_and_verifier_keys_are_those_of_the_format() -> None:
    key = PublicKey.parse(PETER_KEY)
    assert (key.name, key.id.hex(), key.text) == ("PeterNeumann", "c74f20a3", PETER_KEY)


def test_a_checkpoint_has_the_published_form() -> None:
    text, signature = NOTE.split("\n\n")
    assert text == f"{NAME}\n1234\nAAECAwQFBgcICQoLDA0ODxAREhMUFRYXGBkaGxwdHh8="
    assert signature.startswith(f"— {NAME} ")
    assert signature.endswith("\n")
    assert verified(NOTE, PUBLIC[:1]) == CHECKPOINT
    assert parse(NOTE)[1][0].key_id == PUBLIC[0].id


def test_former_and_new_key_both_hold_while_both_sign() -> None:
    note = sign(CHECKPOINT, [(NAME, KEYS[1]), (NAME, KEYS[0])])
    for known in (PUBLIC[:1], PUBLIC[1:2], PUBLIC[:2]):
        assert verified(note, known) == CHECKPOINT
    assert verified(note, PUBLIC[:2], by_all=True) == CHECKPOINT
    with pytest.raises(NoteInvalid, match="not named"):
        verified(note, PUBLIC[:1], by_all=True)


def test_a_note_of_strangers_is_refused() -> None:
    with pytest.raises(NoteInvalid, match="known"):
        verified(NOTE, PUBLIC[1:])
    other_name = PublicKey("another.example.org/audit", PUBLIC[0].raw)
    with pytest.raises(NoteInvalid, match="known"):
        verified(NOTE, [other_name])


def test_every_changed_byte_and_every_cut_is_refused() -> None:
    raw, chance = NOTE.encode(), random.Random(1)
    for at in range(len(raw)):
        for other in {chance.randrange(256), raw[at] ^ 1, 0x20} - {raw[at]}:
            changed = raw[:at] + bytes([other]) + raw[at + 1 :]
            with pytest.raises((NoteInvalid, UnicodeDecodeError)):
                verified(changed.decode(), PUBLIC[:1])
        with pytest.raises((NoteInvalid, UnicodeDecodeError)):
            verified(raw[:at].decode(), PUBLIC[:1])


SIGNATURE = NOTE.split("\n\n")[1]


@pytest.mark.parametrize(
    "wrong",
    [
        "",
        NOTE + "\n",
        NOTE + "x" * 5000,
        NOTE.replace("\n1234\n", "\n01234\n"),
        NOTE.replace("\n1234\n", "\n-1\n"),
        NOTE.replace("\n1234\n", f"\n{2**64}\n"),
        NOTE.replace("\n1234\n", "\n١٢٣٤\n"),
        NOTE.replace("\n\n", "\nan extension\n\n"),
        NOTE.replace("— ", "- "),
        NOTE.replace(SIGNATURE, ""),
        NOTE.replace(SIGNATURE, SIGNATURE * 17),
        NOTE.replace("h8=", "h8"),
        NOTE.replace("h8=", "h9="),
        NOTE.replace(NAME, "a b"),
    ],
)
def test_what_is_no_checkpoint_is_refused(wrong: str) -> None:
    with pytest.raises(NoteInvalid):
        verified(wrong, PUBLIC)


@pytest.mark.parametrize("wrong", ["", "a", "a+b", "a+00000000+AQ==", PETER_KEY + "=", PETER_KEY[:-1] + "X"])
def test_what_is_no_verifier_key_is_refused(wrong: str) -> None:
    with pytest.raises(NoteInvalid):
        PublicKey.parse(wrong)
