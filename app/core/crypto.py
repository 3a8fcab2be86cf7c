"""Keyed hashing and sealing under the master key. Each use has its own derived key."""

from __future__ import annotations

import hashlib
import hmac
import os

from cryptography.exceptions import InvalidTag
from cryptography.hazmat.primitives.ciphers.aead import AESGCM
from cryptography.hazmat.primitives.hashes import SHA256
from cryptography.hazmat.primitives.kdf.hkdf import HKDF


class SealBroken(Exception):
    """The bytes were not sealed under this key and purpose, or were changed."""


class Vault:
    """Derives one key per purpose from the master key (HKDF-SHA256, RFC 5869)."""

    def __init__(self, master_key: bytes) -> None:
        if len(master_key) != 32:
            raise ValueError("the master key must be 32 bytes")
        self._master_key = master_key

    def _key(self, purpose: str) -> bytes:
        info = f"dpfl/v1/{purpose}".encode()
        return HKDF(algorithm=SHA256(), length=32, salt=None, info=info).derive(self._master_key)

    def derive(self, purpose: str) -> bytes:
        """A key of 32 bytes for what keeps a hierarchy of its own below it."""
        return self._key(purpose)

    def fingerprint(self, purpose: str, secret: str) -> bytes:
        """HMAC-SHA256 of a high-entropy secret; the key is the pepper. 32 bytes."""
        return hmac.new(self._key(purpose), secret.encode(), hashlib.sha256).digest()

    def seal(self, purpose: str, plain: bytes) -> bytes:
        """Encrypt with AES-256-GCM; the purpose is authenticated. Returns nonce and ciphertext."""
        nonce = os.urandom(12)
        return nonce + AESGCM(self._key(purpose)).encrypt(nonce, plain, purpose.encode())

    def unseal(self, purpose: str, sealed: bytes) -> bytes:
        """Reverse `seal`; raises SealBroken."""
        try:
            return AESGCM(self._key(purpose)).decrypt(sealed[:12], sealed[12:], purpose.encode())
        except (InvalidTag, ValueError) as error:
            raise SealBroken(purpose) from error
