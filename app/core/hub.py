"""One LISTEN connection a process: coroutines wait here for what another process committed.

NOTIFY arrives after COMMIT only. After a lost connection every waiter is woken, since anything may have
been missed; a waiter therefore always reads the database again, and never trusts the payload.
"""

from __future__ import annotations

import asyncio
import contextlib
from collections import defaultdict
from collections.abc import Callable, Iterator

import psycopg
import structlog
from sqlalchemy.engine import make_url

from app.core.db import NOTICE_LOSS

CHANNELS = ("dpfl_rounds", "dpfl_runs", "dpfl_jobs", "dpfl_principals", "dpfl_audit", "dpfl_security")
log = structlog.get_logger()


class Hub:
    """Fan-out of NOTIFY to waiting coroutines, keyed by (channel, payload)."""

    def __init__(self, database_url: str) -> None:
        url = make_url(database_url).set(drivername="postgresql")
        self._dsn = url.render_as_string(hide_password=False)
        self._waiters: dict[tuple[str, str], set[asyncio.Event]] = defaultdict(set)
        self._subscribers: dict[str, list[Callable[[str], None]]] = defaultdict(list)
        self._task: asyncio.Task[None] | None = None
        self.connected = asyncio.Event()

    def subscribe(self, channel: str, callback: Callable[[str], None]) -> None:
        """Call `callback(payload)` for each message, and with "" after a reconnect."""
        self._subscribers[channel].append(callback)

    def start(self) -> None:
        """Begin to listen, on the running loop."""
        self._task = asyncio.get_running_loop().create_task(self._listen())

    async def stop(self) -> None:
        """Stop listening and let every waiter go."""
        if self._task is not None:
            self._task.cancel()
            with contextlib.suppress(asyncio.CancelledError):
                await self._task
        self._wake_all()

    @contextlib.contextmanager
    def waiter(self, channel: str, payload: str) -> Iterator[asyncio.Event]:
        """Register before reading the database, so that nothing falls between the read and the wait."""
        event = asyncio.Event()
        key = (channel, payload)
        self._waiters[key].add(event)
        try:
            yield event
        finally:
            self._waiters[key].discard(event)
            if not self._waiters[key]:
                del self._waiters[key]

    def _wake_all(self) -> None:
        for events in self._waiters.values():
            for event in events:
                event.set()
        for callbacks in self._subscribers.values():
            for callback in callbacks:
                callback("")

    def _deliver(self, channel: str, payload: str) -> None:
        for event in self._waiters.get((channel, payload), ()):
            event.set()
        for callback in self._subscribers.get(channel, ()):
            callback(payload)

    async def _listen(self) -> None:
        pause_s = 0.05
        while True:
            try:
                connecting = psycopg.AsyncConnection.connect(self._dsn, autocommit=True, **NOTICE_LOSS)
                async with await connecting as connection:
                    for channel in CHANNELS:
                        await connection.execute(f"LISTEN {channel}")
                    self.connected.set()
                    self._wake_all()
                    pause_s = 0.05
                    async for message in connection.notifies():
                        self._deliver(message.channel, message.payload)
            except psycopg.Error as error:
                self.connected.clear()
                log.warning("hub_reconnects", error=type(error).__name__, pause_s=pause_s)
            await asyncio.sleep(pause_s)
            pause_s = min(pause_s * 2, 2.0)
