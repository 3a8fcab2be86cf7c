"""Where the keys of objects are kept: in the database, or in memory where a process has none."""

from __future__ import annotations

import time
from collections.abc import Iterable, Sequence
from datetime import datetime
from typing import Protocol
from uuid import UUID

from sqlalchemy.orm import Session

from app.core.db import Database
from app.core.i18n import _
from app.custody import keys
from app.custody.errors import BlobGone
from app.custody.keys import BlobRef, Located
from app.custody.wraps import Root


class Index(Protocol):
    """Keys by the names of the bytes that they open; see app/custody/keys.py for each verb."""

    region: str

    def keep(self, located: Located, *, session: Session | None = None) -> UUID:
        """Note an object; returns the one that is kept."""

    def find(self, refs: Sequence[BlobRef], *, session: Session | None = None) -> list[Located]:
        """In the caller's own transaction where one is open: a thread holds one connection."""

    def forget(self, ref: BlobRef, *, min_age_s: float) -> UUID | None:
        """Delete a key; returns its object."""

    def young(self, refs: Iterable[BlobRef], *, within_s: float) -> set[BlobRef]:
        """Those that came lately."""

    def known(self, object_ids: Iterable[UUID]) -> set[UUID]:
        """Those that have a key."""

    def since(self) -> datetime | None:
        """From when on it knows every object; None: it knows of none."""


class DatabaseIndex:
    """Keys wrapped in the database. Nothing is remembered: a key that is deleted there is gone here."""

    def __init__(self, database: Database, root: Root) -> None:
        self._database, self._root, self.region = database, root, root.region

    def keep(self, located: Located, *, session: Session | None = None) -> UUID:
        """See Index."""
        if session is not None:
            return keys.keep(session, self._root, located)
        with self._database.run_tx("keep blob") as own:
            return keys.keep(own, self._root, located)

    def find(self, refs: Sequence[BlobRef], *, session: Session | None = None) -> list[Located]:
        """See Index."""
        if session is not None:
            return keys.find(session, self._root, refs)
        with self._database.run_tx("find blobs") as own:
            return keys.find(own, self._root, refs)

    def forget(self, ref: BlobRef, *, min_age_s: float) -> UUID | None:
        """See Index."""
        with self._database.run_tx("forget blob") as session:
            return keys.forget(session, self._root, ref, min_age_s=min_age_s)

    def young(self, refs: Iterable[BlobRef], *, within_s: float) -> set[BlobRef]:
        """See Index."""
        with self._database.run_tx("young blobs") as session:
            return keys.young(session, self._root, refs, within_s=within_s)

    def known(self, object_ids: Iterable[UUID]) -> set[UUID]:
        """See Index."""
        with self._database.run_tx("known blobs") as session:
            return keys.known(session, object_ids)

    def since(self) -> datetime | None:
        """See Index."""
        with self._database.run_tx("known since") as session:
            return keys.since(session)


class MemoryIndex:
    """Keys of a process without a database, such as a benchmark; they end with it."""

    def __init__(self, region: str = "nowhere") -> None:
        self.region = region
        self.rows: dict[BlobRef, tuple[Located, float]] = {}

    def keep(self, located: Located, *, session: Session | None = None) -> UUID:
        """See Index."""
        ref = BlobRef(located.place.tenant, located.sha256)
        kept, _put_at = self.rows.get(ref, (located, 0.0))
        self.rows[ref] = (kept, time.time())
        return kept.place.object_id

    def find(self, refs: Sequence[BlobRef], *, session: Session | None = None) -> list[Located]:
        """See Index."""
        try:
            return [self.rows[ref][0] for ref in refs]
        except KeyError as error:
            raise BlobGone(_("there are no such bytes, or they were erased")) from error

    def forget(self, ref: BlobRef, *, min_age_s: float) -> UUID | None:
        """See Index."""
        located, put_at = self.rows.get(ref, (None, 0.0))
        if located is None or time.time() - put_at < min_age_s:
            return None
        del self.rows[ref]
        return located.place.object_id

    def young(self, refs: Iterable[BlobRef], *, within_s: float) -> set[BlobRef]:
        """See Index."""
        return {ref for ref in refs if ref in self.rows and time.time() - self.rows[ref][1] < within_s}

    def known(self, object_ids: Iterable[UUID]) -> set[UUID]:
        """See Index."""
        return {located.place.object_id for located, _at in self.rows.values()} & set(object_ids)

    def since(self) -> datetime | None:
        """See Index: keys that end with a process leave nothing to be judged by."""
        return None
