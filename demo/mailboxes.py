"""The mailboxes' side: enrolments with a key each, served by two client processes over HTTP."""

from __future__ import annotations

import os
import re
import subprocess
import sys
import threading
from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from pathlib import Path

from rich.progress import BarColumn, Progress, ProgressColumn, TaskID, TextColumn, TimeElapsedColumn

from client.enrolment import Wish, enrol
from client.policy import Policy
from demo.federation import Invitation
from demo.mails import Mail, write_mails

PROCESSES = 2
MOST_BARS = 16
_SENT = re.compile(r"^(?P<name>\w+-\d+): round (?P<round>\d+) of \d+ sent, (?P<privacy>.*)$")


class MailboxFailed(Exception):
    """A client process ended with an error; the text is its last line."""


@dataclass(frozen=True)
class Mailbox:
    """An enrolled client and its folder."""

    name: str
    folder: Path
    client_id: str


def open_mailbox(
    mails: list[Mail], policy: Policy, invitation: Invitation, *, server: str, home: Path
) -> Mailbox:
    """Write the mails into a folder of their own and enrol it with its own key and its own terms."""
    name = policy.dataset
    home.mkdir(mode=0o700, parents=True)
    data = home / "mails.jsonl"
    write_mails(mails, data)
    profile = enrol(
        Wish(
            folder=home / "client",
            server=server,
            token=invitation.token,
            name=name,
            data=data,
            policy=policy,
            home=home / "ledgers",
        )
    )
    return Mailbox(name=name, folder=profile.folder, client_id=profile.config.client_id)


def serve(
    mailboxes: Sequence[Mailbox],
    run_id: str,
    *,
    title: str,
    rounds: int,
    updates: Path | None,
    order_seed: int | None,
) -> None:
    """Let two processes, half of the mailboxes each, serve a run to its end.

    A progress bar a mailbox; one for all of them where they are too many to show.

    Args:
        updates: where each client keeps copies of its own updates, for the attack; None for nowhere.
        order_seed: repeats the order of examples in the run without privacy; a private run takes none.
    """
    with Progress(*_columns()) as progress:
        if len(mailboxes) <= MOST_BARS:
            bars = {
                box.name: progress.add_task(f"{title}  {box.name}", total=rounds, privacy="")
                for box in mailboxes
            }
        else:
            shared = progress.add_task(f"{title}  {len(mailboxes)} clients", total=rounds, privacy="")
            bars = dict.fromkeys((box.name for box in mailboxes), shared)
        children = [
            _start(mailboxes[number::PROCESSES], run_id, updates=updates, order_seed=order_seed)
            for number in range(PROCESSES)
        ]
        tails: list[str] = [""] * PROCESSES
        readers = [
            threading.Thread(target=_follow, args=(child, progress, bars, tails, number))
            for number, child in enumerate(children)
        ]
        codes = _wait_for(children, readers)
    for code, tail in zip(codes, tails, strict=True):
        if code != 0:
            raise MailboxFailed(f"a client process ended with {code}: {tail}")


def _in_short(privacy: str) -> str:
    """What fits beside a bar: the epsilon, without who adds the noise."""
    return privacy.partition(" for the whole run")[0]


def _columns() -> list[ProgressColumn]:
    return [
        TextColumn("{task.description}"),
        BarColumn(),
        TextColumn("round {task.completed:.0f} of {task.total:.0f}"),
        TextColumn("{task.fields[privacy]}"),
        TimeElapsedColumn(),
    ]


def _wait_for(children: Sequence[subprocess.Popen[str]], readers: Sequence[threading.Thread]) -> list[int]:
    """Read every child to its end; what is left of them when something fails here is ended."""
    try:
        for reader in readers:
            reader.start()
        for reader in readers:
            reader.join()
        return [child.wait() for child in children]
    finally:
        for child in children:
            if child.poll() is None:
                child.terminate()
                child.wait()


def _start(
    mailboxes: Sequence[Mailbox], run_id: str, *, updates: Path | None, order_seed: int | None
) -> subprocess.Popen[str]:
    command = [
        sys.executable,
        "-m",
        "cli.main",
        "client",
        "run",
        "--run",
        run_id,
    ]
    if updates is not None:
        command += ["--save-updates", str(updates)]
    for box in mailboxes:
        command += ["--folder", str(box.folder)]
    if order_seed is not None:
        command += ["--order-seed", str(order_seed)]
    environment = os.environ | {
        "LC_ALL": "C.UTF-8",  # the lines that are followed below are in English
        "LANGUAGE": "en",
        "OMP_NUM_THREADS": "1",
        "OMP_WAIT_POLICY": "PASSIVE",
        "PYTHONUNBUFFERED": "1",
    }
    return subprocess.Popen(
        command, stdout=subprocess.PIPE, stderr=subprocess.STDOUT, text=True, env=environment
    )


def _follow(
    child: subprocess.Popen[str], progress: Progress, bars: dict[str, TaskID], tails: list[str], number: int
) -> None:
    lines: Iterable[str] = child.stdout or ()
    told: set[str] = set()  # what every client says is shown once
    for line in lines:
        text = line.strip()
        if found := _SENT.match(text):
            progress.update(
                bars[found["name"]], completed=int(found["round"]), privacy=_in_short(found["privacy"])
            )
        elif text:
            tails[number] = text
            said = text.partition(": ")[2]
            if said not in told:
                progress.console.print(text, markup=False, highlight=False)
            told.add(said)
