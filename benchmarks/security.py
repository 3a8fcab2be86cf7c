"""What security costs: audit events a second beside a hash chain with a locked head, and checking the log.

Both logs are written through the same sessions on the same embedded PostgreSQL with fsync on, in turn, with 1
and with 8 writers, each a process. An event is a transaction of its own; nothing but the log is in it.
`python -m benchmarks.security [--seconds 2] [--repeats 3]`. Each section is a function that gives its rows
and goals.
"""

import argparse
import io
import multiprocessing
import statistics
import tempfile
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from hashlib import sha256
from pathlib import Path
from typing import Any, Self

import sqlalchemy as sa
from sqlalchemy.orm import Session

from app.audit import export, sequencer, tree
from app.audit.merkle import CompactRange, includes, leaf_hash
from app.audit.record import Action, Detail, record
from app.audit.verify import verify
from app.core.canonical import canonical_bytes
from app.core.crypto import Vault
from app.core.db import Database
from app.core.ids import new_id
from benchmarks import security_encryption, security_verification
from benchmarks.report import goal, report
from cli.embedded.postgres import Postgres
from migrations.upgrade import upgrade

Section = tuple[list[dict[str, Any]], list[dict[str, Any]]]
"""Rows and goals."""
Act = Callable[[Session], None]
WRITERS = (1, 8)
VAULT, URL = Vault(bytes(32)), "http://127.0.0.1:8000"
DETAILS: dict[str, Detail] = {"version": 3, "manifest_sha256": "a" * 64, "reason_code": None}
CHAIN = """
CREATE TABLE bench_head (id integer PRIMARY KEY, hash bytea NOT NULL);
INSERT INTO bench_head VALUES (1, sha256(''));
CREATE TABLE bench_chain (
    seq bigint GENERATED ALWAYS AS IDENTITY PRIMARY KEY,
    prev bytea NOT NULL, hash bytea NOT NULL, canonical bytea NOT NULL
)
"""
_HEAD = sa.text("SELECT hash FROM bench_head WHERE id = 1 FOR UPDATE")
_LINK = sa.text("INSERT INTO bench_chain (prev, hash, canonical) VALUES (:prev, :hash, :canonical)")
_MOVE = sa.text("UPDATE bench_head SET hash = :hash WHERE id = 1")


def log_act(session: Session) -> None:
    """An entry of the audit log, as any act makes it."""
    record(
        session,
        action=Action.RUN_STARTED,
        actor="member:01976c5e-8d2b-7c3a-9f4e-2b6d1a0c9e77",
        organisation_id=None,
        subject=f"run:{new_id()}",
        details=DETAILS,
    )


def chain_act(session: Session) -> None:
    """The same in a chain: an entry holds the hash of the one before, so the head is locked until COMMIT."""
    entry = {"id": str(new_id()), "action": "run.started", "subject": f"run:{new_id()}", "details": DETAILS}
    canonical = canonical_bytes(entry)
    prev = session.execute(_HEAD).scalar_one()
    hash_ = sha256(prev + canonical).digest()
    session.execute(_LINK, {"prev": prev, "hash": hash_, "canonical": canonical})
    session.execute(_MOVE, {"hash": hash_})


ACTS: dict[str, Act] = {"locked_chain": chain_act, "audit_log": log_act}


@contextmanager
def durable_database() -> Iterator[Database]:
    """The embedded PostgreSQL as `dpfl up` runs it, migrated, in a temporary folder."""
    with tempfile.TemporaryDirectory() as folder:
        postgres = Postgres.start(Path(folder) / "postgres", password="bench", durable=True)  # noqa: S106  gone in a minute
        try:
            upgrade(postgres.url)
            database = Database(postgres.url, pool_size=1)
            with database.run_tx("bench") as session:
                if session.scalar(sa.text("SHOW fsync")) != "on":
                    raise SystemExit("fsync is off: nothing that is measured here would hold")
                session.execute(sa.text(CHAIN))
            yield database
            database.dispose()
        finally:
            postgres.stop()


class Writers:
    """Processes that commit acts, as several gateways and workers do; each has one connection."""

    def __init__(self, database: Database) -> None:
        url = database.engine.url.render_as_string(hide_password=False)
        self._pool = multiprocessing.get_context("spawn").Pool(max(WRITERS), _open, (url,))

    def __enter__(self) -> Self:
        return self

    def __exit__(self, *_failure: object) -> None:
        self._pool.terminate()
        self._pool.join()

    def events_per_s(self, act: str, *, writers: int, seconds: float) -> float:
        """How many transactions with one act each are committed in a second."""
        begin = time.monotonic() + 0.3  # by then each process has its task
        done = self._pool.map(_write, [(act, begin, begin + seconds)] * writers, chunksize=1)
        return sum(done) / seconds


