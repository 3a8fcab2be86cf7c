"""Start and stop one child process. Nothing here knows what the child does.

Every child leads its own process group, so that a terminal's Ctrl-C reaches only the supervisor,
and on Linux it is told to end when the thread that started it ends: start children from the main
thread. What survives a kill -9 of the supervisor elsewhere is stopped by `cli.embedded.orphans`.
"""

import os
import shutil
import signal
import socket
import subprocess
import sys
from collections.abc import Callable, Mapping, Sequence
from contextlib import suppress
from dataclasses import dataclass
from functools import cache
from pathlib import Path
from typing import IO, TypeVar

from cli.embedded.errors import PortOccupied
from cli.i18n import _

LOOPBACK = "127.0.0.1"
PORT_ATTEMPTS = 3
Server = TypeVar("Server")
OnSpawn = Callable[["subprocess.Popen[bytes]"], None]
"""Told of a child right after it was started."""


def forget(_process: "subprocess.Popen[bytes]") -> None:
    """Take no note of a new child."""


@dataclass(frozen=True)
class Account:
    """Which operating-system account a child runs as, and what stands before its command."""

    prefix: tuple[str, ...] = ()
    user: str | None = None
    group: str | int | None = None


SAME_ACCOUNT = Account()


@cache
def _setpriv() -> str | None:
    return shutil.which("setpriv") if sys.platform.startswith("linux") else None


def ending_with_parent(command: Sequence[str], stop: signal.Signals) -> list[str]:
    """Return `command` so wrapped that the kernel sends it `stop` when its parent dies (Linux)."""
    wrapper = _setpriv()
    if wrapper is None:
        return list(command)
    return [wrapper, "--pdeathsig", stop.name.removeprefix("SIG"), "--", *command]


def spawn(
    command: Sequence[str],
    *,
    stop: signal.Signals,
    output: IO[bytes] | int,
    account: Account = SAME_ACCOUNT,
    environment: Mapping[str, str] | None = None,
    folder: Path | None = None,
) -> "subprocess.Popen[bytes]":
    """Start `command` in its own process group with both output streams in `output`."""
    return subprocess.Popen(
        [*account.prefix, *ending_with_parent(command, stop)],
        stdin=subprocess.DEVNULL,
        stdout=output,
        stderr=subprocess.STDOUT,
        cwd=folder,
        env=None if environment is None else dict(environment),
        user=account.user,
        group=account.group,
        extra_groups=None if account.user is None else [],
        start_new_session=True,
    )


def ask(process: "subprocess.Popen[bytes]", number: signal.Signals) -> None:
    """Send a signal; a process that is gone needs none."""
    with suppress(ProcessLookupError):
        process.send_signal(number)


def stop_process(
    process: "subprocess.Popen[bytes]", *signals: signal.Signals, patience_s: float, asked: bool = False
) -> int:
    """Send each signal in turn, waiting `patience_s` after each; end with SIGKILL to the whole group.

    Args:
        process: the child.
        signals: from the politest on.
        patience_s: how long each may take.
        asked: the first signal was sent already; some programs hurry at a second one.
    """
    for number in signals:
        if process.poll() is not None:
            break
        if not asked:
            ask(process, number)
        asked = False
        ended_within(process, patience_s)
    end_group(process)
    return process.wait()


def end_group(process: "subprocess.Popen[bytes]") -> None:
    """Kill what is left of the process group that this child leads or led."""
    with suppress(ProcessLookupError, PermissionError):
        os.killpg(process.pid, signal.SIGKILL)


def ended_within(process: "subprocess.Popen[bytes]", pause_s: float) -> bool:
    """Wait at most `pause_s` for the child to end, and say whether it did."""
    try:
        process.wait(timeout=pause_s)
    except subprocess.TimeoutExpired:
        return False
    return True


def free_port() -> int:
    """Return a loopback port that nothing listens on at this moment."""
    with socket.socket(socket.AF_INET, socket.SOCK_STREAM) as probe:
        probe.bind((LOOPBACK, 0))
        port: int = probe.getsockname()[1]
        return port


def start_on_port(start: Callable[[int], Server], *, port: int | None, wanted_by: str) -> Server:
    """Call `start` with `port`, or with any free one: again if another program takes that first.

    Raises:
        PortOccupied: `port` is taken, or every free one was.
    """
    if port is not None:
        require_free_port(port, wanted_by=wanted_by)
        return start(port)
    for _attempt in range(PORT_ATTEMPTS - 1):
        with suppress(PortOccupied):
            return start(free_port())
    return start(free_port())


def require_free_port(port: int, *, host: str = LOOPBACK, wanted_by: str) -> None:
    """Refuse a port that another program already listens on.

    Raises:
        PortOccupied: the port cannot be bound, or there is no such host here.
    """
    try:
        family, kind, protocol, _name, address = socket.getaddrinfo(host, port, type=socket.SOCK_STREAM)[0]
        with socket.socket(family, kind, protocol) as probe:
            probe.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
            probe.bind(address)
    except OSError as error:
        raise PortOccupied(
            _(
                "{program} cannot use port {port} on {host}: {reason}",
                program=wanted_by,
                port=port,
                host=host,
                reason=error.strerror,
            )
        ) from error
