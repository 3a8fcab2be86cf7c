"""Keep a set of child processes running until told to stop. Knows nothing of what they do.

One thread, the main one, starts and stops everything: on Linux a child ends with the thread that
started it. A thread for each child only waits for its end and reports it on a queue, so the main
thread sleeps until something happens.
"""

import queue
import signal
import subprocess
import threading
import time
from collections import deque
from dataclasses import dataclass, field
from types import FrameType
from typing import Protocol

from cli.embedded.console import Console
from cli.embedded.errors import EmbeddedError, ServiceFailed
from cli.embedded.orphans import RunRecord
from cli.embedded.processes import OnSpawn, ask, end_group, spawn, stop_process
from cli.i18n import _

NAME = "dpfl"
FIRST_DELAY_S = 0.2
DELAY_GROWTH = 3
LONGEST_DELAY_S = 30.0
MOST_FAILURES = 5
FAILURE_WINDOW_S = 120.0

Process = subprocess.Popen[bytes]


class Launcher(Protocol):
    """Something that can be started again and again, and how to end it."""

    @property
    def name(self) -> str:
        """What its lines and its log file are called."""

    @property
    def stop(self) -> tuple[signal.Signals, ...]:
        """Signals that end it, each tried for `patience_s` before the next; SIGKILL follows."""

    @property
    def patience_s(self) -> float:
        """How long each signal may take."""

    def launch(self, console: Console, on_spawn: OnSpawn) -> Process:
        """Start it, tell `on_spawn` at once, and return when it is of use."""


@dataclass(frozen=True)
class Command:
    """One of our own processes: its output is copied to the console."""

    name: str
    argv: tuple[str, ...]
    environment: dict[str, str] = field(repr=False)
    stop: tuple[signal.Signals, ...] = (signal.SIGTERM,)
    patience_s: float = 15.0

    def launch(self, console: Console, on_spawn: OnSpawn) -> Process:
        """Start the command."""
        process = spawn(self.argv, stop=self.stop[0], output=subprocess.PIPE, environment=self.environment)
        on_spawn(process)
        if process.stdout is not None:
            console.follow(self.name, process.stdout)
        return process


@dataclass(frozen=True)
class _Ended:
    name: str
    process: Process


@dataclass(frozen=True)
class _StopRequested:
    number: int


class StopRequested(Exception):
    """Somebody pressed Ctrl-C or sent SIGTERM: not a failure."""


