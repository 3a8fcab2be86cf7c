"""The sequencer puts entries of finished transactions into the tree, in their order, each once."""

import random
import time
from collections.abc import Callable
from concurrent.futures import ThreadPoolExecutor
from datetime import timedelta
from threading import Event
from uuid import UUID

import pytest
import sqlalchemy as sa
from sqlalchemy.exc import DBAPIError
from sqlalchemy.orm import Session

from app.audit import keys, merkle, sequencer, tree
from app.audit.checkpoint import PublicKey, verified
from app.audit.models import AuditCheckpoint, AuditEntry, AuditKey
from app.audit.record import Action, record
from app.core import clock
from app.core.crypto import Vault
from app.core.db import Database
from tests.audit_log import ORIGIN, URL, place, place_all

VAULT = Vault(bytes(range(32)))


def note(session: Session, number: int = 1) -> UUID:
    return record(
        session,
        action=Action.JOB_RETRIED,
        actor="member:1",
        organisation_id=None,
        subject=f"job:{number}",
    )


def note_many(database: Database, count: int) -> None:
    for number in range(count):
        with database.run_tx("test") as session:
            note(session, number)


def leaves_of(session: Session) -> list[tuple[int | None, bytes, str]]:
    statement = sa.select(AuditEntry.leaf_index, AuditEntry.leaf_hash, AuditEntry.subject)
    rows = session.execute(statement.order_by(AuditEntry.leaf_index))
    return [(index, leaf, subject) for index, leaf, subject in rows]


def checkpoints_of(session: Session) -> list[AuditCheckpoint]:
    return list(session.scalars(sa.select(AuditCheckpoint).order_by(AuditCheckpoint.size)))


def test_an_empty_log_has_no_checkpoint_and_no_key(database: Database) -> None:
    assert place(database) == 0
    with database.run_tx("test") as session:
        assert tree.latest(session) is None
        assert keys.public_keys(session) == []


def test_entries_get_places_and_a_checkpoint_that_holds(database: Database) -> None:
    note_many(database, 5)
    assert place_all(database) == 5
    assert place(database) == 0
    with database.run_tx("test") as session:
        leaves = leaves_of(session)
        assert [index for index, _leaf, _subject in leaves] == [0, 1, 2, 3, 4]
        assert [subject for _index, _leaf, subject in leaves] == [f"job:{n}" for n in range(5)]
        (key,) = keys.public_keys(session)
        newest = checkpoints_of(session)[-1]
        found = verified(newest.note, [keys.public(key)], by_all=True)
        assert (found.origin, found.size, found.root) == (ORIGIN, 5, newest.root)
        assert newest.root == merkle.root_of(leaf for _index, leaf, _subject in leaves)


def test_the_tree_grows_over_any_batches_and_every_proof_holds(
    database: Database, monkeypatch: pytest.MonkeyPatch
) -> None:
    chance = random.Random(7)
    for _batch in range(6):
        note_many(database, chance.randrange(1, 6))
        monkeypatch.setattr(sequencer, "BATCH", chance.randrange(1, 4))
        place_all(database)
    with database.run_tx("test") as session:
        leaves = [leaf for _index, leaf, _subject in leaves_of(session)]
        shown = checkpoints_of(session)
        assert len(shown) >= 6
        for later in shown:
            assert later.root == merkle.root_of(leaves[: later.size])
            for index in range(later.size):
                path = tree.inclusion_proof(session, index=index, size=later.size)
                at = {"index": index, "size": later.size, "path": path, "root": later.root}
                assert merkle.includes(leaf=leaves[index], **at)
            for former in shown:
                if former.size <= later.size:
                    sizes = {"first": former.size, "second": later.size}
                    path = tree.consistency_proof(session, **sizes)
                    ends = {"first_root": former.root, "second_root": later.root}
                    assert merkle.grew(path=path, **sizes, **ends)


def test_nothing_is_placed_behind_a_transaction_that_still_runs(database: Database) -> None:
    with database.run_tx("test late") as late:
        note(late, 1)
        with database.run_tx("test early") as early:
            note(early, 2)
        assert place(database) == 0  # the later one committed first, and waits
    assert place_all(database) == 2
    with database.run_tx("test") as session:
        assert [subject for _index, _leaf, subject in leaves_of(session)] == ["job:1", "job:2"]


def test_of_two_sequencers_one_works(database: Database) -> None:
    note_many(database, 1)
    _wait_until(lambda: _horizon_passed(database))
    with database.run_tx("test") as session:
        assert sequencer.sequence(session, VAULT, public_url=URL) == 1
        assert place(database) == 0
    with database.run_tx("test") as session:
        assert len(checkpoints_of(session)) == 1


def _horizon_passed(database: Database) -> bool:
    horizon = sa.text(
        "SELECT bool_and(transaction_id < pg_snapshot_xmin(pg_current_snapshot())::text::bigint) "
        "FROM audit_entries"
    )
    with database.run_tx("test") as session:
        return bool(session.scalar(horizon))


