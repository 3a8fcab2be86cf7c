"""A whole stack as a child of another program: the demo and the system tests run `dpfl up` with this."""

import http
import http.client
import os
import signal
import ssl
import subprocess
import sys
import time
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from urllib.parse import urlsplit

from cli.embedded.errors import ServiceFailed
from cli.embedded.folder import DataFolder, data_folder, make_folder
from cli.embedded.orphans import read_record
from cli.embedded.processes import ended_within, free_port, spawn, stop_process
from cli.i18n import _

READY_LIMIT_S = 180
READY_PAUSE_S = 0.1
ANSWER_LIMIT_S = 5
STOP_PATIENCE_S = 60.0


@dataclass(frozen=True)
class Stack:
    """A running `dpfl up`."""

    url: str
    """Of the gateway."""
    folder: DataFolder
    process: "subprocess.Popen[bytes]"
    log: Path
    """All that `dpfl up` printed."""

    @property
    def admin_file(self) -> Path:
        """The first administrator's credentials."""
        return self.folder.admin

    @property
    def database_url(self) -> str:
        """Of the database it uses now."""
        return read_record(self.folder.running).addresses["database"]

    @property
    def redis_url(self) -> str:
        """Of the broker it uses now."""
        return read_record(self.folder.running).addresses["redis"]

    def pid_of(self, name: str) -> int:
        """Return the pid of one supervised process: postgres, valkey, gateway, dispatcher, cpu1, ..."""
        return read_record(self.folder.running).children[name].pid


def answers(url: str, *, authority: Path | None = None) -> bool:
    """Say whether the gateway at `url` is ready to serve; with https, by the authority in this file."""
    parts = urlsplit(url)
    host, port = parts.hostname or "", parts.port
    connection = http.client.HTTPConnection(host, port, timeout=ANSWER_LIMIT_S)
    if parts.scheme == "https":
        context = ssl.create_default_context(cafile=authority)
        connection = http.client.HTTPSConnection(host, port, timeout=ANSWER_LIMIT_S, context=context)
    try:
        connection.request("GET", "/readyz")
        return connection.getresponse().status == http.HTTPStatus.OK
    except (OSError, http.client.HTTPException):
        return False
    finally:
        connection.close()


def start_stack(
    folder: Path, *, environment: Mapping[str, str] | None = None, port: int | None = None, workers: int = 1
) -> Stack:
    """Start `dpfl up` on `folder` without waiting for anything.

    Args:
        folder: its data folder; made if missing.
        environment: what to add to, or change in, our own environment.
        port: of the gateway; any free one if None.
        workers: processes that compute.
    """
    chosen = port if port is not None else free_port()
    make_folder(folder)
    log = folder / "up.log"
    options = ("--data", str(folder), "--port", str(chosen), "--workers", str(workers))
    with log.open("wb") as output:
        process = spawn(
            (sys.executable, "-m", "cli.main", "up", *options),
            stop=signal.SIGTERM,
            output=output,
            environment={**os.environ, **(environment or {})},
        )
    return Stack(url=f"http://127.0.0.1:{chosen}", folder=data_folder(folder), process=process, log=log)


def await_ready(stack: Stack, *, limit_s: float = READY_LIMIT_S) -> None:
    """Return when the gateway is ready.

    Raises:
        ServiceFailed: the stack ended, or was not ready in time; the text holds its last line.
    """
    deadline = time.monotonic() + limit_s
    while not answers(stack.url):
        ended = ended_within(stack.process, READY_PAUSE_S)
        if ended or time.monotonic() > deadline:
            lines = stack.log.read_text(encoding="utf-8", errors="replace").strip().splitlines()
            last = lines[-1] if lines else ""
            raise ServiceFailed(
                _("the stack did not become ready: {line} (see {log})", line=last, log=stack.log)
            )


def stop_stack(stack: Stack) -> int:
    """Stop everything as Ctrl-C would, and return the exit code."""
    return stop_process(stack.process, signal.SIGTERM, patience_s=STOP_PATIENCE_S)


@contextmanager
def running_stack(
    folder: Path,
    *,
    environment: Mapping[str, str] | None = None,
    port: int | None = None,
    workers: int = 1,
    limit_s: float = READY_LIMIT_S,
) -> Iterator[Stack]:
    """Run the whole stack for the length of a `with` block; enter it from the main thread.

    Raises:
        ServiceFailed: it did not become ready.
    """
    stack = start_stack(folder, environment=environment, port=port, workers=workers)
    try:
        await_ready(stack, limit_s=limit_s)
        yield stack
    finally:
        stop_stack(stack)
