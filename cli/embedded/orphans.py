"""The record of what runs, and the end of what a killed supervisor left behind.

A process is ours only if both its pid and its start time are those recorded: a pid alone may by now
belong to anybody, and a name says nothing at all.
"""

import json
import os
import signal
from collections.abc import Iterable
from contextlib import suppress
from dataclasses import asdict, dataclass, field
from pathlib import Path

import psutil

from cli.embedded.folder import write_private_json

SAME_START_S = 1.0  # the kernel's boot time, and with it every start time, may be re-estimated by less
STOP_PATIENCE_S = 10.0


@dataclass(frozen=True)
class Recorded:
    """One child, as it was when it started. It leads a process group and a session of its own."""

    name: str
    pid: int
    started: float
    """Seconds since the epoch, as psutil tells it."""


@dataclass
class RunRecord:
    """What runs in one data folder. Written at each change, removed after a clean stop."""

    path: Path
    addresses: dict[str, str] = field(default_factory=dict)
    children: dict[str, Recorded] = field(default_factory=dict)

    def add(self, name: str, pid: int) -> None:
        """Record a child right after its start."""
        with suppress(psutil.NoSuchProcess):
            self.children[name] = Recorded(name, pid, psutil.Process(pid).create_time())
            self.write()

    def write(self) -> None:
        """Put the record on disk."""
        children = [asdict(child) for child in self.children.values()]
        write_private_json(self.path, {"addresses": self.addresses, "children": children})

    def remove(self) -> None:
        """Forget everything: nothing runs any more."""
        self.path.unlink(missing_ok=True)


def read_record(path: Path) -> RunRecord:
    """Read the record at `path`; an absent or damaged one is empty."""
    record = RunRecord(path)
    try:
        content = json.loads(path.read_text(encoding="utf-8"))
        record.addresses = {str(name): str(value) for name, value in content["addresses"].items()}
        for child in content["children"]:
            recorded = Recorded(str(child["name"]), int(child["pid"]), float(child["started"]))
            record.children[recorded.name] = recorded
    except (OSError, ValueError, KeyError, TypeError, AttributeError):
        return RunRecord(path)
    return record


def is_running(child: Recorded) -> bool:
    """Say whether the recorded process itself still runs; another one of its number is not it."""
    try:
        process = psutil.Process(child.pid)
        is_same = abs(process.create_time() - child.started) <= SAME_START_S
        return is_same and process.status() != psutil.STATUS_ZOMBIE
    except psutil.Error:
        return False


def _survivors(child: Recorded) -> list[psutil.Process]:
    """Find the recorded process, or, where it is gone, what it left in the session that it led."""
    try:
        process = psutil.Process(child.pid)
        if abs(process.create_time() - child.started) > SAME_START_S:
            return []  # the number belongs to somebody else now, and so does any session of that number
        if process.status() != psutil.STATUS_ZOMBIE:
            return [process, *process.children(recursive=True)]
    except psutil.NoSuchProcess:
        pass
    left = []
    for process in psutil.process_iter():
        with suppress(psutil.Error, ProcessLookupError):
            in_session = os.getsid(process.pid) == child.pid
            if in_session and process.create_time() >= child.started - SAME_START_S:
                left.append(process)
    return [process for process in left if process.status() != psutil.STATUS_ZOMBIE]


def _signal(processes: Iterable[psutil.Process], number: signal.Signals) -> None:
    for process in processes:
        with suppress(psutil.NoSuchProcess):
            process.send_signal(number)


def stop_orphans(path: Path, *, stop: dict[str, signal.Signals] | None = None) -> list[str]:
    """End every process in the record at `path` that still runs, and remove the record.

    Args:
        path: of a record whose supervisor is known to be dead.
        stop: the polite signal by name of the child; SIGTERM for those not named.
    Returns:
        The names of those that had to be ended.
    """
    record = read_record(path)
    stopped, everything = [], []
    for child in record.children.values():
        survivors = _survivors(child)
        if survivors:
            stopped.append(child.name)
            everything += survivors
            _signal(survivors[:1], (stop or {}).get(child.name, signal.SIGTERM))
    _gone, alive = psutil.wait_procs(everything, timeout=STOP_PATIENCE_S)
    _signal(alive, signal.SIGKILL)
    psutil.wait_procs(alive, timeout=STOP_PATIENCE_S)
    record.remove()
    return stopped
