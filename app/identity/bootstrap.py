"""What a federation needs before anybody can do anything: signing keys, an operator, its administrator.

The administrator's API key goes into one file that only its owner may read, and nowhere else.
"""

from __future__ import annotations

import json
import os
import secrets
from dataclasses import dataclass
from pathlib import Path

import sqlalchemy as sa
from sqlalchemy.orm import Session

from app.core.crypto import Vault
from app.core.db import Database
from app.core.settings import Settings
from app.identity import api_keys, service
from app.identity.authentication import API_KEY_PURPOSE
from app.identity.credentials import read_key_id
from app.identity.keys import ensure_signing_keys
from app.identity.models import ApiKey, Member, MemberKind, Organisation
from app.identity.roles import Role

OPERATOR = "operator"
ADMINISTRATOR = "administrator"
_LOCK = 0x6470666C  # "dpfl": one bootstrap at a time


@dataclass(frozen=True, slots=True)
class _Written:
    """A new key on its way into the file."""

    temporary: Path
    target: Path


def bootstrap(settings: Settings, database: Database, vault: Vault, *, admin_file: Path) -> bool:
    """Make what is missing; return whether a new key was written to `admin_file`.

    Idempotent: a file whose key works is left alone. The key is written and synced before the commit that
    makes it work, under another name, and gets its name after: a crash between leaves no half file, and
    the next call makes another key.
    """
    with database.run_tx("bootstrap") as session:
        session.execute(sa.select(sa.func.pg_advisory_xact_lock(_LOCK)))
        ensure_signing_keys(session, vault)
        member = _administrator(session, settings)
        written = None
        if not _works(session, vault, member, admin_file):
            made = api_keys.add_api_key(
                session, vault, member_id=member.id, label="bootstrap", expires_in_s=None
            )
            written = _write(
                admin_file,
                {
                    "url": settings.public_url,
                    "organisation_id": str(member.organisation_id),
                    "member_id": str(member.id),
                    "api_key": made.text,
                },
            )
    if written is not None:
        os.replace(written.temporary, written.target)
    return written is not None


def _administrator(session: Session, settings: Settings) -> Member:
    operator = session.scalar(sa.select(Organisation).where(Organisation.name == OPERATOR))
    if operator is None:
        operator = service.add_organisation(session, name=OPERATOR, region=settings.region)
    member = session.scalar(
        sa.select(Member)
        .where(
            Member.organisation_id == operator.id,
            Member.role == Role.ADMIN,
            Member.name == ADMINISTRATOR,
            Member.suspended_at.is_(None),
        )
        .order_by(Member.id)
        .limit(1)
    )
    if member is None:
        member = Member(
            organisation_id=operator.id, name=ADMINISTRATOR, role=Role.ADMIN, kind=MemberKind.SERVICE
        )
        session.add(member)
        session.flush()
    return member


def _works(session: Session, vault: Vault, member: Member, admin_file: Path) -> bool:
    """Whether the file holds a key of this database that is not revoked."""
    try:
        text = json.loads(admin_file.read_text(encoding="utf-8"))["api_key"]
        key_id = read_key_id(text)
    except (FileNotFoundError, ValueError, KeyError, TypeError):
        return False
    found = session.scalar(
        sa.select(ApiKey.id).where(
            ApiKey.key_id == key_id,
            ApiKey.member_id == member.id,
            ApiKey.secret_hmac == vault.fingerprint(API_KEY_PURPOSE, text),
            ApiKey.revoked_at.is_(None),
        )
    )
    return found is not None


def _write(target: Path, content: dict[str, str]) -> _Written:
    """Write a file that only its owner may read, from its first byte on."""
    temporary = target.with_name(f".{target.name}.{secrets.token_hex(8)}")
    descriptor = os.open(temporary, os.O_WRONLY | os.O_CREAT | os.O_EXCL | os.O_NOFOLLOW, 0o600)
    with os.fdopen(descriptor, "w", encoding="utf-8") as file:
        json.dump(content, file, indent=2)
        file.write("\n")
        file.flush()
        os.fsync(file.fileno())
    return _Written(temporary=temporary, target=target)
