"""The server's sealed blobs in a folder, their keys in a file beside them for the processes that share it."""

import json
from pathlib import Path
from uuid import UUID

from app.core.blobs import LocalStore
from app.core.envelope import Place
from app.custody.blobs import Blobs, TenantBlobs
from app.custody.index import MemoryIndex
from app.custody.keys import BlobRef, Located

TENANT = UUID(int=1)
_KEYS = "keys.json"


def sealed_blobs(folder: Path) -> TenantBlobs:
    """Open the blobs of a folder, with the keys that `remember` wrote."""
    index = MemoryIndex()
    if (folder / _KEYS).is_file():
        for sha256, (object_id, key, size_bytes) in json.loads((folder / _KEYS).read_text()).items():
            place = Place(TENANT, UUID(object_id), index.region)
            located = Located(place, bytes.fromhex(key), sha256, size_bytes)
            index.rows[BlobRef(TENANT, sha256)] = (located, 0.0)
    return Blobs(LocalStore(folder), index).of(TENANT)


def remember(blobs: TenantBlobs, folder: Path) -> None:
    """Write the keys for other processes."""
    index = blobs.blobs.index
    if not isinstance(index, MemoryIndex):
        raise TypeError("only keys in memory are written")
    rows = {
        ref.sha256: (located.place.object_id.hex, located.key.hex(), located.size_bytes)
        for ref, (located, _at) in index.rows.items()
    }
    (folder / _KEYS).write_text(json.dumps(rows))