_SESSIONS: list[Session] = []
"""Of a writer's process: one, whose transactions are begun and ended by statements, as a driver does it."""


def _open(url: str) -> None:
    _SESSIONS.append(Session(sa.create_engine(url, isolation_level="AUTOCOMMIT")))


def _write(task: tuple[str, float, float]) -> int:
    """Commit acts from one moment until another (both of the machine's monotonic clock); how many."""
    name, begin, end = task
    act, count, session = ACTS[name], 0, _SESSIONS[0]
    connection = session.connection()
    time.sleep(max(0.0, begin - time.monotonic()))
    while time.monotonic() < end:
        connection.exec_driver_sql("BEGIN")
        act(session)
        connection.exec_driver_sql("COMMIT")
        count += 1
    return count


def audit_events(database: Database, *, seconds: float, repeats: int) -> Section:
    """Events a second of the log and of the chain, in turn."""
    found: dict[tuple[str, int], list[float]] = {(act, writers): [] for writers in WRITERS for act in ACTS}
    with Writers(database) as pool:
        for act in ACTS:  # the first second opens connections, plans statements and grows files
            pool.events_per_s(act, writers=max(WRITERS), seconds=1.0)
        for _repeat in range(repeats):
            for (act, writers), values in found.items():
                values.append(pool.events_per_s(act, writers=writers, seconds=seconds))
    medians = {key: statistics.median(values) for key, values in found.items()}
    rows = [
        {
            "log": name,
            "writers": writers,
            "events_per_s": round(medians[name, writers], 1),
            "least": round(min(values), 1),
            "most": round(max(values), 1),
        }
        for (name, writers), values in found.items()
    ]
    most = max(WRITERS)
    ratio = medians["audit_log", most] / medians["locked_chain", most]
    return rows, [goal("audit_8_writers_vs_chain", round(ratio, 2), at_least=4)]


def sequencing_and_checking(database: Database) -> Section:
    """What comes behind the acts: placing entries, a receipt, and an auditor's check of the whole log."""
    placed, began = 0, time.perf_counter()
    while True:
        with database.run_tx("bench") as session:
            batch = sequencer.sequence(session, VAULT, public_url=URL)
        placed += batch
        if batch == 0:
            break
    placing_s = time.perf_counter() - began
    with database.run_tx("bench") as session:
        newest = tree.latest(session)
        if newest is None:
            raise SystemExit("nothing was placed")
        began = time.perf_counter()
        for index in range(100):
            path = tree.inclusion_proof(session, index=index, size=newest.size)
            leaf = tree.leaf(session, index)
            if not includes(leaf=leaf, index=index, size=newest.size, path=path, root=newest.root):
                raise SystemExit("a proof does not hold")
        receipt_s = (time.perf_counter() - began) / 100
        pieces = [export.head(newest, None)]
        for start in export.starts(newest.size):
            pieces.append(export.entries(session, None, start=start, size=newest.size))
        file = b"".join([*pieces, export.tail(session, newest)])
    began = time.perf_counter()
    verify(io.BytesIO(file))
    checking_s = time.perf_counter() - began
    rows = [
        {"what": "placed by the sequencer", "entries_per_s": round(placed / placing_s), "entries": placed},
        {"what": "inclusion proof, read and verified", "ms": round(receipt_s * 1e3, 3)},
        {"what": "export checked offline", "entries_per_s": round(newest.size / checking_s)},
        {"what": "compact range in memory", "appends_per_s": round(_appends_per_s())},
    ]
    return rows, []


def _appends_per_s(count: int = 200_000) -> float:
    range_, leaf = CompactRange(), leaf_hash(b"")
    began = time.perf_counter()
    for _number in range(count):
        range_.add(leaf)
    return count / (time.perf_counter() - began)


def main() -> None:
    """Measure every section and print the one line."""
    options = argparse.ArgumentParser(description=__doc__)
    options.add_argument("--seconds", type=float, default=2.0, help="of each measurement")
    options.add_argument("--repeats", type=int, default=3)
    chosen = options.parse_args()
    with durable_database() as database:
        sections = [
            audit_events(database, seconds=chosen.seconds, repeats=chosen.repeats),
            sequencing_and_checking(database),
            security_encryption.rows_and_goals(),
            security_verification.rows_and_goals(),
        ]
    report(
        "security",
        [row for rows, _goals in sections for row in rows],
        [one for _rows, goals in sections for one in goals],
    )


if __name__ == "__main__":
    main()
