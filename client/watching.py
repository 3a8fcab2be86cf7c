"""What a client shows a person. Constants of the plan only: nothing of the data, and no times."""

from __future__ import annotations

import sys
from dataclasses import dataclass
from typing import Protocol, TextIO

from rich.console import Console
from rich.progress import BarColumn, Progress, TaskID, TextColumn

from client.amounts import delta_text, epsilon_text
from client.i18n import _, translate
from client.ledger import Commitment


@dataclass(frozen=True)
class Standing:
    """Where a profile is in a run: all of it fixed by the manifest."""

    name: str
    number: int
    rounds: int
    commitment: Commitment

    @property
    def privacy(self) -> str:
        """The epsilon of this run up to and with this round, as committed before it began."""
        run = self.commitment
        if not run.is_private:
            return translate(_("no privacy claim"))
        if run.trust == "central":
            return translate(
                _("epsilon {whole} at delta {delta} for the whole run, noised by the server"),
                whole=epsilon_text(run.epsilon, spent=True),
                delta=delta_text(run.delta),
            )
        return translate(
            _("epsilon {spent} of {whole} at delta {delta}"),
            spent=epsilon_text(run.epsilon_with(self.number), spent=True),
            whole=epsilon_text(run.epsilon, spent=True),
            delta=delta_text(run.delta),
        )


class Watcher(Protocol):
    """Shows how the rounds go."""

    def step(self, standing: Standing, done: int, steps: int) -> None:
        """A local step is done."""

    def sent(self, standing: Standing) -> None:
        """The server has the update of this round."""

    def note(self, name: str, text: str) -> None:
        """Something that a person should know; translated already."""

    def close(self) -> None:
        """Leave the terminal as it was."""


class LineWatcher:
    """One plain line for each round and note: for logs and pipes."""

    def __init__(self, out: TextIO) -> None:
        self._out = out

    def step(self, standing: Standing, done: int, steps: int) -> None:
        """Nothing: a line a step would drown the rounds."""

    def sent(self, standing: Standing) -> None:
        """Print the round and its epsilon."""
        text = _("round {number} of {rounds} sent, {privacy}")
        self.note(
            standing.name,
            translate(text, number=standing.number, rounds=standing.rounds, privacy=standing.privacy),
        )

    def note(self, name: str, text: str) -> None:
        """Print one line."""
        self._out.write(f"{name}: {text}\n")
        self._out.flush()

    def close(self) -> None:
        """Nothing was changed."""


class BarWatcher:
    """A bar for each profile, with the epsilon spent so far."""

    def __init__(self, console: Console) -> None:
        # No column of times: how long a silo trains is not the terminal's business.
        self._progress = Progress(
            TextColumn("{task.description}", markup=False),
            BarColumn(),
            TextColumn("{task.fields[where]}", markup=False),
            TextColumn("{task.fields[privacy]}", markup=False),
            console=console,
        )
        self._bars: dict[str, TaskID] = {}
        self._progress.start()

    def step(self, standing: Standing, done: int, steps: int) -> None:
        """Move the bar by one local step."""
        self._show(standing, (standing.number - 1) * steps + done, standing.rounds * steps)

    def sent(self, standing: Standing) -> None:
        """Show the round as done and its epsilon as spent."""
        where = translate(_("round {number} of {rounds}"), number=standing.number, rounds=standing.rounds)
        self._progress.update(self._bar(standing), where=where, privacy=standing.privacy)

    def note(self, name: str, text: str) -> None:
        """Print a line above the bars."""
        self._progress.console.print(f"{name}: {text}", markup=False, highlight=False)

    def close(self) -> None:
        """Stop drawing."""
        self._progress.stop()

    def _show(self, standing: Standing, done: int, whole: int) -> None:
        where = translate(_("round {number} of {rounds}"), number=standing.number, rounds=standing.rounds)
        self._progress.update(self._bar(standing), completed=done, total=whole, where=where)

    def _bar(self, standing: Standing) -> TaskID:
        if standing.name not in self._bars:
            self._bars[standing.name] = self._progress.add_task(standing.name, where="", privacy="")
        return self._bars[standing.name]


def watcher_for(out: TextIO | None = None) -> Watcher:
    """Choose bars on a terminal, lines elsewhere."""
    stream = out or sys.stderr
    console = Console(file=stream)
    return BarWatcher(console) if console.is_terminal else LineWatcher(stream)
