"""How plain endpoints run: in a thread, and their answer is checked outside of it.

FastAPI checks a plain endpoint's answer in a second thread. By then the request holds a connection, and
every thread may be held by requests that wait for one: with more requests than connections all of them
would stand still until the pool's timeout. An endpoint that FastAPI takes for a coroutine has its answer
checked at once.
"""

from __future__ import annotations

import functools
import inspect
from collections.abc import Callable
from typing import Any

from fastapi.concurrency import run_in_threadpool
from fastapi.routing import APIRoute


class ThreadedRoute(APIRoute):
    """Use it as `APIRouter(route_class=ThreadedRoute)` wherever a plain endpoint takes a session."""

    def __init__(self, path: str, endpoint: Callable[..., Any], **options: Any) -> None:
        super().__init__(path, in_thread(endpoint), **options)


def in_thread(endpoint: Callable[..., Any]) -> Callable[..., Any]:
    """The endpoint as a coroutine function that runs it in one thread; coroutines stay as they are."""
    if inspect.iscoroutinefunction(endpoint):
        return endpoint

    @functools.wraps(endpoint)
    async def call(*args: Any, **kwargs: Any) -> Any:
        return await run_in_threadpool(endpoint, *args, **kwargs)

    return call
