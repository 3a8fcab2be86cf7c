"""Blobs of a test without a database."""

from pathlib import Path

from app.core.blobs import LocalStore
from app.custody.blobs import Blobs, TenantBlobs
from app.custody.index import MemoryIndex
from tests.builders import HOME


def memory_blobs(folder: Path) -> TenantBlobs:
    """Sealed files in a folder, whose keys end with the test."""
    return Blobs(LocalStore(folder), MemoryIndex()).of(HOME)
