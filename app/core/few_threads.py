"""A few threads for work that is slow on purpose or waits for others, apart from those that serve requests.

A coroutine that waits here holds neither a thread of the gateway nor a connection: a flood of such work slows
such work and nothing else.
"""

from __future__ import annotations

import asyncio
import threading
from collections.abc import Callable
from concurrent.futures import ThreadPoolExecutor
from typing import TypeVar

from app.core.errors import Unavailable
from app.core.i18n import _

T = TypeVar("T")


class Busy(Unavailable):
    """More work of this kind waits than is taken at a time."""

    code, title = "busy", _("Too many at once")
    meaning = _("More sign-ins wait to be checked than this server checks at a time. Nothing was changed.")


class FewThreads:
    """Threads for one kind of work, and how many may wait for them."""

    def __init__(self, name: str, *, threads: int, most_waiting: int) -> None:
        self._pool = ThreadPoolExecutor(threads, thread_name_prefix=name)
        self._most_waiting = most_waiting
        self._lock = threading.Lock()
        self._waiting = 0

    def start(self, work: Callable[[], object]) -> None:
        """Begin `work` without waiting for it."""
        self._pool.submit(work)

    async def run(self, work: Callable[[], T]) -> T:
        """Compute `work` on one of the threads; raises Busy when too many wait already."""
        with self._lock:
            if self._waiting >= self._most_waiting:
                raise Busy(_("too many sign-ins wait to be checked"))
            self._waiting += 1
        try:
            return await asyncio.wrap_future(self._pool.submit(work))
        finally:
            with self._lock:
                self._waiting -= 1
