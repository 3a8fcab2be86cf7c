"""Keys of stored bytes: who may open what, what rotation moves, and what erasing a key leaves behind."""

from __future__ import annotations

import base64
import os
import signal
import subprocess
import sys
import time
from collections.abc import Callable
from pathlib import Path
from uuid import UUID, uuid4

import pytest
import sqlalchemy as sa
from sqlalchemy.orm import Session

from app.core.blobs import LocalStore
from app.core.db import Database
from app.custody import commands, keys, rotation
from app.custody.blobs import Blobs, TenantBlobs, root_of
from app.custody.errors import BlobDamaged, BlobGone, WrongRegion
from app.custody.index import DatabaseIndex
from app.custody.keys import BlobRef
from app.custody.models import BlobKey, RegionKey, TenantKey
from app.custody.wraps import Root, WrapBroken
from app.jobs import leases
from app.jobs.models import Job
from app.jobs.queue import enqueue
from tests.database import TEST_MASTER_KEY, settings_for
from tests.worker_bench import LEASE_S, context_for
from workers.registry import HANDLERS

A, B = UUID(int=0xA), UUID(int=0xB)
CONTENT = b"the zero update, which many send" * 3000
ROOT = Root(bytes(32), "eu-west-1")
OWN_ROOT = base64.b64encode(b"0123456789abcdef0123456789abcdef").decode()


def blobs_under(root: Root, database: Database, folder: Path) -> Blobs:
    return Blobs(LocalStore(folder), DatabaseIndex(database, root))


@pytest.fixture
def blobs(database: Database, tmp_path: Path) -> Blobs:
    return blobs_under(ROOT, database, tmp_path / "blobs")


def store_of(blobs: Blobs) -> LocalStore:
    assert isinstance(blobs.store, LocalStore)
    return blobs.store


def files(blobs: Blobs) -> list[Path]:
    return sorted(path for path in store_of(blobs).folder.rglob("*") if path.is_file())


def path_of(blobs: Blobs, ref: BlobRef) -> Path:
    (located,) = blobs.locate([ref])
    return store_of(blobs).path(located.place.object_id.hex)


def age(database: Database) -> None:
    with database.run_tx("test") as session:
        session.execute(sa.text("UPDATE blob_keys SET put_at = put_at - interval '1 hour'"))


def let_pass(blobs: Blobs, database: Database) -> None:
    """Let two hours go by for what is there."""
    with database.run_tx("test") as session:
        session.execute(sa.text("UPDATE region_keys SET since = since - interval '1 day'"))
    for path in files(blobs):
        os.utime(path, (time.time() - 7200,) * 2)


def tidied(blobs: Blobs) -> int:
    return sum(blobs.tidy(f"{part:02x}") for part in range(256))


def test_what_is_put_comes_back_and_lies_nowhere_in_the_clear(blobs: Blobs, tmp_path: Path) -> None:
    digest = blobs.of(A).put(CONTENT)
    assert blobs.of(A).read(digest) == CONTENT
    (path,) = files(blobs)
    assert CONTENT[:64] not in path.read_bytes()
    assert digest not in str(path)
    assert list(tmp_path.glob("blobs/incoming/*")) == []


def test_two_tenants_with_the_same_bytes_share_no_file_and_no_key(blobs: Blobs, database: Database) -> None:
    digest = blobs.of(A).put(CONTENT)
    assert blobs.of(B).put(CONTENT) == digest
    one, other = blobs.locate([BlobRef(A, digest), BlobRef(B, digest)])
    assert (one.place.object_id, one.key) != (other.place.object_id, other.key)
    assert len(files(blobs)) == 2
    assert {path.stat().st_nlink for path in files(blobs)} == {1}


def test_the_same_bytes_of_one_tenant_are_kept_once(blobs: Blobs) -> None:
    assert {blobs.of(A).put(CONTENT) for _time in range(3)} == {blobs.of(A).put(CONTENT)}
    assert len(files(blobs)) == 1


