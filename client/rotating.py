"""Another key for a client: on this disk before the server hears of it, in its place when the server has it.

A crash anywhere is mended by asking again: the key that waits is the one that is offered anew.
"""

from __future__ import annotations

import base64
import os
from collections.abc import Callable
from pathlib import Path

from cryptography.hazmat.primitives.asymmetric.ed25519 import Ed25519PrivateKey

from client.durable import sync_folder
from client.errors import ClientError
from client.profile import Profile, make_key, raw_public_key
from client.session import Session

ROTATION_PREFIX = b"dpfl-rotate-v1\0"
WAITING = "next-key"
Open = Callable[[Ed25519PrivateKey], Session]
"""Opens a session that signs with this key."""


def rotate_key(profile: Profile, open_session: Open, *, overlap_s: int) -> None:
    """Give the client a new key. The present one is taken by the server for `overlap_s` seconds more.

    Rotate between rounds: what was signed for an upload before is refused when the overlap is over.
    Raises ClientError with the server's code.
    """
    waiting = profile.folder / WAITING
    is_asked_again = (waiting / "key.pem").exists()
    present, new = profile.key(), make_key(waiting)
    body = _proofs(profile.config.client_id, present, new) | {"overlap_s": overlap_s}
    path = f"/v1/clients/{profile.config.client_id}/key"
    try:
        with open_session(present) as session:
            session.post(path, body)
    except ClientError as error:
        if not is_asked_again or error.code != "assertion_invalid":
            raise
        # The server took the new key before, and the present one is over by now.
        with open_session(new) as session:
            session.post(path, body)
    _put_in_place(waiting, profile.folder)


def _proofs(client_id: str, present: Ed25519PrivateKey, new: Ed25519PrivateKey) -> dict[str, object]:
    raw = raw_public_key(new)
    message = ROTATION_PREFIX + client_id.encode() + b"\0" + raw
    return {
        "public_key": _base64url(raw),
        "proof": _base64url(present.sign(message)),
        "own_proof": _base64url(new.sign(message)),
    }


def _put_in_place(waiting: Path, folder: Path) -> None:
    os.replace(waiting / "key.pem", folder / "key.pem")
    sync_folder(folder)
    sync_folder(waiting)
    waiting.rmdir()


def _base64url(raw: bytes) -> str:
    return base64.urlsafe_b64encode(raw).rstrip(b"=").decode()
