"""The head of a request, under a ceiling and a clock: anyone may send one, and the server sets neither.

Bodies have their own: app/http/limits.py counts them, and app/updates/stream.py times the large ones.
"""

from __future__ import annotations

import asyncio
import ssl
from typing import Any

from uvicorn.protocols.http.httptools_impl import HttpToolsProtocol

from app.http.peers import PEER

MAX_HEAD_BYTES = 64 * 1024
_VERSIONS = {"TLSv1.2": 0x0303, "TLSv1.3": 0x0304}
HEAD_S = 20.0
"""From the connection, or from a further request's first bytes, to the end of the head."""


class BoundedHeads(HttpToolsProtocol):
    """uvicorn's protocol, closing connections whose head is too long or does not end."""

    _in_head = True
    _head_bytes = 0
    _clock: asyncio.TimerHandle | None = None
    _ended_a_message = False
    _extensions: dict[str, Any]

    def connection_made(self, transport: asyncio.Transport) -> None:  # type: ignore[override]  # as uvicorn's
        """Expect a head from now on, from the peer whose certificate was verified in the handshake."""
        super().connection_made(transport)
        self._extensions = _extensions(transport)
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
        self.scope["extensions"] = dict(self._extensions)
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


def _extensions(transport: asyncio.Transport) -> dict[str, Any]:
    """What the scope says of the connection; `tls` as the ASGI extension of that name has it."""
    peer = transport.get_extra_info("peername")
    found: dict[str, Any] = {PEER: peer[0] if isinstance(peer, tuple) else None}
    encrypted = transport.get_extra_info("ssl_object")
    if encrypted is not None:
        der = encrypted.getpeercert(True)
        found["tls"] = {
            "server_cert": None,
            "client_cert_chain": [ssl.DER_cert_to_PEM_cert(der)] if der else [],
            "client_cert_name": None,
            "client_cert_error": None,
            "tls_version": _VERSIONS.get(encrypted.version()),
            "cipher_suite": None,
        }
    return found
