"""A folder of an earlier release: what lay there in the clear is sealed for its owners and is gone."""

from __future__ import annotations

import hashlib
from pathlib import Path

from app.core.db import Database
from app.custody.blobs import Blobs
from app.updates.adopting import adopt
from tests.builders import HOME, build_client, build_organisation, build_round, build_run, build_update
from tests.database import settings_for


def plain(folder: Path, content: bytes, *, name: str | None = None) -> Path:
    digest = name or hashlib.sha256(content).hexdigest()
    path = folder / digest[:2] / digest
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_bytes(content)
    return path


def test_plain_files_are_sealed_for_everybody_whose_they_are_and_removed(
    database: Database, database_url: str, tmp_path: Path
) -> None:
    folder = tmp_path / "blobs"
    blobs = Blobs.of_process(settings_for(database_url, folder), database)
    assert adopt(database, blobs) == (0, 0)
    adapter, update = plain(folder, b"an adapter" * 9999), plain(folder, b"an update")
    nobodys, changed = plain(folder, b"nobody's"), plain(folder, b"other bytes", name="ab" * 32)
    with database.run_tx("test") as session:
        run = build_run(session)
        row = build_round(session, run=run, adapter_sha256=adapter.name)
        build_round(session, run=run, number=2, adapter_sha256=changed.name)
        guest = build_client(session, build_organisation(session))
        build_update(session, row, guest.id, blob_sha256=update.name)
        tenant = guest.organisation_id
        other = build_run(session, organisation=build_organisation(session))
        build_round(session, run=other, adapter_sha256=adapter.name)
        second = other.organisation_id
    assert adopt(database, blobs) == (2, 2)
    assert adopt(database, blobs) == (0, 2)
    assert blobs.of(HOME).read(adapter.name) == blobs.of(second).read(adapter.name) == b"an adapter" * 9999
    assert blobs.of(tenant).read(update.name) == b"an update"
    assert (adapter.exists(), update.exists()) == (False, False)
    assert nobodys.read_bytes() == b"nobody's"
    assert changed.read_bytes() == b"other bytes"
    held = [path.read_bytes() for path in folder.glob("??/*") if path not in {nobodys, changed}]
    assert len(held) == 3
    assert not any(b"an adapter" in content or b"an update" in content for content in held)