def _wait_until(holds: Callable[[], bool]) -> None:
    until = time.monotonic() + 60
    while not holds():
        assert time.monotonic() < until
        time.sleep(0.02)


def test_writers_and_sequencers_at_once_lose_and_double_nothing(database: Database) -> None:
    over, writers, each = Event(), 8, 25

    def write(number: int) -> None:
        for one in range(each):
            with database.run_tx("test") as session:
                note(session, number * each + one)
                if one % 5 == 0:
                    session.rollback()

    def keep_placing() -> None:
        while not over.is_set():
            place(database)

    with ThreadPoolExecutor(writers + 2) as pool:
        placing = [pool.submit(keep_placing) for _number in range(2)]
        for written in [pool.submit(write, number) for number in range(writers)]:
            written.result()
        over.set()
        for one in placing:
            one.result()
    place_all(database)
    with database.run_tx("test") as session:
        leaves = leaves_of(session)
        assert [index for index, _leaf, _subject in leaves] == list(range(writers * each * 4 // 5))
        assert len({subject for _index, _leaf, subject in leaves}) == len(leaves)
        for shown in checkpoints_of(session):
            assert shown.root == merkle.root_of(leaf for _index, leaf, _subject in leaves[: shown.size])
        order = sa.select(AuditEntry.transaction_id, AuditEntry.id).order_by(AuditEntry.leaf_index)
        placed = [tuple(row) for row in session.execute(order)]
        assert placed == sorted(placed)


def test_a_killed_sequencer_leaves_nothing_behind(database: Database) -> None:
    note_many(database, 3)
    _wait_until(lambda: _horizon_passed(database))

    def die(session: Session) -> None:
        assert sequencer.sequence(session, VAULT, public_url=URL) == 3
        session.execute(sa.text("SELECT pg_terminate_backend(pg_backend_pid())"))

    with pytest.raises(DBAPIError), database.run_tx("test") as session:
        die(session)
    with database.run_tx("test") as session:
        assert checkpoints_of(session) == []
        assert {index for index, _leaf, _subject in leaves_of(session)} == {None}
    assert place_all(database) == 3


@pytest.mark.parametrize("table", ["audit_nodes", "audit_entries"])
def test_a_tree_that_was_changed_beneath_the_guards_is_not_signed(database: Database, table: str) -> None:
    note_many(database, 3)
    place_all(database)
    with database.run_tx("test") as session:
        session.execute(sa.text(f"ALTER TABLE {table} DISABLE TRIGGER USER"))
        change = {
            "audit_nodes": "UPDATE audit_nodes SET hash = sha256('another')",
            "audit_entries": "UPDATE audit_entries SET canonical = '{}', leaf_hash = sha256('\\x007b7d') "
            "WHERE leaf_index = 2",
        }
        session.execute(sa.text(change[table]))
    note_many(database, 1)
    _wait_until(lambda: _horizon_passed(database))
    with pytest.raises(sequencer.TreeBroken):
        place(database)
    with database.run_tx("test") as session:
        assert [one.size for one in checkpoints_of(session)][-1] == 3


def test_a_new_key_is_announced_under_both_signatures_and_the_former_one_ends(database: Database) -> None:
    with database.run_tx("test") as session:
        assert keys.rotate(session, VAULT, actor="member:1") is None
    note_many(database, 1)
    place_all(database)
    with database.run_tx("test") as session:
        new = keys.rotate(session, VAULT, actor="member:1")
        assert new is not None
    place_all(database)
    with database.run_tx("test") as session:
        latest, former = (keys.public(row) for row in keys.public_keys(session))
        newest = checkpoints_of(session)[-1]
        assert leaves_of(session)[-1][2] == f"audit_key:{new.id}"
        assert verified(newest.note, [latest]) == verified(newest.note, [former])
        assert [name for name, _key in keys.signers(session, VAULT)] == [ORIGIN, ORIGIN]
        with clock.shifted(keys.OVERLAP + timedelta(seconds=1)):
            ((_name, only),) = keys.signers(session, VAULT)
        assert PublicKey(ORIGIN, only.public_key().public_bytes_raw()) == latest
        sealed = session.scalars(sa.select(AuditKey.sealed_private_key)).all()
        assert all(only.private_bytes_raw() not in one for one in sealed)


@pytest.mark.parametrize(
    ("address", "origin"),
    [
        ("http://127.0.0.1:8000", "127.0.0.1:8000/audit"),
        ("https://lab.example.org/federation/", "lab.example.org/federation/audit"),
        ("https://[::1]:8000/a+b c", "[::1]:8000/a%2Bb%20c/audit"),
    ],
)
def test_a_log_is_called_by_its_servers_address(address: str, origin: str) -> None:
    assert keys.origin_of(address) == origin
