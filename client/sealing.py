"""Secrets of a client on its disk, sealed with this account's local key.

The local key is DPFL_CLIENT_KEY: the base64 of 32 bytes, or a passphrase of at least 16 characters, which is
stretched. Without the variable it is a file that only this account can read, among its configuration and not
beside what it opens, so that a copied or backed-up data folder opens nothing. Who loses the local key enrols
anew; no ledger depends on it.
"""

from __future__ import annotations

import base64
import binascii
import contextlib
import os
from functools import lru_cache
from pathlib import Path

from cryptography.exceptions import InvalidTag
from cryptography.hazmat.primitives.ciphers.aead import AESGCM
from cryptography.hazmat.primitives.hashes import SHA256
from cryptography.hazmat.primitives.kdf.hkdf import HKDF
from cryptography.hazmat.primitives.kdf.scrypt import Scrypt
from platformdirs import user_config_path

from client.durable import private_folder, sync_folder, write_whole
from client.errors import ClientError
from client.i18n import _

VARIABLE = "DPFL_CLIENT_KEY"
_MAGIC = b"DPFLSEAL1"
_SALT_BYTES, _NONCE_BYTES, _KEY_BYTES = 16, 12, 32
_FEWEST_CHARACTERS = 16


def seal_file(path: Path, secret: bytes) -> None:
    """Write a secret as a whole; it is on the disk on return. The file's name is authenticated with it."""
    salt, nonce = os.urandom(_SALT_BYTES), os.urandom(_NONCE_BYTES)
    sealed = AESGCM(_key_for(path, salt)).encrypt(nonce, secret, _MAGIC + path.name.encode())
    write_whole(path, _MAGIC + salt + nonce + sealed)


def unseal_file(path: Path) -> bytes | None:
    """Read a secret; None where the file is none of this form: an older release wrote it in the clear.

    Raises:
        ClientError: `key_exposed` when other accounts can read the file, `key_locked` when the local key is
            another or the file was changed, `no_local_key` when there is no usable local key.
        OSError: it cannot be read.
    """
    if path.stat().st_mode & 0o077:
        raise ClientError("key_exposed", _("other accounts can read {path}: chmod 600 it"), path=str(path))
    content = path.read_bytes()
    if not content.startswith(_MAGIC):
        return None
    salted = content[len(_MAGIC) :]
    salt, nonce, sealed = (
        salted[:_SALT_BYTES],
        salted[_SALT_BYTES : _SALT_BYTES + _NONCE_BYTES],
        salted[_SALT_BYTES + _NONCE_BYTES :],
    )
    try:
        return AESGCM(_key_for(path, salt)).decrypt(nonce, sealed, _MAGIC + path.name.encode())
    except (InvalidTag, ValueError) as error:
        raise ClientError(
            "key_locked",
            _("{path} does not open with this local key: set {variable} to the one that it was made with"),
            path=str(path),
            variable=VARIABLE,
        ) from error


def key_file() -> Path:
    """Where the local key is without the variable."""
    return user_config_path("dpfl", appauthor=False) / "client.key"


def _key_for(path: Path, salt: bytes) -> bytes:
    """The key of one file: another salt, another name, another key."""
    info = f"dpfl client key v1 {path.name}".encode()
    return HKDF(algorithm=SHA256(), length=_KEY_BYTES, salt=salt, info=info).derive(_local_key(salt))


def _local_key(salt: bytes) -> bytes:
    text = os.environ.get(VARIABLE)
    if text is None:
        return _from_file()
    try:
        raw = base64.b64decode(text, validate=True)
    except binascii.Error:
        raw = b""
    if len(raw) == _KEY_BYTES:
        return raw
    if len(text) < _FEWEST_CHARACTERS:
        raise ClientError(
            "no_local_key",
            _("{variable} is neither the base64 of 32 bytes nor a passphrase of {fewest} characters"),
            variable=VARIABLE,
            fewest=_FEWEST_CHARACTERS,
        )
    return _stretched(text, salt)


@lru_cache(maxsize=16)
def _stretched(passphrase: str, salt: bytes) -> bytes:
    return Scrypt(salt=salt, length=_KEY_BYTES, n=2**15, r=8, p=1).derive(passphrase.encode())


def _make(path: Path) -> None:
    """Write a local key, unless another process has just done so: then that one is everybody's."""
    private_folder(path.parent)
    aside = path.with_name(f".{path.name}.{os.getpid()}")
    write_whole(aside, os.urandom(_KEY_BYTES))
    try:
        with contextlib.suppress(FileExistsError):
            os.link(aside, path)
    finally:
        aside.unlink()
    sync_folder(path.parent)


def _from_file() -> bytes:
    path = key_file()
    try:
        if not path.exists():
            _make(path)
        if path.stat().st_mode & 0o077:
            raise ClientError(
                "key_exposed", _("other accounts can read {path}: chmod 600 it"), path=str(path)
            )
        key = path.read_bytes()
    except OSError as error:
        raise ClientError(
            "no_local_key",
            _("{path} cannot be used: {reason}; or set {variable}"),
            path=str(path),
            reason=error.strerror or "error",
            variable=VARIABLE,
        ) from error
    if len(key) != _KEY_BYTES:
        raise ClientError("no_key", _("{path} holds no usable key"), path=str(path))
    return key
