"""What every handler is given: the database, the blobs, the keys and the settings."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass

from app.core.crypto import Vault
from app.core.db import Database
from app.core.settings import Settings
from app.custody.blobs import Blobs
from app.identity.keys import KeyRing
from app.jobs.leases import Claim

ACTOR = "worker"
POOL_SIZE = 2


@dataclass(frozen=True, slots=True)
class Context:
    """One worker process's connections and keys."""

    database: Database
    blobs: Blobs
    keys: KeyRing
    settings: Settings
    vault: Vault

    @classmethod
    def open(cls, settings: Settings, database: Database | None = None) -> Context:
        """Connect lazily: nothing is opened before the first job."""
        vault = Vault(settings.master_key_bytes)
        database = database or Database(settings.database_url.get_secret_value(), pool_size=POOL_SIZE)
        return cls(
            database=database,
            blobs=Blobs.of_process(settings, database),
            keys=KeyRing(database, vault),
            settings=settings,
            vault=vault,
        )


Handler = Callable[[Context, Claim], None]
"""Does a job under its claim. It may be run again after dying anywhere, and must come to the same end."""
