"""Liveness and readiness: whether this process runs, and whether it can do its work."""

from __future__ import annotations

from functools import lru_cache
from pathlib import Path
from typing import Literal

import sqlalchemy as sa
import sqlalchemy.exc
from alembic.script import ScriptDirectory
from fastapi import APIRouter, Request
from pydantic import BaseModel

from app.core.db import Database
from app.core.errors import DomainError, Unavailable
from app.core.i18n import _
from app.http.deps import public

router = APIRouter(tags=["operation"])
_MIGRATIONS = Path(__file__).resolve().parents[2] / "migrations"


class NotReady(Unavailable):
    """A part that the gateway needs is missing."""

    code, title = "not_ready", _("Not ready")
    meaning = _("The gateway runs, and a part that it needs is missing; `missing` names it.")
    remedy = _("Start the database, run the migrations and the bootstrap, or free the blob folder's disk.")


class Health(BaseModel):
    """The process answers."""

    status: Literal["ok"] = "ok"


class Readiness(BaseModel):
    """Every part is there."""

    status: Literal["ready"] = "ready"
    schema_revision: str


@router.get("/healthz", dependencies=[public("a probe has no credentials")])
async def get_health() -> Health:
    """Say that the process is alive; asks nothing else."""
    return Health()


@router.get("/readyz", dependencies=[public("a probe has no credentials")])
def get_readiness(request: Request) -> Readiness:
    """Say whether the database, its schema, the blob folder and the signing keys are there."""
    missing = _missing_in_database(request)
    try:
        request.app.state.blobs.store.check()
    except DomainError:
        missing.append("blobs")
    if missing:
        raise NotReady(_("missing: {parts}"), parts=", ".join(missing), missing=missing)
    return Readiness(schema_revision=head_revision())


@lru_cache(maxsize=1)
def head_revision() -> str:
    """The newest migration of this release."""
    return str(ScriptDirectory(str(_MIGRATIONS)).get_current_head())


def _missing_in_database(request: Request) -> list[str]:
    database: Database = request.app.state.database
    try:
        with database.run_tx("readyz") as session:
            has_table = session.scalar(sa.select(sa.func.to_regclass("alembic_version"))) is not None
            found = session.scalar(sa.text("SELECT version_num FROM alembic_version")) if has_table else None
    except sqlalchemy.exc.SQLAlchemyError:
        return ["database"]
    if found != head_revision():
        return ["migrations"]
    try:
        request.app.state.keys.current()
    except DomainError:
        return ["bootstrap"]
    return []