def test_one_tenants_bytes_are_not_there_for_another(blobs: Blobs) -> None:
    digest = blobs.of(A).put(CONTENT)
    with pytest.raises(BlobGone):
        blobs.of(B).read(digest)


def _swap_files(blobs: Blobs, _database: Database, one: BlobRef, other: BlobRef) -> None:
    first, second = path_of(blobs, one), path_of(blobs, other)
    held = first.read_bytes()
    first.write_bytes(second.read_bytes())
    second.write_bytes(held)


def _swap_columns(*names: str) -> Callable[[Blobs, Database, BlobRef, BlobRef], None]:
    def swap(_blobs: Blobs, database: Database, one: BlobRef, other: BlobRef) -> None:
        with database.run_tx("test") as session:
            rows = [
                session.scalars(
                    sa.select(BlobKey).where(BlobKey.tenant_id == ref.tenant, BlobKey.sha256 == ref.sha256)
                ).one()
                for ref in (one, other)
            ]
            held = [{name: getattr(row, name) for name in names} for row in rows]
            if "sha256" in names:  # unique within a tenant at every moment
                session.execute(
                    sa.update(BlobKey).where(BlobKey.object_id == rows[0].object_id).values(sha256="f" * 64)
                )
            for row, values in zip(reversed(rows), held, strict=True):
                session.execute(sa.update(BlobKey).where(BlobKey.object_id == row.object_id).values(**values))

    return swap


SWAPS = [
    _swap_files,
    _swap_columns("wrapped_key"),
    _swap_columns("wrapped_key", "tenant_key_id"),
    _swap_columns("sha256", "size_bytes"),
]


@pytest.mark.parametrize("swap", SWAPS)
@pytest.mark.parametrize("tenant", [A, B])
def test_objects_or_keys_that_are_swapped_between_objects_or_tenants_are_refused(
    blobs: Blobs, database: Database, tenant: UUID, swap: Callable[..., None]
) -> None:
    one, other = (
        BlobRef(A, blobs.of(A).put(CONTENT)),
        BlobRef(tenant, blobs.of(tenant).put(CONTENT[:-1] + b"!")),
    )
    swap(blobs, database, one, other)
    for ref in (one, other):
        with pytest.raises((BlobDamaged, BlobGone)):
            blobs.of(ref.tenant).read(ref.sha256)


@pytest.mark.parametrize("change", [{"size_bytes": 1}, {"wrapped_key": bytes(60)}])
def test_a_row_that_was_changed_is_refused(
    blobs: Blobs, database: Database, change: dict[str, object]
) -> None:
    digest = blobs.of(A).put(CONTENT)
    with database.run_tx("test") as session:
        session.execute(sa.update(BlobKey).values(**change))
    with pytest.raises(BlobDamaged):
        blobs.of(A).read(digest)


def test_a_file_of_an_earlier_version_of_the_same_object_is_refused(blobs: Blobs, database: Database) -> None:
    """Rolling a file back to other bytes: another object's, so another key's."""
    digest = blobs.of(A).put(CONTENT)
    former = path_of(blobs, BlobRef(A, digest)).read_bytes()
    age(database)
    blobs.delete_old(BlobRef(A, digest), min_age_s=60.0)
    blobs.of(A).put(CONTENT)
    path_of(blobs, BlobRef(A, digest)).write_bytes(former)
    with pytest.raises(BlobDamaged):
        blobs.of(A).read(digest)


def test_a_process_of_another_region_is_refused_and_keeps_its_own_copy(
    blobs: Blobs, database: Database, tmp_path: Path
) -> None:
    digest = blobs.of(A).put(CONTENT)
    abroad = blobs_under(Root(bytes(32), "us-east-1"), database, tmp_path / "blobs")
    with pytest.raises(WrongRegion) as refused:
        abroad.of(A).read(digest)
    assert refused.value.code == "wrong_region"
    assert abroad.of(A).put(CONTENT) == digest
    assert abroad.of(A).read(digest) == blobs.of(A).read(digest) == CONTENT
    assert len(files(blobs)) == 2