class Supervisor:
    """Starts launchers in order, restarts each that ends, stops all in reverse order."""

    def __init__(self, console: Console, record: RunRecord) -> None:
        self.console = console
        self._record = record
        self._events: queue.SimpleQueue[_Ended | _StopRequested] = queue.SimpleQueue()
        self._launchers: dict[str, Launcher] = {}
        self._processes: dict[str, Process] = {}
        self._failures: dict[str, deque[float]] = {}
        self._due: dict[str, float] = {}

    def listen_to_signals(self) -> None:
        """Turn SIGINT and SIGTERM into a request to stop; a second one changes nothing."""

        def request(number: int, _frame: FrameType | None) -> None:
            self._events.put(_StopRequested(number))

        signal.signal(signal.SIGINT, request)
        signal.signal(signal.SIGTERM, request)

    def start(self, launcher: Launcher) -> None:
        """Start `launcher` and from now on keep it running.

        Raises:
            EmbeddedError: it did not start, the first time.
        """
        self._launchers[launcher.name] = launcher
        self._failures[launcher.name] = deque(maxlen=MOST_FAILURES)
        self._launch(launcher)

    def _launch(self, launcher: Launcher) -> None:
        def on_spawn(process: Process) -> None:
            self._processes[launcher.name] = process
            self._record.add(launcher.name, process.pid)

        process = launcher.launch(self.console, on_spawn)
        threading.Thread(
            target=self._report_end, args=(launcher.name, process), name=f"wait-{launcher.name}", daemon=True
        ).start()

    def _report_end(self, name: str, process: Process) -> None:
        process.wait()
        end_group(process)  # what it started itself must not live on beside its successor
        self._events.put(_Ended(name, process))

    def run_to_end(self, command: Command, *, limit_s: float) -> None:
        """Run a command that ends by itself.

        Raises:
            ServiceFailed: it ended with another code than 0, or not in time.
            StopRequested: we were told to stop meanwhile.
        """
        self._launch(command)
        try:
            code = self._code_of(self._processes[command.name], limit_s=limit_s)
        finally:
            stop_process(self._processes[command.name], *command.stop, patience_s=command.patience_s)
            self._forget(command.name)
        if code != 0:
            raise ServiceFailed(
                _(
                    "{name} ended with code {code}; see {log}",
                    name=command.name,
                    code=code,
                    log=self.console.log_path(command.name),
                )
            )

    def _code_of(self, process: Process, *, limit_s: float) -> int | None:
        deadline = time.monotonic() + limit_s
        while time.monotonic() < deadline:
            event = self.wait(deadline - time.monotonic())
            if event is process:
                return process.returncode
        return None

    def wait(self, limit_s: float | None = None) -> Process | None:
        """Sleep until something happens or `limit_s` is over, and mend what can be mended.

        Returns:
            A process that ended and is not kept running by us.
        Raises:
            StopRequested: we were told to stop.
            ServiceFailed: a child ends again and again.
        """
        limits = [due - time.monotonic() for due in self._due.values()]
        limits += [] if limit_s is None else [limit_s]
        try:
            event = self._events.get(timeout=max(0.0, min(limits))) if limits else self._events.get()
        except queue.Empty:
            event = None
        if isinstance(event, _StopRequested):
            raise StopRequested(signal.Signals(event.number).name)
        if event is not None and event.name not in self._launchers:
            return event.process
        if event is not None and self._processes.get(event.name) is event.process:
            self._note_failure(event.name, _("ended with code {code}", code=event.process.returncode))
        self._restart_due()
        return None

    def _note_failure(self, name: str, reason: str) -> None:
        """Plan the next start of a child, later each time; give up when it fails too often."""
        now = time.monotonic()
        failures = self._failures[name]
        failures.append(now)
        recent = sum(1 for at in failures if now - at < FAILURE_WINDOW_S)
        if recent >= MOST_FAILURES:
            raise ServiceFailed(
                _(
                    "{name} failed {times} times in {seconds} s, last: {reason}; see {log}",
                    name=name,
                    times=recent,
                    seconds=round(now - failures[0]),
                    reason=reason,
                    log=self.console.log_path(name),
                )
            )
        delay = min(LONGEST_DELAY_S, FIRST_DELAY_S * DELAY_GROWTH ** (recent - 1))
        self._due[name] = now + delay
        self.console.say(NAME, _("{name} {reason}; starting it again", name=name, reason=reason))

    def _restart_due(self) -> None:
        for name in [name for name, due in self._due.items() if due <= time.monotonic()]:
            del self._due[name]
            try:
                self._launch(self._launchers[name])
            except EmbeddedError as error:
                self._note_failure(name, _("could not start: {reason}", reason=error))
            else:
                self.console.say(NAME, _("{name} is running again", name=name))

    def keep_running(self) -> None:
        """Restart what ends, until told to stop.

        Raises:
            ServiceFailed: a child ends again and again.
        """
        while True:
            try:
                self.wait()
            except StopRequested:
                return

    def stop(self) -> None:
        """End every child: our own processes at the same time, then the servers, the last started first."""
        ours = {name: one for name, one in self._launchers.items() if isinstance(one, Command)}
        for name, command in ours.items():
            if name in self._processes:
                ask(self._processes[name], command.stop[0])
        for name in reversed(list(self._processes)):
            launcher = self._launchers[name]
            stop_process(
                self._processes[name], *launcher.stop, patience_s=launcher.patience_s, asked=name in ours
            )
            self._forget(name)

    def _forget(self, name: str) -> None:
        self._processes.pop(name, None)
        self._record.children.pop(name, None)
        self._record.write()
