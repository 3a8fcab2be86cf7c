"""The federation's signing keys: made once, sealed in the database, held in memory by each process.

Gateways sign access tokens with the current key and verify with any; workers sign release certificates.
"""

from __future__ import annotations

import secrets
import threading
import time
from dataclasses import dataclass

import sqlalchemy as sa
from cryptography.hazmat.primitives.asymmetric.ed25519 import Ed25519PrivateKey, Ed25519PublicKey
from sqlalchemy.orm import Session

from app.audit.record import Action, record
from app.core.crypto import Vault
from app.core.db import Database
from app.core.errors import Unavailable
from app.core.i18n import _
from app.core.tokens import public_jwk, raw_public
from app.identity.models import KeyState, SigningKey

_PURPOSE = "signing-key"
_RELOAD_PAUSE_S = 2.0
_MAX_AGE_S = 60.0


@dataclass(frozen=True, slots=True)
class _Held:
    """What one process knows of the keys."""

    public: dict[str, bytes]
    current_kid: str
    current: Ed25519PrivateKey


class KeyRing:
    """The keys in memory; an unknown key id reloads them, at most every two seconds."""

    def __init__(self, database: Database, vault: Vault) -> None:
        self._database = database
        self._vault = vault
        self._lock = threading.Lock()
        self._held: _Held | None = None
        self._loaded_at = float("-inf")

    def public_key(self, kid: str) -> Ed25519PublicKey | None:
        """The key of this id, or None when there is none: ids are looked up here and nowhere else."""
        raw = self._fresh().public.get(kid)
        if raw is None and self._age_s() > _RELOAD_PAUSE_S:
            raw = self._reload().public.get(kid)
        return None if raw is None else Ed25519PublicKey.from_public_bytes(raw)

    def current(self) -> tuple[str, Ed25519PrivateKey]:
        """The key that signs, with its id."""
        held = self._fresh()
        return held.current_kid, held.current

    def sign(self, message: bytes) -> tuple[str, bytes]:
        """Sign with the current key: (key id, 64 bytes of Ed25519 signature)."""
        kid, key = self.current()
        return kid, key.sign(message)

    def jwks(self) -> dict[str, list[dict[str, str]]]:
        """The public keys as a JSON web key set (RFC 7517)."""
        return {"keys": [public_jwk(kid, raw) for kid, raw in sorted(self._fresh().public.items())]}

    def _age_s(self) -> float:
        return time.monotonic() - self._loaded_at

    def _fresh(self) -> _Held:
        held = self._held
        return held if held is not None and self._age_s() < _MAX_AGE_S else self._reload()

    def _reload(self) -> _Held:
        with self._lock:
            if self._held is not None and self._age_s() < _RELOAD_PAUSE_S:
                return self._held  # another thread has just done it
            with self._database.run_tx("load_signing_keys") as session:
                rows = list(session.scalars(sa.select(SigningKey)))
            self._held = self._unsealed(rows)
            self._loaded_at = time.monotonic()
            return self._held

    def _unsealed(self, rows: list[SigningKey]) -> _Held:
        current = [row for row in rows if row.state is KeyState.CURRENT]
        if not current:
            raise Unavailable(_("no signing key exists yet: bootstrap has not run"))
        private = self._vault.unseal(_PURPOSE, current[0].sealed_private_key)
        return _Held(
            public={row.kid: row.public_key for row in rows},
            current_kid=current[0].kid,
            current=Ed25519PrivateKey.from_private_bytes(private),
        )


def ensure_signing_keys(session: Session, vault: Vault) -> None:
    """Make the current and the next signing key where there is none. Idempotent within a lock."""
    present = set(session.scalars(sa.select(SigningKey.state)))
    for state in (KeyState.CURRENT, KeyState.NEXT):
        if state not in present:
            session.add(_new_key(vault, state))


def rotate_signing_keys(session: Session, vault: Vault, *, actor: str = "operator") -> None:
    """Let the next key sign, keep the former one for verifying, and publish a new next one.

    The next key has been in the JWKS for a whole period by then, so no verifier meets it unprepared.
    """
    rows = {row.state: row for row in session.scalars(sa.select(SigningKey).with_for_update())}
    if KeyState.CURRENT in rows and KeyState.NEXT in rows:
        rows[KeyState.CURRENT].state = KeyState.RETIRED
        rows[KeyState.NEXT].state = KeyState.CURRENT
        session.flush()
        record(
            session,
            action=Action.SIGNING_KEYS_ROTATED,
            actor=actor,
            organisation_id=None,
            subject=f"signing_key:{rows[KeyState.NEXT].kid}",
            details={"former": rows[KeyState.CURRENT].kid},
        )
    ensure_signing_keys(session, vault)


def _new_key(vault: Vault, state: KeyState) -> SigningKey:
    key = Ed25519PrivateKey.generate()
    return SigningKey(
        kid=secrets.token_urlsafe(12),
        state=state,
        public_key=raw_public(key),
        sealed_private_key=vault.seal(_PURPOSE, key.private_bytes_raw()),
    )