@pytest.mark.parametrize("root", [Root(bytes(31) + b"x", "eu-west-1"), Root(bytes(32), "us-east-1")])
def test_even_a_row_that_is_moved_to_its_region_opens_under_no_other_root(
    blobs: Blobs, database: Database, tmp_path: Path, root: Root
) -> None:
    digest = blobs.of(A).put(CONTENT)
    with database.run_tx("test") as session:
        for model in (RegionKey, TenantKey, BlobKey):
            session.execute(sa.update(model).values(region=root.region))
    with pytest.raises(BlobDamaged):
        blobs_under(root, database, tmp_path / "blobs").of(A).read(digest)


def rotated(database: Database, root: Root, *, batch: int = 2) -> int:
    with database.run_tx("test") as session:
        rotation.rotate(session, root)
    moved = 0
    while True:
        with database.run_tx("test") as session:
            done = rotation.rewrap(session, root, most=batch)
        if not done:
            return moved
        moved += done


def test_rotation_wraps_every_key_anew_and_touches_no_object(blobs: Blobs, database: Database) -> None:
    digests = {(tenant, blobs.of(tenant).put(CONTENT + bytes([n]))) for tenant in (A, B) for n in range(5)}
    before = {path: (path.read_bytes(), path.stat().st_mtime_ns) for path in files(blobs)}
    with database.run_tx("test") as session:
        wraps = set(session.scalars(sa.select(BlobKey.wrapped_key)))
        former = {*session.scalars(sa.select(TenantKey.id)), *session.scalars(sa.select(RegionKey.id))}
    assert rotated(database, ROOT) == 10
    assert {path: (path.read_bytes(), path.stat().st_mtime_ns) for path in files(blobs)} == before
    assert all(blobs.of(tenant).read(digest)[: len(CONTENT)] == CONTENT for tenant, digest in digests)
    with database.run_tx("test") as session:
        assert wraps.isdisjoint(session.scalars(sa.select(BlobKey.wrapped_key)))
        now = {*session.scalars(sa.select(TenantKey.id)), *session.scalars(sa.select(RegionKey.id))}
        assert (len(now), now & former) == (3, set())


def test_everything_is_readable_at_every_moment_of_a_rotation(blobs: Blobs, database: Database) -> None:
    digests = [blobs.of(A).put(CONTENT + bytes([n])) for n in range(4)]
    with database.run_tx("test") as session:
        rotation.rotate(session, ROOT)
    digests.append(blobs.of(A).put(b"under the new key"))
    done = 1
    while done:
        assert [len(blobs.of(A).read(digest)) for digest in digests] == [len(CONTENT) + 1] * 4 + [17]
        with database.run_tx("test") as session:
            done = rotation.rewrap(session, ROOT, most=1)
    with database.run_tx("test") as session:
        assert session.scalar(sa.select(sa.func.count()).select_from(TenantKey)) == 1


