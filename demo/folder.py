"""The folder of a demo's results: made anew, and never one that holds something else."""

from __future__ import annotations

import shutil
from pathlib import Path

from cli.embedded.errors import FolderUnusable
from cli.embedded.folder import data_folder
from cli.embedded.orphans import stop_orphans
from cli.embedded.up import POLITE_STOP

RESULTS = frozenset({"adapter", "certificate.json", "learning.png", "report.json"})
WORK = frozenset({"server", "mailboxes", "updates", "releases"})


def make_anew(folder: Path) -> None:
    """Empty the folder of an earlier demo, and end what a killed one left running in it.

    Raises:
        FolderUnusable: it holds something that no demo wrote; nothing of it is touched.
        FolderInUse: another demo is running there.
    """
    if folder.exists():
        if not folder.is_dir() or {path.name for path in folder.iterdir()} - RESULTS - WORK:
            raise FolderUnusable(f"{folder} holds something else; name another folder with --out")
        server = data_folder(folder / "server")
        with server.held():
            stop_orphans(server.running, stop=POLITE_STOP)
        shutil.rmtree(folder)
    folder.mkdir(parents=True)
