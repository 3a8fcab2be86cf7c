"""Named points at which a test may hold the client and kill it. Inert outside a development environment."""

from __future__ import annotations

import os
import signal
import sys

POINTS = (
    "after_update_fsync",
    "after_digest_fsync",
    "after_prepared",
    "after_spent",
    "mid_body",
    "after_body_before_receipt",
    "after_receipt",
)


def pause_at(point: str) -> None:
    """Stop here until the process is killed, if DPFL_CLIENT_PAUSE_AT names this point."""
    if os.environ.get("DPFL_ENVIRONMENT") != "development":
        return
    if os.environ.get("DPFL_CLIENT_PAUSE_AT") == point:
        sys.stderr.write(f"paused at {point}\n")
        sys.stderr.flush()
        signal.pause()
