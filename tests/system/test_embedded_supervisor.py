"""The supervisor on small real processes, and what becomes of those that a killed one left behind."""

import contextlib
import os
import signal
import subprocess
import sys
import time
from collections.abc import Callable, Iterator
from pathlib import Path

import psutil
import pytest

from cli.embedded import supervisor as supervision
from cli.embedded.console import Console
from cli.embedded.errors import ServiceFailed
from cli.embedded.orphans import Recorded, RunRecord, read_record, stop_orphans
from cli.embedded.supervisor import Command, StopRequested, Supervisor

pytestmark = pytest.mark.system

LIMIT_S = 30.0
FOREVER = "import signal; print('up', flush=True); signal.pause()"
WITH_CHILD = f"""
import subprocess, sys
child = subprocess.Popen([sys.executable, "-c", "import signal; signal.pause()"])
open("child.pid", "w").write(str(child.pid))
{FOREVER}
"""


def command(name: str, code: str) -> Command:
    return Command(name, (sys.executable, "-c", code), dict(os.environ), patience_s=5.0)


@pytest.fixture
def supervisor(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Iterator[Supervisor]:
    monkeypatch.chdir(tmp_path)
    monkeypatch.setattr(supervision, "FIRST_DELAY_S", 0.01)
    made = Supervisor(Console(tmp_path), RunRecord(tmp_path / "running.json"))
    yield made
    made.stop()


def wait_until(supervisor: Supervisor, holds: Callable[[], bool]) -> None:
    deadline = time.monotonic() + LIMIT_S
    while not holds():
        assert time.monotonic() < deadline
        supervisor.wait(0.05)


def pid_in_record(folder: Path, name: str) -> int:
    return read_record(folder / "running.json").children[name].pid


def test_a_child_that_is_killed_is_started_again(supervisor: Supervisor, tmp_path: Path) -> None:
    supervisor.start(command("one", FOREVER))
    first = pid_in_record(tmp_path, "one")
    os.kill(first, signal.SIGKILL)
    wait_until(supervisor, lambda: pid_in_record(tmp_path, "one") != first)
    assert psutil.Process(pid_in_record(tmp_path, "one")).is_running()


def test_what_a_killed_child_had_started_does_not_live_on_beside_its_successor(
    supervisor: Supervisor, tmp_path: Path
) -> None:
    supervisor.start(command("one", WITH_CHILD))
    wait_until(supervisor, lambda: (tmp_path / "child.pid").exists() and "up" in _log(tmp_path, "one"))
    grandchild = psutil.Process(int((tmp_path / "child.pid").read_text()))
    os.kill(pid_in_record(tmp_path, "one"), signal.SIGKILL)
    grandchild.wait(timeout=LIMIT_S)


def test_a_child_that_always_fails_ends_with_one_line_that_names_it(
    supervisor: Supervisor, tmp_path: Path
) -> None:
    supervisor.start(command("broken", "raise SystemExit(3)"))
    with pytest.raises(ServiceFailed, match=r"broken failed 5 times .* code 3") as caught:
        wait_until(supervisor, lambda: False)
    assert "\n" not in str(caught.value)
    assert str(tmp_path / "broken.log") in str(caught.value)


def test_one_failing_child_leaves_the_others_running(supervisor: Supervisor, tmp_path: Path) -> None:
    supervisor.start(command("steady", FOREVER))
    steady = pid_in_record(tmp_path, "steady")
    supervisor.start(command("broken", "raise SystemExit(3)"))
    with pytest.raises(ServiceFailed):
        wait_until(supervisor, lambda: False)
    assert pid_in_record(tmp_path, "steady") == steady
    assert psutil.Process(steady).is_running()


def test_stopping_ends_every_child_and_forgets_it(supervisor: Supervisor, tmp_path: Path) -> None:
    supervisor.start(command("one", FOREVER))
    supervisor.start(command("two", WITH_CHILD))
    wait_until(supervisor, lambda: (tmp_path / "child.pid").exists() and "up" in _log(tmp_path, "two"))
    running = [psutil.Process(pid_in_record(tmp_path, name)) for name in ("one", "two")]
    running.append(psutil.Process(int((tmp_path / "child.pid").read_text())))
    supervisor.stop()
    _gone, alive = psutil.wait_procs(running, timeout=LIMIT_S)
    assert alive == []
    assert read_record(tmp_path / "running.json").children == {}


def test_a_request_to_stop_interrupts_a_command_that_runs_to_its_end(supervisor: Supervisor) -> None:
    before = {number: signal.getsignal(number) for number in (signal.SIGINT, signal.SIGTERM)}
    supervisor.listen_to_signals()
    try:
        os.kill(os.getpid(), signal.SIGTERM)
        with pytest.raises(StopRequested):
            supervisor.run_to_end(command("endless", FOREVER), limit_s=LIMIT_S)
    finally:
        for number, handler in before.items():
            signal.signal(number, handler)


@pytest.mark.parametrize(("code", "limit_s"), [("raise SystemExit(7)", LIMIT_S), (FOREVER, 0.2)])
def test_a_command_that_fails_or_does_not_end_is_told_with_its_log(
    supervisor: Supervisor, tmp_path: Path, code: str, limit_s: float
) -> None:
    with pytest.raises(ServiceFailed, match=r"migrations .*migrations\.log"):
        supervisor.run_to_end(command("migrations", code), limit_s=limit_s)
    assert read_record(tmp_path / "running.json").children == {}


def test_output_goes_to_the_terminal_with_a_name_and_to_a_file_as_it_is(
    supervisor: Supervisor, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    supervisor.start(command("speaker", FOREVER))
    wait_until(supervisor, lambda: "up" in _log(tmp_path, "speaker"))
    assert _log(tmp_path, "speaker") == "up\n"
    shown = ""
    deadline = time.monotonic() + LIMIT_S
    while not shown and time.monotonic() < deadline:
        supervisor.wait(0.05)
        shown = capsys.readouterr().out
    assert shown == "speaker    | up\n"


def _log(folder: Path, name: str) -> str:
    path = folder / f"{name}.log"
    return path.read_text() if path.exists() else ""


Stray = Callable[[str], "subprocess.Popen[str]"]


@pytest.fixture
def stray() -> Iterator[Stray]:
    """Start processes that lead their own sessions, as the supervisor's children do."""
    made: list[subprocess.Popen[str]] = []

    def start(code: str) -> "subprocess.Popen[str]":
        process = subprocess.Popen(
            [sys.executable, "-c", code], stdout=subprocess.PIPE, text=True, start_new_session=True
        )
        made.append(process)
        assert process.stdout is not None
        return process

    yield start
    for process in made:
        with contextlib.suppress(ProcessLookupError, PermissionError):
            os.killpg(process.pid, signal.SIGKILL)
        process.wait()
        if process.stdout:
            process.stdout.close()


def first_line(process: "subprocess.Popen[str]") -> str:
    assert process.stdout is not None
    return process.stdout.readline().strip()


def test_an_orphan_is_stopped_by_the_next_start(tmp_path: Path, stray: Stray) -> None:
    orphan = stray(FOREVER)
    record = RunRecord(tmp_path / "running.json")
    record.add("gateway", orphan.pid)
    assert stop_orphans(record.path) == ["gateway"]
    assert not psutil.pid_exists(orphan.pid)
    assert not record.path.exists()


def test_an_orphan_that_ignores_sigterm_is_killed(
    tmp_path: Path, stray: Stray, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("cli.embedded.orphans.STOP_PATIENCE_S", 0.5)
    orphan = stray(f"import signal; signal.signal(signal.SIGTERM, signal.SIG_IGN); {FOREVER}")
    assert first_line(orphan) == "up"
    record = RunRecord(tmp_path / "running.json")
    record.add("gateway", orphan.pid)
    assert stop_orphans(record.path) == ["gateway"]
    assert not psutil.pid_exists(orphan.pid)


def test_a_process_that_only_has_the_recorded_pid_is_left_alone(tmp_path: Path, stray: Stray) -> None:
    stranger = stray(FOREVER)
    assert first_line(stranger) == "up"
    record = RunRecord(tmp_path / "running.json")
    record.children["gateway"] = Recorded(
        "gateway", stranger.pid, psutil.Process(stranger.pid).create_time() - 3600
    )
    record.write()
    assert stop_orphans(record.path) == []
    assert stranger.poll() is None


def test_what_a_dead_orphan_left_in_its_session_is_stopped(tmp_path: Path, stray: Stray) -> None:
    leader = stray(
        "import subprocess, sys, signal\n"
        "child = subprocess.Popen([sys.executable, '-c', 'import signal; signal.pause()'])\n"
        "print(child.pid, flush=True)\n"
        "signal.pause()"
    )
    child = psutil.Process(int(first_line(leader)))
    record = RunRecord(tmp_path / "running.json")
    record.add("cpu1", leader.pid)
    leader.kill()
    leader.wait(timeout=LIMIT_S)
    assert stop_orphans(record.path) == ["cpu1"]
    child.wait(timeout=LIMIT_S)


@pytest.mark.parametrize("content", ["", "{", "[]", '{"addresses": {}, "children": [{"name": "x"}]}'])
def test_a_damaged_record_stops_nothing_and_hinders_nothing(tmp_path: Path, content: str) -> None:
    path = tmp_path / "running.json"
    path.write_text(content)
    assert stop_orphans(path) == []