def test_the_commands_rotate_and_move_to_a_root_of_the_regions_own(
    database: Database, database_url: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    derived = settings_for(database_url, tmp_path / "blobs")
    digest = Blobs.of_process(derived, database).of(A).put(CONTENT)
    assert "1 objects" in commands.rewrap(derived, database)
    with pytest.raises(ValueError, match="the same"):  # the new root's variable did not arrive
        commands.reroot(derived, database)
    own = settings_for(database_url, tmp_path / "blobs", region_root_key=OWN_ROOT)
    with pytest.raises(BlobDamaged):
        Blobs.of_process(own, database).of(A).read(digest)
    assert commands.reroot(own, database).startswith("1 keys")
    assert Blobs.of_process(own, database).of(A).read(digest) == CONTENT
    with pytest.raises(BlobDamaged):
        Blobs.of_process(derived, database).of(A).read(digest)
    monkeypatch.setenv(commands.FORMER_ROOT, "AAAA")
    with pytest.raises((BlobDamaged, ValueError)):
        commands.reroot(own, database)
    assert Blobs.of_process(own, database).of(A).read(digest) == CONTENT


def test_shredding_a_tenant_leaves_nothing_that_opens(
    blobs: Blobs, database: Database, database_url: str, tmp_path: Path
) -> None:
    digests = [blobs.of(A).put(CONTENT), blobs.of(A).put(b"more")]
    spared = blobs.of(B).put(CONTENT)
    said = commands.shred(settings_for(database_url, tmp_path / "blobs"), database, named=str(A))
    assert said.startswith("2 objects")
    assert len(files(blobs)) == 1
    for digest in digests:
        with pytest.raises(BlobGone):
            blobs.of(A).read(digest)
    with database.run_tx("test") as session:
        assert session.scalar(sa.select(sa.func.count()).where(TenantKey.tenant_id == A)) == 0
    assert blobs.of(B).read(spared) == CONTENT


def test_a_shredding_that_was_cut_short_is_ended_by_the_sweep(blobs: Blobs, database: Database) -> None:
    for content in (CONTENT, b"more"):
        blobs.of(A).put(content)
    spared = blobs.of(B).put(CONTENT)
    with database.run_tx("test") as session:
        assert len(keys.shred(session, A)) == 2
    assert len(files(blobs)) == 3
    let_pass(blobs, database)
    assert tidied(blobs) == 2
    assert blobs.of(B).read(spared) == CONTENT


def test_tables_of_keys_that_were_restored_empty_cost_no_object(blobs: Blobs, database: Database) -> None:
    """The database's long-lived backup is without them: until they are restored too, nothing is judged."""
    digest = blobs.of(A).put(CONTENT)
    rows = ("region_keys", "tenant_keys", "blob_keys")
    with database.run_tx("test") as session:
        for name in rows:
            session.execute(sa.text(f"CREATE TABLE saved_{name} AS TABLE {name}"))
        session.execute(sa.text("TRUNCATE region_keys, tenant_keys, blob_keys"))
    for path in files(blobs):
        os.utime(path, (time.time() - 7200,) * 2)
    assert tidied(blobs) == 0
    blobs.of(B).put(b"the first bytes after it make new keys")
    rotated(database, ROOT)
    assert tidied(blobs) == 0
    with database.run_tx("test") as session:
        session.execute(sa.text("TRUNCATE region_keys, tenant_keys, blob_keys"))
        for name in rows:
            session.execute(sa.text(f"INSERT INTO {name} SELECT * FROM saved_{name}"))  # noqa: S608  names are above
    assert blobs.of(A).read(digest) == CONTENT


def test_deleting_one_objects_key_makes_it_unreadable_though_its_bytes_are_there(
    blobs: Blobs, database: Database
) -> None:
    """What erasure of a subject does; here the object is put back, as from a backup of the folder."""
    digest, other = blobs.of(A).put(CONTENT), blobs.of(A).put(b"other")
    path = path_of(blobs, BlobRef(A, digest))
    held = path.read_bytes()
    age(database)
    blobs.delete_old(BlobRef(A, digest), min_age_s=60.0)
    path.write_bytes(held)
    with pytest.raises(BlobGone):
        blobs.of(A).read(digest)
    blobs.of(A).put(CONTENT)  # the same bytes again are another object under another key
    assert path_of(blobs, BlobRef(A, digest)) != path
    assert blobs.of(A).read(other) == b"other"


def test_an_old_blob_is_removed_once_and_leaves_nothing(blobs: Blobs, database: Database) -> None:
    ref = BlobRef(A, blobs.of(A).put(CONTENT))
    blobs.delete_old(ref, min_age_s=60.0)
    assert len(files(blobs)) == 1
    age(database)
    blobs.delete_old(ref, min_age_s=60.0)
    blobs.delete_old(ref, min_age_s=60.0)
    assert files(blobs) == []


def test_a_blob_that_was_put_again_a_moment_ago_stays(blobs: Blobs, database: Database) -> None:
    ref = BlobRef(A, blobs.of(A).put(CONTENT))
    age(database)
    blobs.of(A).put(CONTENT)
    blobs.delete_old(ref, min_age_s=60.0)
    assert blobs.of(A).read(ref.sha256) == CONTENT


def test_a_blob_that_comes_again_while_it_is_removed_stays(
    blobs: Blobs, database: Database, monkeypatch: pytest.MonkeyPatch
) -> None:
    """The moment between deleting a key and its object: the same bytes arrive there."""
    ref, delete = BlobRef(A, blobs.of(A).put(CONTENT)), blobs.store.delete
    age(database)

    def put_again_and_delete(name: str) -> None:
        monkeypatch.setattr(blobs.store, "delete", delete)
        blobs.of(A).put(CONTENT)
        delete(name)

    monkeypatch.setattr(blobs.store, "delete", put_again_and_delete)
    blobs.delete_old(ref, min_age_s=60.0)
    assert blobs.of(A).read(ref.sha256) == CONTENT
    assert len(files(blobs)) == 1


def test_bytes_whose_object_was_lost_are_healed_by_putting_them_again(blobs: Blobs) -> None:
    digest = blobs.of(A).put(CONTENT)
    path_of(blobs, BlobRef(A, digest)).unlink()
    assert blobs.of(A).put(CONTENT) == digest
    assert blobs.of(A).read(digest) == CONTENT


CHILD = """
import os, signal, sys
from pathlib import Path
from uuid import UUID
from app.core.blobs import IncomingFile, LocalStore
from app.core.db import Database
from app.custody.blobs import Blobs
from app.custody.index import DatabaseIndex
from app.custody.wraps import Root

url, folder, moment = sys.argv[1:]
database = Database(url, pool_size=1)
index = DatabaseIndex(database, Root(bytes(32), "eu-west-1"))
blobs = Blobs(LocalStore(Path(folder)), index)
def die(*_args, **_named):
    os.kill(os.getpid(), signal.SIGKILL)
if moment == "before publishing":
    IncomingFile.publish = die
elif moment == "before its key":
    DatabaseIndex.keep = die
elif moment == "before its object is deleted":
    LocalStore.delete = die
content = b"the zero update, which many send" * 3000
if moment == "before its object is deleted":
    from app.custody.keys import BlobRef
    digest = blobs.of(UUID(int=0xA)).put(content)
    blobs.delete_old(BlobRef(UUID(int=0xA), digest), min_age_s=0.0)
else:
    blobs.of(UUID(int=0xA)).put(content)
"""


@pytest.mark.parametrize("moment", ["before publishing", "before its key", "before its object is deleted"])
def test_a_process_that_is_killed_leaves_nothing_readable_and_nothing_for_long(
    blobs: Blobs, database: Database, database_url: str, tmp_path: Path, moment: str
) -> None:
    died = subprocess.run(
        [sys.executable, "-c", CHILD, database_url, str(tmp_path / "blobs"), moment], check=False, timeout=60
    )
    assert died.returncode == -signal.SIGKILL
    assert len(files(blobs)) == 1
    digest = blobs.of(B).put(CONTENT)
    with pytest.raises(BlobGone):
        blobs.of(A).read(digest)
    assert tidied(blobs) == 0  # its process might be alive
    let_pass(blobs, database)
    assert tidied(blobs) == 1
    assert blobs.of(A).put(CONTENT) == digest
    assert blobs.of(A).read(digest) == CONTENT


def test_no_key_is_in_the_clear_in_any_table(blobs: Blobs, session: Session, database: Database) -> None:
    digest = blobs.of(A).put(CONTENT)
    (located,) = blobs.locate([BlobRef(A, digest)])
    with database.run_tx("test") as own:
        rows = [
            bytes(wrapped)
            for model in (RegionKey, TenantKey, BlobKey)
            for wrapped in own.scalars(sa.select(model.wrapped_key))
        ]
        tenant_key = keys.tenant_key_of(own, ROOT, A)
        clear = keys.opened(own, ROOT, tenant_key)
    assert len(rows) == 3
    assert all(key not in row for key in (located.key, clear) for row in rows)
    assert located.key.hex() not in repr(located)
    assert str(located.key) not in repr(located)


def test_many_are_found_in_one_query_in_the_order_that_they_are_asked_for(blobs: Blobs) -> None:
    refs = [BlobRef(tenant, blobs.of(tenant).put(bytes([n]))) for n in range(6) for tenant in (A, B)]
    asked = [*reversed(refs), refs[3], refs[3]]
    found = blobs.locate(asked)
    assert [BlobRef(one.place.tenant, one.sha256) for one in found] == asked
    with pytest.raises(BlobGone):
        blobs.locate([*refs, BlobRef(uuid4(), refs[0].sha256)])


def test_the_root_is_the_regions_own_where_one_is_set(tmp_path: Path) -> None:
    own = settings_for("postgresql://x", tmp_path, region_root_key=OWN_ROOT)
    derived, key_id = settings_for("postgresql://x", tmp_path), uuid4()
    wrapped = root_of(own).wrap(key_id, bytes(32))
    assert root_of(own).unwrap(key_id, wrapped) == bytes(32)
    assert Root(b"0123456789abcdef0123456789abcdef", own.region).unwrap(key_id, wrapped) == bytes(32)
    with pytest.raises(WrapBroken):
        root_of(derived).unwrap(key_id, wrapped)


def test_a_blob_reads_as_a_file_does(blobs: Blobs) -> None:
    tenant: TenantBlobs = blobs.of(A)
    with tenant.open(tenant.put(CONTENT)).file() as file:
        assert file.seek(-10, os.SEEK_END) == len(CONTENT) - 10
        assert file.read() == CONTENT[-10:]
        file.seek(5)
        assert file.read(40_000) == CONTENT[5:40_005]
        assert file.tell() == 40_005


def test_an_operator_shreds_an_organisation_by_the_command(
    database: Database, database_url: str, tmp_path: Path
) -> None:
    settings = settings_for(database_url, tmp_path / "blobs")
    blobs = Blobs.of_process(settings, database)
    digest, spared = blobs.of(A).put(CONTENT), blobs.of(B).put(CONTENT)
    variables = os.environ | {
        "DATABASE_URL": database_url,
        "BLOB_URL": settings.blob_url,
        "DPFL_MASTER_KEY": TEST_MASTER_KEY,
        "DPFL_ENVIRONMENT": "development",
    }

    def run(*words: str) -> subprocess.CompletedProcess[str]:
        command = [sys.executable, "-m", "app", *words]
        return subprocess.run(command, env=variables, capture_output=True, text=True, check=False, timeout=60)

    assert run("rewrap").stdout == "new keys for 2 tenants of eu-west-1; 2 objects wrapped anew\n"
    assert blobs.of(A).read(digest) == CONTENT
    refused = run("shred", "everybody")
    assert (refused.returncode, refused.stdout) == (1, "")
    assert run("shred", str(A)).stdout.startswith(f"1 objects of {A} can never be read again")
    with pytest.raises(BlobGone):
        blobs.of(A).read(digest)
    assert blobs.of(B).read(spared) == CONTENT


def test_the_periodic_job_ends_a_rotation_that_was_cut_short(database: Database, tmp_path: Path) -> None:
    context = context_for(database, tmp_path)
    digests = [context.blobs.of(A).put(CONTENT + bytes([n])) for n in range(3)]
    root = root_of(context.settings)
    with database.run_tx("test") as session:
        rotation.rotate(session, root)
    with database.run_tx("test") as session:
        assert rotation.rewrap(session, root, most=1) == 1  # then the command was killed
        enqueue(session, "rewrap", key="slot:1", payload={})
        job_id = session.scalar(sa.select(Job.id).where(Job.kind == "rewrap"))
    assert job_id is not None
    claim = leases.claim(database, job_id, ceiling_s=LEASE_S)
    assert claim is not None
    HANDLERS["rewrap"](context, claim)
    with database.run_tx("test") as session:
        assert session.scalar(sa.select(sa.func.count()).where(TenantKey.retired_at.is_not(None))) == 0
        assert session.scalar(sa.select(sa.func.count()).where(RegionKey.retired_at.is_not(None))) == 0
    assert [context.blobs.of(A).read(digest)[:-1] for digest in digests] == [CONTENT] * 3
