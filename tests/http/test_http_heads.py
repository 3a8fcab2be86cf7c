"""Heads of requests: bounded in length and time; bodies and slow answers are not cut."""

from __future__ import annotations

import asyncio
from collections.abc import Awaitable, Callable

import pytest
import uvicorn
from starlette.types import Receive, Scope, Send
from uvicorn.server import ServerState

from app.http import heads
from app.http.heads import BoundedHeads

Talk = Callable[[asyncio.StreamReader, asyncio.StreamWriter], Awaitable[bytes]]


async def echo_length(scope: Scope, receive: Receive, send: Send) -> None:
    """Answer with the body's length, on /slow after a while."""
    length, more = 0, True
    while more:
        message = await receive()
        length, more = length + len(message.get("body", b"")), message.get("more_body", False)
    if scope["path"] == "/slow":
        await asyncio.sleep(0.3)
    text = str(length).encode()
    await send(
        {"type": "http.response.start", "status": 200, "headers": [(b"content-length", b"%d" % len(text))]}
    )
    await send({"type": "http.response.body", "body": text})


def talk(conversation: Talk) -> bytes:
    """Serve on loopback, and return what a conversation got to hear."""

    async def serve() -> bytes:
        config = uvicorn.Config(echo_length, lifespan="off", log_config=None)
        config.load()
        state = ServerState()
        server = await asyncio.get_running_loop().create_server(
            lambda: BoundedHeads(config=config, server_state=state, app_state={}), "127.0.0.1", 0
        )
        async with server:
            reader, writer = await asyncio.open_connection(*server.sockets[0].getsockname())
            heard = await asyncio.wait_for(conversation(reader, writer), timeout=20)
            writer.close()
        return heard

    return asyncio.run(serve())


def test_a_head_without_end_is_refused() -> None:
    async def conversation(reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> bytes:
        writer.write(b"GET / HTTP/1.1\r\nX-Long: " + b"x" * (heads.MAX_HEAD_BYTES + 1))
        return await reader.read()

    assert talk(conversation).startswith(b"HTTP/1.1 400 ")


@pytest.mark.parametrize("begun", [b"", b"GET / HTTP/1.1\r\nX-"])
def test_a_connection_on_which_no_head_ends_is_closed(begun: bytes, monkeypatch: pytest.MonkeyPatch) -> None:
    async def conversation(reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> bytes:
        writer.write(begun)
        return await reader.read()

    monkeypatch.setattr(heads, "HEAD_S", 0.05)
    assert talk(conversation).startswith(b"HTTP/1.1 400 ")


def test_a_further_head_on_the_same_connection_has_its_own_clock(monkeypatch: pytest.MonkeyPatch) -> None:
    async def conversation(reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> bytes:
        writer.write(b"GET / HTTP/1.1\r\nHost: x\r\n\r\n")
        await reader.readuntil(b"\r\n\r\n0")
        writer.write(b"\r\n")
        return await reader.read()

    monkeypatch.setattr(heads, "HEAD_S", 0.05)
    assert talk(conversation).startswith(b"HTTP/1.1 400 ")


def test_large_bodies_and_slow_answers_are_not_cut(monkeypatch: pytest.MonkeyPatch) -> None:
    async def conversation(reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> bytes:
        heard = b""
        for path, size in ((b"/", 300_000), (b"/slow", 300_000), (b"/slow", 0)):
            writer.write(b"POST %s HTTP/1.1\r\nHost: x\r\nContent-Length: %d\r\n\r\n" % (path, size))
            writer.write(bytes(size))
            await reader.readuntil(b"\r\n\r\n")
            heard += await reader.readexactly(len(str(size))) + b" "
        return heard

    monkeypatch.setattr(heads, "HEAD_S", 0.1)
    assert talk(conversation) == b"300000 300000 0 "
