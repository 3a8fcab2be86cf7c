"""Training clients that serve a run in this process, so that the libraries are loaded once."""

from __future__ import annotations

from collections.abc import Iterable
from contextlib import ExitStack

from cli.access import client_session
from client.profile import Profile
from client.serving import Seat, Service
from client.watching import watcher_for
from client.workbench import Workbench


def serve(profiles: Iterable[Profile], run_id: str) -> None:
    """Take part in a run with all of these clients until it ends; all they say goes over HTTP."""
    with ExitStack() as held:
        watcher = watcher_for()
        held.callback(watcher.close)
        seats = [Seat(one, held.enter_context(client_session(one)), run_id=run_id) for one in profiles]
        Service(seats, trainer=Workbench(), watcher=watcher).run()
