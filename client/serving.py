"""Serving rounds until the run ends: one thread a profile waits for work, this one trains and sends.

Profiles are served in turn on one model. A refusal ends its own profile only; the others go on.
"""

from __future__ import annotations

import queue
import threading
import time
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, field
from pathlib import Path
from typing import Protocol

from client.accepting import join
from client.asking import list_assignments, run_state
from client.buffering import TOO_STALE, key_of, pending
from client.durable import private_folder, write_whole
from client.errors import ClientError, RoundMissed
from client.i18n import _, translate
from client.profile import Profile
from client.round_files import RoundFiles
from client.rounds import Trainer, fetch, is_unsent, submit, train
from client.session import Session
from client.watching import Standing, Watcher
from client.wire import Assignment, FrozenManifest
from engines.lora.methods import trains

_HELD_S = 20.0
_LEAST_TURN_S = 0.2
"""Shortest time between two questions whose answer was empty, should a server not hold them back."""
_MISSED_TURN_S = 2.0
"""The same while a round is open that this client has missed, which the server keeps listing."""
OVER = frozenset({"finished", "aborted", "refused"})
"""States of a run that never asks for an update again."""


class ReadyingTrainer(Trainer, Protocol):
    """A trainer that can prepare several profiles before the first of them trains."""

    def make_ready(self, profile: Profile, frozen: FrozenManifest) -> None:
        """Do what does not depend on the round."""


@dataclass
class Seat:
    """One profile at work."""

    profile: Profile
    session: Session
    run_id: str | None = None
    """The run to serve; without it, whichever asks first."""
    joined: str | None = None
    """The run that is committed, so far as it must be before a round of it comes."""
    missed: set[str] = field(default_factory=set)
    """Rounds that go on without this client."""
    given_up: set[str] = field(default_factory=set)
    """Updates of a buffered run that have become too old for any buffer."""
    warned_of: str | None = None
    """The run of which its person was told that the server sees the updates."""
    sent_last: bool = False
    """Its last update is sent: only the end of the run is still waited for."""
    done: bool = False
    error: ClientError | None = None


@dataclass(frozen=True)
class News:
    """What a waiting thread found: work, the end of the run, or a refusal."""

    seat: Seat
    assignments: tuple[Assignment, ...] = ()
    error: ClientError | None = None


