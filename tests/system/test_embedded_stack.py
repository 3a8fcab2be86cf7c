"""`dpfl up` as a person runs it: the whole stack as real processes, killed at its worst moments."""

import os
import secrets
import shutil
import signal
import stat
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path

import psutil
import psycopg
import pytest
import redis
from sqlalchemy.engine import make_url

from cli.embedded.orphans import read_record
from cli.embedded.stack import Stack, answers, await_ready, running_stack, start_stack, stop_stack
from tests.services import DATABASE_VARIABLE, REDIS_VARIABLE

pytestmark = [pytest.mark.system, pytest.mark.timeout(300)]

LIMIT_S = 90.0
PAUSE_S = 0.1
CHILDREN = {"postgres", "valkey", "gateway", "dispatcher", "cpu1"}


@contextmanager
def database(url: str) -> Iterator["psycopg.Connection[tuple[object, ...]]"]:
    dsn = make_url(url).set(drivername="postgresql").render_as_string(hide_password=False)
    with psycopg.connect(dsn, autocommit=True, connect_timeout=10) as connection:
        yield connection


def wait_until(holds: Callable[[], bool], *, stack: Stack) -> None:
    """Ask again and again, but give up at once if the stack has ended."""
    deadline = time.monotonic() + LIMIT_S
    while not holds():
        assert stack.process.poll() is None, stack.log.read_text()
        assert time.monotonic() < deadline, stack.log.read_text()
        time.sleep(PAUSE_S)  # there is no event to await: the other side is another process


def running_pids(stack: Stack) -> dict[str, psutil.Process]:
    record = read_record(stack.folder.running)
    return {name: psutil.Process(child.pid) for name, child in record.children.items()}


def is_alive(process: psutil.Process) -> bool:
    try:
        return process.is_running() and process.status() != psutil.STATUS_ZOMBIE
    except psutil.NoSuchProcess:
        return False


def kept_rows(url: str) -> object:
    with database(url) as connection:
        return connection.execute("SELECT count(*) FROM kept").fetchone()


def answers_rows(url: str) -> bool:
    try:
        return kept_rows(url) == (100,)
    except psycopg.OperationalError:
        return False


def answers_key(url: str) -> bool:
    try:
        with redis.Redis.from_url(url) as client:
            return client.get("kept") == b"yes"
    except redis.exceptions.RedisError:
        return False


def kill_every_process(stack: Stack) -> list[psutil.Process]:
    """Kill each of them at once, and await that all are back with what was committed; returns old and new."""
    started = running_pids(stack)
    assert set(started) == CHILDREN
    with database(stack.database_url) as connection:
        connection.execute("CREATE TABLE kept AS SELECT generate_series(1, 100) AS n")
    with redis.Redis.from_url(stack.redis_url) as client:
        client.set("kept", "yes")
    for name in sorted(CHILDREN):
        os.kill(started[name].pid, signal.SIGKILL)
    for name in sorted(CHILDREN):
        wait_until(lambda name=name: stack.pid_of(name) != started[name].pid, stack=stack)
    wait_until(lambda: answers_rows(stack.database_url), stack=stack)
    wait_until(lambda: answers_key(stack.redis_url), stack=stack)
    wait_until(lambda: answers(stack.url), stack=stack)
    restarted = running_pids(stack)
    assert set(restarted) == CHILDREN
    return [*started.values(), *restarted.values()]


@pytest.fixture
def without_setpriv(tmp_path: Path) -> dict[str, str]:
    """A PATH on which nothing tells children of their parent's death, as on other systems than Linux."""
    tools = tmp_path / "bin"
    tools.mkdir()
    unshare = shutil.which("unshare")
    if unshare:
        (tools / "unshare").symlink_to(unshare)
    return {"PATH": str(tools)}


def test_after_kill_9_of_dpfl_up_the_next_start_stops_the_orphans_and_finds_every_row(
    tmp_path: Path, without_setpriv: dict[str, str]
) -> None:
    first = start_stack(tmp_path / "data", environment=without_setpriv)
    try:
        await_ready(first)
        with database(first.database_url) as connection:
            connection.execute("CREATE TABLE kept AS SELECT generate_series(1, 100) AS n")
        admin = first.admin_file.read_text()
        orphans = running_pids(first)
        os.kill(first.process.pid, signal.SIGKILL)
        first.process.wait(timeout=LIMIT_S)
        assert all(is_alive(orphans[name]) for name in ("postgres", "valkey", "gateway"))
        with running_stack(tmp_path / "data") as second:
            assert not any(is_alive(process) for process in orphans.values())
            assert kept_rows(second.database_url) == (100,)
            assert second.admin_file.read_text() == admin
            assert "stopped what a killed run had left" in second.log.read_text()
    finally:
        stop_stack(first)


def test_of_two_instances_one_survives_the_death_of_its_processes_and_the_end_of_the_other(
    tmp_path: Path,
) -> None:
    with running_stack(tmp_path / "one") as one, running_stack(tmp_path / "two") as two:
        assert answers(one.url)
        assert answers(two.url)
        assert one.database_url != two.database_url
        for stack in (one, two):
            for path in (stack.folder.secrets, stack.folder.running, stack.admin_file):
                assert stat.S_IMODE(path.stat().st_mode) == 0o600
        again = start_stack(tmp_path / "one")
        assert again.process.wait(timeout=LIMIT_S) == 1
        assert "another `dpfl up` is running" in again.log.read_text().splitlines()[-1]
        assert answers(one.url)
        os.kill(one.process.pid, signal.SIGINT)
        assert one.process.wait(timeout=LIMIT_S) == 0
        processes = kill_every_process(two)
        assert stop_stack(two) == 0, two.log.read_text()
        assert not any(is_alive(process) for process in processes)
        assert not two.folder.running.exists()
        assert not answers(two.url)


def test_named_servers_are_used_instead_of_embedded_ones(tmp_path: Path) -> None:
    server = os.environ[DATABASE_VARIABLE]
    name = f"named_{secrets.token_hex(6)}"
    with database(server) as connection:
        connection.execute(f"CREATE DATABASE {name}")
    named = make_url(server).set(database=name).render_as_string(hide_password=False)
    servers = {"DATABASE_URL": named, "REDIS_URL": os.environ[REDIS_VARIABLE]}
    try:
        with running_stack(tmp_path / "data", environment=servers) as stack:
            assert set(running_pids(stack)) == CHILDREN - {"postgres", "valkey"}
            with database(named) as connection:
                assert connection.execute("SELECT count(*) FROM alembic_version").fetchone() == (1,)
        assert not (tmp_path / "data" / "postgres").exists()
    finally:
        with database(server) as connection:
            connection.execute(f"DROP DATABASE {name} WITH (FORCE)")
