"""Wrapping keys under keys: root, region, tenant, object. Pure.

AES-256-GCM with a random nonce; what is authenticated beside the key says what it is for, so that no wrapped
key can stand in another's place. A wrapped key has 60 bytes.
"""

from __future__ import annotations

import os
from uuid import UUID

from cryptography.exceptions import InvalidTag
from cryptography.hazmat.primitives.ciphers.aead import AESGCM

from app.core.crypto import SealBroken, Vault
from app.core.envelope import KEY_BYTES, Place

_NONCE_BYTES = 12


class WrapBroken(Exception):
    """The key was not wrapped under this one, for this use; or was changed."""


def new_key() -> bytes:
    """32 random bytes."""
    return os.urandom(KEY_BYTES)


def wrap(under: bytes, key: bytes, use: bytes) -> bytes:
    """Encrypt a key; returns nonce, ciphertext and tag."""
    nonce = os.urandom(_NONCE_BYTES)
    return nonce + AESGCM(under).encrypt(nonce, key, use)


def unwrap(under: bytes, wrapped: bytes, use: bytes) -> bytes:
    """Reverse `wrap`; raises WrapBroken."""
    try:
        return AESGCM(under).decrypt(wrapped[:_NONCE_BYTES], wrapped[_NONCE_BYTES:], use)
    except (InvalidTag, ValueError) as error:
        raise WrapBroken from error


def of_tenant(tenant: UUID, key_id: UUID, region: str) -> bytes:
    """The use of a tenant's key."""
    return b"tenant" + tenant.bytes + key_id.bytes + region.encode()


def of_object(place: Place, *, sha256: str, size_bytes: int) -> bytes:
    """The use of an object's key. It holds what the row says of the plain bytes."""
    return b"object" + bytes.fromhex(sha256) + size_bytes.to_bytes(8) + place.as_bytes()


class Root:
    """The root of one region's keys; each region key is sealed under a key derived for it."""

    def __init__(self, root: bytes, region: str) -> None:
        self.region = region
        self._vault = Vault(root)

    def wrap(self, key_id: UUID, key: bytes) -> bytes:
        """Wrap a key of this region."""
        return self._vault.seal(self._purpose(key_id), key)

    def unwrap(self, key_id: UUID, wrapped: bytes) -> bytes:
        """Reverse `wrap`; raises WrapBroken: another region's, or another root's."""
        try:
            return self._vault.unseal(self._purpose(key_id), wrapped)
        except SealBroken as error:
            raise WrapBroken from error

    def _purpose(self, key_id: UUID) -> str:
        return f"region-key/{self.region}/{key_id}"