class Service:
    """The loop over all seats."""

    def __init__(
        self,
        seats: Sequence[Seat],
        *,
        trainer: ReadyingTrainer,
        watcher: Watcher,
        once: bool = False,
        save_updates: Path | None = None,
    ) -> None:
        self._seats = seats
        self._trainer = trainer
        self._watcher = watcher
        self._once = once
        self._save_updates = save_updates
        self._news: queue.Queue[News] = queue.Queue()

    def run(self) -> None:
        """Serve until every seat is done; raises the first seat's refusal when all have ended."""
        for seat in self._seats:
            self._ask(seat)
        while not all(seat.done for seat in self._seats):
            self._serve([self._news.get(), *self._waiting()])
        for seat in self._seats:
            if seat.error is not None:
                raise seat.error

    def _waiting(self) -> list[News]:
        found: list[News] = []
        while not self._news.empty():
            found.append(self._news.get())
        return found

    def _ask(self, seat: Seat) -> None:
        threading.Thread(target=self._wait_for_news, args=(seat,), daemon=True).start()

    def _wait_for_news(self, seat: Seat) -> None:
        try:
            self._news.put(News(seat, assignments=next_assignments(seat)))
        except ClientError as error:
            self._news.put(News(seat, error=error))
        except Exception as error:  # noqa: BLE001  a thread that dies in silence would leave the loop waiting
            self._news.put(
                News(
                    seat,
                    error=ClientError(
                        "internal_error", _("a waiting thread ended with {kind}"), kind=type(error).__name__
                    ),
                )
            )

    def _serve(self, news: list[News]) -> None:
        """Fetch for all that have work, prepare all, then train and send one after the other."""
        work: list[tuple[Seat, Assignment, RoundFiles]] = []
        for one in news:
            if one.error is not None or not one.assignments:
                self._end(one.seat, one.error)
                continue
            assignment = one.assignments[0]
            with self._guarded(one.seat, assignment):
                work.append((one.seat, assignment, self._fetched(one.seat, assignment)))
        for seat, assignment, files in work:
            with self._guarded(seat, assignment):
                self._train_and_send(seat, files, asked=assignment)
        for one in news:
            if not one.seat.done:
                self._ask(one.seat)

    @contextmanager
    def _guarded(self, seat: Seat, assignment: Assignment) -> Iterator[None]:
        """Let a refusal end the round or the seat that it belongs to, and nothing else."""
        try:
            yield
        except RoundMissed as error:
            if error.code != TOO_STALE:  # that was an older update's: the round itself still waits
                seat.missed.add(str(assignment.round_id))
            if self._once:
                self._end(seat, error)
            else:
                self._tell(seat, error)
        except ClientError as error:
            self._end(seat, error)

    def _fetched(self, seat: Seat, assignment: Assignment) -> RoundFiles:
        left = pending(seat.profile, assignment, given_up=seat.given_up)
        files = left or fetch(seat.profile, seat.session, assignment)
        seat.run_id = seat.run_id or str(assignment.run_id)
        if seat.run_id != seat.warned_of and files.manifest().manifest.privacy.trust == "central":
            seat.warned_of = seat.run_id
            self._watcher.note(
                seat.profile.name,
                translate(
                    _("the server sees this client's updates and adds the noise itself (trust central)")
                ),
            )
        looks = trains(files.manifest().manifest.lora.method, assignment.number)
        if left is None and looks and is_unsent(seat.profile, assignment):
            self._trainer.make_ready(seat.profile, files.manifest())
        return files

    def _train_and_send(self, seat: Seat, files: RoundFiles, *, asked: Assignment) -> None:
        """Train and send what is in a folder: the round that asks, or in a buffered run an earlier one."""
        assignment = files.assignment()
        commitment = seat.profile.ledger.book().commitments[str(assignment.run_id)]
        standing = Standing(seat.profile.name, assignment.number, assignment.rounds, commitment)
        train(
            seat.profile,
            files,
            self._trainer,
            on_step=lambda done, steps: self._watcher.step(standing, done, steps),
        )
        try:
            submit(seat.profile, seat.session, files)
        except RoundMissed as error:
            if error.code == TOO_STALE:
                seat.given_up.add(key_of(assignment))
            raise
        if self._save_updates is not None:
            _save(files, self._save_updates / seat.profile.name / f"round-{assignment.number}.safetensors")
        self._watcher.sent(standing)
        run = seat.profile.ledger.book().commitments[str(assignment.run_id)]
        seat.sent_last = asked.number == asked.rounds or run.is_used_up
        if self._once:
            self._end(seat, None)

    def _end(self, seat: Seat, error: ClientError | None) -> None:
        seat.done, seat.error = True, error
        if error is not None:
            self._tell(seat, error)

    def _tell(self, seat: Seat, error: ClientError) -> None:
        self._watcher.note(seat.profile.name, f"[{error.code}] {translate(error.message, **error.members)}")
        if error.evidence is not None:
            self._watcher.note(
                seat.profile.name, translate(_("what was announced and held: {path}"), path=error.evidence)
            )


def next_assignments(seat: Seat) -> tuple[Assignment, ...]:
    """Wait until a round asks for this client's update; empty when its run is over."""
    while True:
        asked = time.monotonic()
        if seat.sent_last and _is_over(seat, wait_s=_HELD_S):
            return ()
        listed = list_assignments(seat.session, wait_s=0.0 if seat.sent_last or seat.missed else _HELD_S)
        wanted = [one for one in listed if seat.run_id in (None, str(one.run_id))]
        work = tuple(one for one in wanted if str(one.round_id) not in seat.missed)
        if work:
            return work
        if seat.run_id is not None and seat.joined != seat.run_id:
            seat.joined = seat.run_id if join(seat.profile, seat.session, seat.run_id) else None
        if _is_over(seat):
            return ()
        least_s = _MISSED_TURN_S if seat.missed else _LEAST_TURN_S
        time.sleep(max(least_s - (time.monotonic() - asked), 0.0))


def _is_over(seat: Seat, *, wait_s: float = 0.0) -> bool:
    """Say whether the seat's run has ended; wait for a change of it first, if it has not."""
    if seat.run_id is None:
        return False
    run = run_state(seat.session, seat.run_id)
    if run.state not in OVER and wait_s:
        run = run_state(seat.session, seat.run_id, since=run.version, wait_s=wait_s)
    return run.state in OVER


def _save(files: RoundFiles, to: Path) -> None:
    """Keep a copy of an update for its owner, who asked for it."""
    private_folder(to.parent)
    write_whole(to, files.update_path.read_bytes())
