"""Plain files of an earlier release, which lay under their digests: sealed for their owners, then removed.

Runs before the server starts; does nothing where there is no such file. What dies on the way is done again.
"""

from __future__ import annotations

import hashlib
import re
from collections import defaultdict
from collections.abc import Iterator
from pathlib import Path
from uuid import UUID

import sqlalchemy as sa
from sqlalchemy.orm import Session

from app.core.blobs import LocalStore
from app.core.db import Database
from app.custody.blobs import Blobs
from app.releases.models import Release
from app.rounds.models import Round
from app.runs.models import Run
from app.updates.models import Update

_NAME = re.compile(r"[0-9a-f]{64}")
_BLOCK_BYTES = 1 << 20


def adopt(database: Database, blobs: Blobs) -> tuple[int, int]:
    """Seal every plain file for each tenant whose rows name it; returns how many, and how many nobody names.

    A file that nobody names, or that is not what its name says, stays where it is: a person decides.
    """
    store = blobs.store
    if not isinstance(store, LocalStore):
        return 0, 0
    files = [path for path in store.folder.glob("??/*") if _NAME.fullmatch(path.name)]
    if not files:
        return 0, 0
    with database.run_tx("adopt") as session:
        owners = _owners(session)
    adopted = 0
    for path in files:
        tenants = owners.get(path.name, set())
        if tenants and _sha256(path) == path.name:
            for tenant in sorted(tenants):
                _seal(path, blobs, tenant)
            path.unlink()
            adopted += 1
    return adopted, len(files) - adopted


def _seal(path: Path, blobs: Blobs, tenant: UUID) -> None:
    with blobs.of(tenant).writer() as writer, path.open("rb") as file:
        while block := file.read(_BLOCK_BYTES):
            writer.write(block)
        if writer.sha256 == path.name:
            writer.commit()


def _sha256(path: Path) -> str:
    with path.open("rb") as file:
        return hashlib.file_digest(file, "sha256").hexdigest()


def _owners(session: Session) -> dict[str, set[UUID]]:
    found: dict[str, set[UUID]] = defaultdict(set)
    for tenant, sha256 in _named(session):
        found[sha256].add(tenant)
    return found


def _named(session: Session) -> Iterator[tuple[UUID, str]]:
    for model, columns in (
        (Run, (Run.start_adapter_sha256,)),
        (Round, (Round.adapter_sha256, Round.candidate_sha256, Round.optimizer_sha256)),
        (Release, (Release.adapter_sha256, Release.optimizer_sha256)),
        (Update, (Update.declared_sha256,)),
    ):
        for column in columns:
            rows = session.execute(sa.select(model.organisation_id, column).where(column.is_not(None)))
            yield from ((tenant, str(sha256)) for tenant, sha256 in rows)
