"""What a person reads while the stack runs: each line with the name of the process that said it."""

import sys
import threading
from pathlib import Path
from typing import IO

NAME_WIDTH = 10
KEPT_LOG_BYTES = 10 * 1024**2


class Console:
    """Lines of many processes on one terminal, whole lines only, and each also in its own file."""

    def __init__(self, logs: Path, *, quiet: bool = False) -> None:
        self._logs = logs
        self._quiet = quiet
        self._turn = threading.Lock()

    def log_path(self, name: str) -> Path:
        """Return the log file of the process `name`, a large one moved aside first."""
        path = self._logs / f"{name}.log"
        if path.exists() and path.stat().st_size > KEPT_LOG_BYTES:
            path.replace(path.with_suffix(".log.1"))
        return path

    def say(self, name: str, line: str) -> None:
        """Print one line under `name`; a terminal that is gone is no reason to stop."""
        with self._turn:
            try:
                print(f"{name:<{NAME_WIDTH}} | {line}", file=sys.stdout, flush=True)
            except OSError:
                self._quiet = True

    def follow(self, name: str, stream: IO[bytes]) -> threading.Thread:
        """Copy what a process writes to the terminal and its file, in a thread, until it writes no more."""
        thread = threading.Thread(target=self._copy, args=(name, stream), name=f"log-{name}", daemon=True)
        thread.start()
        return thread

    def _copy(self, name: str, stream: IO[bytes]) -> None:
        with stream, self.log_path(name).open("ab") as file:
            for line in stream:
                file.write(line)
                file.flush()
                if not self._quiet:
                    self.say(name, line.decode(errors="replace").rstrip())
