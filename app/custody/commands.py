"""What an operator does to keys by hand; `python -m app rewrap | reroot | shred ORGANISATION`."""

from __future__ import annotations

import base64
import binascii
import os
from uuid import UUID

from sqlalchemy.orm import Session

from app.audit.record import Action, record
from app.core.blobs import open_store
from app.core.db import Database
from app.core.settings import Settings
from app.custody import keys, rotation
from app.custody.blobs import derived_root, root_of
from app.custody.wraps import Root

FORMER_ROOT = "DPFL_FORMER_REGION_ROOT_KEY"
"""Base64 of the root that `reroot` moves away from; unset: the one that is derived from the master key."""


def rewrap(settings: Settings, database: Database) -> str:
    """Give the region and its tenants new keys, and wrap the keys of all objects under them.

    Where it is interrupted the periodic job of the same name goes on; nothing is unreadable meanwhile.
    """
    root = root_of(settings)
    with database.run_tx("rotate keys") as session:
        tenants = rotation.rotate(session, root)
        _note(session, Action.STORED_KEYS_ROTATED, f"region:{root.region}", tenants=tenants)
    objects = 0
    while True:
        with database.run_tx("rewrap") as session:
            done = rotation.rewrap(session, root)
        if not done:
            return f"new keys for {tenants} tenants of {root.region}; {objects} objects wrapped anew"
        objects += done


def reroot(settings: Settings, database: Database) -> str:
    """Move the region's keys from a former root to the present one; all at once, or not at all."""
    named = os.environ.get(FORMER_ROOT) or None
    try:
        former = derived_root(settings) if named is None else base64.b64decode(named, validate=True)
    except binascii.Error as error:
        raise ValueError(f"{FORMER_ROOT} must be base64") from error
    if former == (settings.region_root_bytes or derived_root(settings)):
        raise ValueError("the former root and the present one are the same: is the new one set here?")
    with database.run_tx("reroot") as session:
        count = rotation.rewrap_regions(session, Root(former, settings.region), root_of(settings))
        _note(session, Action.STORED_KEYS_REROOTED, f"region:{settings.region}", keys=count)
    return f"{count} keys of {settings.region} are under the present root"


def shred(settings: Settings, database: Database, *, named: str) -> str:
    """Delete every key of an organisation: nothing that is stored of theirs can be read again.

    Their sealed bytes go after that; where this is interrupted, or the store does not answer, by the sweep.
    """
    tenant, store = UUID(named), open_store(settings.blob_url)
    with database.run_tx("shred") as session:
        objects = keys.shred(session, tenant)
        told = {"objects": len(objects)}
        _note(session, Action.STORED_KEYS_SHREDDED, f"organisation:{tenant}", **told)
    for object_id in objects:
        store.delete(object_id.hex)
    return f"{len(objects)} objects of {tenant} can never be read again"


def _note(session: Session, action: Action, subject: str, **details: int) -> None:
    record(session, action=action, actor="operator", organisation_id=None, subject=subject, details=details)
