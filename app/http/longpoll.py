"""Holding an answer back until something changes, without holding a connection to the database."""

from __future__ import annotations

import asyncio
from collections.abc import Callable
from typing import Annotated, TypeVar

from fastapi import Query, Request
from sqlalchemy.orm import Session

from app.http.deps import short_tx

T = TypeVar("T")
LONGEST_WAIT_S = 30.0

WaitS = Annotated[float, Query(ge=0, le=LONGEST_WAIT_S, description="Seconds to wait for a change.")]
Since = Annotated[
    int | None, Query(ge=0, le=2**62, description="The version that you know; wait until it is another.")
]


async def read_when(
    request: Request,
    read: Callable[[Session], T],
    is_awaited: Callable[[T], bool],
    *,
    channel: str,
    payload: str,
    wait_s: float,
) -> T:
    """Read at once, and again after each message, until the answer is the awaited one or the time is over."""
    found = await short_tx(request, f"read {channel}", read)
    if not wait_s or is_awaited(found):
        return found
    loop = asyncio.get_running_loop()
    until = loop.time() + wait_s
    with request.app.state.hub.waiter(channel, payload) as changed:
        found = await short_tx(request, f"read {channel}", read)  # a change may lie between read and wait
        while not is_awaited(found) and await _is_woken(changed, until - loop.time()):
            changed.clear()
            found = await short_tx(request, f"read {channel}", read)
    return found


async def _is_woken(event: asyncio.Event, seconds: float) -> bool:
    try:
        await asyncio.wait_for(event.wait(), timeout=max(seconds, 0))
    except TimeoutError:
        return False
    return True
