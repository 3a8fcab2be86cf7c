"""`dpfl client`: enrol, fetch, train, submit, run, status. Parses arguments; the client package works."""

from __future__ import annotations

from pathlib import Path
from typing import TYPE_CHECKING, Annotated

import typer

from cli.access import client_session
from cli.enrol import FolderOption, enrol
from cli.evaluate import evaluate
from cli.i18n import _
from cli.invite import invite
from cli.pairing import attach, card, ledger_moved
from cli.pins import pins
from cli.reporting import one_line_errors, quiet_libraries
from cli.rotating import rotate_key

if TYPE_CHECKING:
    from client.profile import Profile

app = typer.Typer(
    name="client", help=_("Train on a private data set; only noised updates leave."), no_args_is_help=True
)

app.command(help=_("Invite training clients by a file each: an operator's command."))(invite)
app.command(help=_("Become a client of a federation: by an invitation's file, or by the options."))(enrol)
app.command(help=_("Show the pinned keys of a client's server, or put others in their place."))(pins)
app.command(help=_("Write the card by which another machine can train for this client."))(card)
app.command(help=_("Train here for a client that is enrolled on another machine, by its card."))(attach)
app.command("rotate-key", help=_("Give this client a new key, vouched for by its present one."))(rotate_key)
app.command("ledger-moved", help=_("Say that the ledger was moved here and none is left where it was."))(
    ledger_moved
)

app.command(help=_("Measure a `fedsa` release and this client's own model on held-out data; stays here."))(
    evaluate
)

RoundFolder = Annotated[
    Path | None,
    typer.Option("--round", help=_("Folder of the round; without it, one inside the client's own.")),
]


@app.command(help=_("Bring the open round here, if the policy allows its run. Needs a network, no data."))
def fetch(folder: FolderOption, to: RoundFolder = None) -> None:
    """Bring the open round here, if the policy allows its run. Needs a network, no data."""
    with one_line_errors():
        from client.asking import list_assignments
        from client.errors import ClientError
        from client.profile import Profile
        from client.rounds import fetch as fetch_round

        profile = Profile.open(folder)
        with profile.locked(), client_session(profile) as session:
            waiting = list_assignments(session, wait_s=0.0)
            if not waiting:
                raise ClientError("no_open_round", _("no open round waits for this client"))
            files = fetch_round(profile, session, waiting[0], into=to)
            print(
                _(
                    "round {number} of {rounds}: {folder}",
                    number=waiting[0].number,
                    rounds=waiting[0].rounds,
                    folder=files.folder,
                )
            )


@app.command(help=_("Train the fetched round. Needs the data, no network."))
def train(folder: FolderOption, at: RoundFolder = None) -> None:
    """Train the fetched round. Needs the data, no network."""
    quiet_libraries()
    with one_line_errors():
        from client.profile import Profile
        from client.round_files import RoundFiles
        from client.rounds import train as train_round
        from client.workbench import Workbench

        profile = Profile.open(folder)
        with profile.locked():
            files = RoundFiles(at or newest_round(profile))
            train_round(profile, files, Workbench(), on_step=lambda _done, _steps: None)
            print(_("update ready: {path}", path=files.update_path))


@app.command(
    help=_("Send the trained update: these bytes and no others, for ever. Needs a network, no data.")
)
def submit(folder: FolderOption, at: RoundFolder = None) -> None:
    """Send the trained update: these bytes and no others, for ever. Needs a network, no data."""
    with one_line_errors():
        from client.profile import Profile
        from client.round_files import RoundFiles
        from client.rounds import submit as submit_round

        profile = Profile.open(folder)
        with profile.locked(), client_session(profile) as session:
            receipt = submit_round(profile, session, RoundFiles(at or newest_round(profile)))
            print(
                _(
                    "received: update {update}, sha256 {digest}",
                    update=receipt.update_id,
                    digest=receipt.sha256,
                )
            )


@app.command(
    help=_("Serve rounds until the run ends; several clients share one base model and train in turn.")
)
def run(
    folder: Annotated[
        list[Path], typer.Option("--folder", "--profile", help=_("A client's own folder; may be repeated."))
    ],
    once: Annotated[bool, typer.Option("--once", help=_("End after one round."))] = False,
    run_id: Annotated[
        str | None, typer.Option("--run", help=_("Serve this run only, until it ends."))
    ] = None,
    save_updates: Annotated[Path | None, typer.Option(help=_("Keep a copy of each update there."))] = None,
    order_seed: Annotated[
        int | None, typer.Option(help=_("Repeat the order of examples; only under trust `none`."))
    ] = None,
) -> None:
    """Serve rounds until the run ends; several clients share one base model and train in turn."""
    quiet_libraries()
    with one_line_errors():
        from contextlib import ExitStack

        from client.profile import Profile
        from client.serving import Seat, Service
        from client.watching import watcher_for
        from client.workbench import Workbench

        with ExitStack() as held:
            watcher = watcher_for()
            held.callback(watcher.close)
            seats = []
            for path in folder:
                profile = Profile.open(path)
                held.enter_context(profile.locked())
                session = held.enter_context(client_session(profile))
                seats.append(Seat(profile, session, run_id=run_id))
            bench = Workbench(order_seed=order_seed)
            Service(seats, trainer=bench, watcher=watcher, once=once, save_updates=save_updates).run()


@app.command("id", help=_("Print the client's identifier, by which runs name it."))
def print_id(folder: FolderOption) -> None:
    """Print it alone, for scripts."""
    with one_line_errors():
        from client.profile import Profile

        print(Profile.open(folder).config.client_id)


@app.command(
    help=_("Show the data set's ledger: what is spent (rounded up) and what is left (rounded down).")
)
def status(folder: FolderOption) -> None:
    """Show the data set's ledger: what is spent (rounded up) and what is left (rounded down)."""
    with one_line_errors():
        from client.profile import Profile
        from client.standing import status_lines

        for line in status_lines(Profile.open(folder)):
            print(line)


@app.command(help=_("Sign that nothing was sent for a run, so that its budget is given back."))
def disclaim(
    folder: FolderOption, run_id: Annotated[str, typer.Option("--run", help=_("A run that ended."))]
) -> None:
    """Sign that nothing was sent for a run, so that its budget is given back."""
    with one_line_errors():
        from client.disclaiming import disclaim as disclaim_run
        from client.profile import Profile

        profile = Profile.open(folder)
        with profile.locked(), client_session(profile) as session:
            disclaim_run(profile, session, run_id)
            print(_("run {run}: its budget is given back, and nothing will ever be sent for it", run=run_id))


def newest_round(profile: Profile) -> Path:
    """The round that was fetched last into the client's own folder."""
    from client.errors import ClientError

    found = sorted(
        (profile.folder / "rounds").glob("*/*/assignment.json"), key=lambda path: path.stat().st_mtime
    )
    if not found:
        raise ClientError("no_round", _("{path} holds no fetched round"), path=str(profile.folder))
    return found[-1].parent
