"""The keys that sign checkpoints: sealed in the database, changed with an overlap in which both sign."""

from __future__ import annotations

from collections.abc import Sequence
from datetime import timedelta
from urllib.parse import quote, urlsplit

import sqlalchemy as sa
from cryptography.hazmat.primitives.asymmetric.ed25519 import Ed25519PrivateKey
from sqlalchemy.orm import Session

from app.audit.checkpoint import PublicKey
from app.audit.models import AuditKey
from app.audit.record import Action, record
from app.core import clock
from app.core.crypto import Vault

OVERLAP = timedelta(days=30)
"""How long a former key goes on signing beside the new one: whoever knows only it learns of the new one."""
_PURPOSE = "audit-key"


def origin_of(public_url: str) -> str:
    """What a log is called, from the address of its server: without scheme, as the format recommends."""
    parts = urlsplit(public_url)
    return quote(f"{parts.netloc}{parts.path.rstrip('/')}/audit", safe="/:[]")


def ensure(session: Session, vault: Vault, *, public_url: str) -> AuditKey:
    """The key that signs, made where there is none; the caller keeps others from doing the same."""
    row = _current(session)
    return row or _add(session, vault, name=origin_of(public_url))


def signers(session: Session, vault: Vault) -> list[tuple[str, Ed25519PrivateKey]]:
    """The private keys that sign a checkpoint now, the newest first."""
    rows = session.scalars(
        sa.select(AuditKey)
        .where(sa.or_(AuditKey.signs_until.is_(None), AuditKey.signs_until > clock.now()))
        .order_by(AuditKey.id.desc())
    )
    unsealed = ((row.name, vault.unseal(_PURPOSE, row.sealed_private_key)) for row in rows)
    return [(name, Ed25519PrivateKey.from_private_bytes(raw)) for name, raw in unsealed]


def rotate(session: Session, vault: Vault, *, actor: str) -> AuditKey | None:
    """Let a new key sign; the former one signs beside it for OVERLAP. None where there is no key yet.

    The log itself says so, in an entry under a checkpoint that both keys sign.
    """
    former = session.scalar(sa.select(AuditKey).where(AuditKey.signs_until.is_(None)).with_for_update())
    if former is None:
        return None
    former.signs_until = clock.now() + OVERLAP
    session.flush()
    new = _add(session, vault, name=former.name)
    record(
        session,
        action=Action.AUDIT_KEY_ROTATED,
        actor=actor,
        organisation_id=None,
        subject=f"audit_key:{new.id}",
        details={"former": former.public_key.hex(), "new": new.public_key.hex()},
    )
    return new


def public_keys(session: Session) -> Sequence[AuditKey]:
    """Every key that ever signed, the newest first."""
    return session.scalars(sa.select(AuditKey).order_by(AuditKey.id.desc())).all()


def public(row: AuditKey) -> PublicKey:
    """The public half."""
    return PublicKey(row.name, row.public_key)


def _current(session: Session) -> AuditKey | None:
    return session.scalar(sa.select(AuditKey).where(AuditKey.signs_until.is_(None)))


def _add(session: Session, vault: Vault, *, name: str) -> AuditKey:
    key = Ed25519PrivateKey.generate()
    row = AuditKey(
        name=name,
        public_key=key.public_key().public_bytes_raw(),
        sealed_private_key=vault.seal(_PURPOSE, key.private_bytes_raw()),
    )
    session.add(row)
    session.flush()
    return row
