"""Named points at which a test may stop a worker, to kill it there. Inert outside development."""

from __future__ import annotations

import os
import time
from contextlib import suppress
from pathlib import Path

FOLDER_VARIABLE = "DPFL_PAUSE_FOLDER"


def reach(point: str) -> None:
    """Block here for ever if a test left a file `<point>` in its folder.

    The file is renamed to `<point>.reached`, so that the attempt after the kill passes, and then holds the
    id of this process's group.
    """
    folder = os.environ.get(FOLDER_VARIABLE)
    if not folder or os.environ.get("DPFL_ENVIRONMENT") != "development":
        return
    marker, reached = Path(folder, point), Path(folder, f"{point}.reached")
    with suppress(FileNotFoundError):
        marker.rename(reached)
        reached.write_text(f"{os.getpgid(0)}\n")
        while reached.exists():
            time.sleep(0.02)
