"""How endpoints run: bodies are checked first; plain ones run in a thread, and their answer outside of it.

FastAPI checks a plain endpoint's answer in a second thread. By then the request holds a connection, and
every thread may be held by requests that wait for one: with more requests than connections all of them
would stand still until the pool's timeout. An endpoint that FastAPI takes for a coroutine has its answer
checked at once.
"""

from __future__ import annotations

import functools
import inspect
from collections.abc import Callable, Coroutine
from typing import Any

from fastapi import Request, Response, params
from fastapi.concurrency import run_in_threadpool
from fastapi.routing import APIRoute

from app.http.bodies import FORM, JSON, check_body, whole


class ThreadedRoute(APIRoute):
    """Use it as `APIRouter(route_class=ThreadedRoute)` wherever an endpoint takes a session or a body."""

    def __init__(self, path: str, endpoint: Callable[..., Any], **options: Any) -> None:
        super().__init__(path, in_thread(endpoint), **options)

    @property
    def media_type(self) -> str | None:
        """Of the body that the endpoint declares; None where it declares none."""
        if self.body_field is None:
            return None
        return FORM if isinstance(self.body_field.field_info, params.Form) else JSON

    def get_route_handler(self) -> Callable[[Request], Coroutine[Any, Any, Response]]:
        """Wrap FastAPI's handler, which takes a body of any type and the last of two equal members."""
        handle, media_type = super().get_route_handler(), self.media_type
        if media_type is None:
            return handle

        async def handle_checked(request: Request) -> Response:
            checked = whole(request)
            await check_body(checked, media_type=media_type)
            return await handle(checked)

        return handle_checked


def in_thread(endpoint: Callable[..., Any]) -> Callable[..., Any]:
    """The endpoint as a coroutine function that runs it in one thread; coroutines stay as they are."""
    if inspect.iscoroutinefunction(endpoint):
        return endpoint

    @functools.wraps(endpoint)
    async def call(*args: Any, **kwargs: Any) -> Any:
        return await run_in_threadpool(endpoint, *args, **kwargs)

    return call
