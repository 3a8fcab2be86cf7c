"""The head of a request, under a ceiling and a clock: anyone may send one, and the server sets neither.

Bodies have their own: app/http/limits.py counts them, and app/updates/stream.py times the large ones.
"""

from __future__ import annotations

import asyncio

from uvicorn.protocols.http.httptools_impl import HttpToolsProtocol

MAX_HEAD_BYTES = 64 * 1024
HEAD_S = 20.0
"""From the connection, or from a further request's first bytes, to the end of the head."""


class BoundedHeads(HttpToolsProtocol):
    """uvicorn's protocol, closing connections whose head is too long or does not end."""

    _in_head = True
    _head_bytes = 0
    _clock: asyncio.TimerHandle | None = None
    _ended_a_message = False

    def connection_made(self, transport: asyncio.Transport) -> None:  # type: ignore[override]  # as uvicorn's
        """Expect a head from now on."""
        super().connection_made(transport)
        self._start_clock()

    def connection_lost(self, exc: Exception | None) -> None:
        """Expect nothing more."""
        self._stop_clock()
        super().connection_lost(exc)

    def data_received(self, data: bytes) -> None:
        """Parse; a head that has not ended is counted. Bytes that end a message are that message's."""
        self._ended_a_message = False
        super().data_received(data)
        if not self._in_head or self._ended_a_message or self.transport.is_closing():
            return
        self._head_bytes += len(data)
        if self._head_bytes > MAX_HEAD_BYTES:
            self._give_up()
        elif self._clock is None:
            self._start_clock()

    def on_headers_complete(self) -> None:
        """The head is whole."""
        self._in_head = False
        self._stop_clock()
        super().on_headers_complete()

    def on_message_complete(self) -> None:
        """Whatever comes next is a head; until it begins, the server's own limit for idle holds."""
        self._in_head, self._head_bytes, self._ended_a_message = True, 0, True
        super().on_message_complete()

    def _start_clock(self) -> None:
        self._clock = self.loop.call_later(HEAD_S, self._give_up)

    def _stop_clock(self) -> None:
        if self._clock is not None:
            self._clock.cancel()
            self._clock = None

    def _give_up(self) -> None:
        self._stop_clock()
        self.send_400_response("The head of the request is too long, or took too long.")
