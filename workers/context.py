"""What every handler is given: the database, the blobs and the settings of its process."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass

from app.core.blobs import LocalBlobs
from app.core.db import Database
from app.core.settings import Settings
from app.jobs.leases import Claim

ACTOR = "worker"
POOL_SIZE = 2


@dataclass(frozen=True, slots=True)
class Context:
    """One worker process's connections."""

    database: Database
    blobs: LocalBlobs
    settings: Settings

    @classmethod
    def open(cls, settings: Settings) -> Context:
        """Connect lazily: nothing is opened before the first job."""
        return cls(
            database=Database(settings.database_url.get_secret_value(), pool_size=POOL_SIZE),
            blobs=LocalBlobs(settings.blob_folder),
            settings=settings,
        )


Handler = Callable[[Context, Claim], None]
"""Does a job under its claim. It may be run again after dying anywhere, and must come to the same end."""
