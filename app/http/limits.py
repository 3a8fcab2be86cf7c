"""Ceilings: how large a body may be, and how often an address may call what needs no credentials."""

from __future__ import annotations

import re
import threading
import time
from collections import OrderedDict
from typing import Any

from fastapi import Depends, Request
from starlette.exceptions import HTTPException
from starlette.types import ASGIApp, Message, Receive, Scope, Send

from app.core.errors import DomainError, TooLarge
from app.core.i18n import _
from app.core.networks import subscriber
from app.http.problems import problem

_OWN_CEILING = re.compile(r"/v1/rounds/[^/]+/updates/[^/]+")
"""Updates stream to disk under their own ceiling (app/updates/router.py)."""
_MAX_KEYS = 50_000


class RateLimited(DomainError):
    """Too many calls from one address."""

    status, code, title = 429, "rate_limited", _("Too many requests")
    meaning = _("This address has called the operation more often than is allowed without credentials.")
    remedy = _("Wait for the time in Retry-After, and keep access tokens until they expire.")
    retry_after_s = 2


class BodyCeiling:
    """ASGI middleware: refuses bodies above a number of bytes, announced or counted."""

    def __init__(self, app: ASGIApp, *, max_bytes: int) -> None:
        self._app = app
        self._max_bytes = max_bytes

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        """Pass the request on under the ceiling."""
        if scope["type"] != "http" or _has_own_ceiling(scope):
            await self._app(scope, receive, send)
            return
        if _announced(scope) > self._max_bytes:
            error = TooLarge(_("the body may have at most {max_bytes} bytes"), max_bytes=self._max_bytes)
            await problem(Request(scope), error, headers={"Connection": "close"})(scope, receive, send)
            return
        await self._app(scope, self._counted(receive), send)

    def _counted(self, receive: Receive) -> Receive:
        taken = 0

        async def counted() -> Message:
            nonlocal taken
            message = await receive()
            taken += len(message.get("body", b""))
            if taken > self._max_bytes:
                raise HTTPException(413)
            return message

        return counted


def _has_own_ceiling(scope: Scope) -> bool:
    return scope["method"] == "PUT" and _OWN_CEILING.fullmatch(scope["path"]) is not None


def _announced(scope: Scope) -> int:
    for name, value in scope["headers"]:
        if name == b"content-length":
            # Not a number: the server refuses it; what is sent is counted anyway.
            return int(value) if value.isdigit() and len(value) < 19 else 0
    return 0


class RateLimits:
    """Token buckets of one process, by operation and address. Several gateways allow as many times more."""

    def __init__(self) -> None:
        self._lock = threading.Lock()
        self._buckets: OrderedDict[tuple[str, str], tuple[float, float]] = OrderedDict()

    def take(self, operation: str, address: str, *, per_minute: int) -> float:
        """Take one call: 0 when it is allowed, otherwise the seconds until the next one is."""
        moment, rate = time.monotonic(), per_minute / 60
        with self._lock:
            left, at = self._buckets.pop((operation, address), (float(per_minute), moment))
            left = min(float(per_minute), left + (moment - at) * rate)
            allowed = left >= 1
            self._buckets[(operation, address)] = (left - 1 if allowed else left, moment)
            while len(self._buckets) > _MAX_KEYS:
                self._buckets.popitem(last=False)
        return 0.0 if allowed else (1 - left) / rate


class _Limited:
    """A dependency that counts calls of one operation by address."""

    def __init__(self, operation: str, per_minute: int) -> None:
        self._operation = operation
        self._per_minute = per_minute

    def __call__(self, request: Request) -> None:
        """Raise RateLimited (429) above the rate."""
        limits: RateLimits = request.app.state.rate_limits
        address = subscriber(request.client.host if request.client else None)
        wait_s = limits.take(self._operation, address, per_minute=self._per_minute)
        if wait_s > 0:
            raise RateLimited(_("at most {per_minute} calls a minute"), per_minute=self._per_minute)


def limited(operation: str, *, per_minute: int) -> Any:
    """Declare an operation's rate: `dependencies=[public("..."), limited("tokens", per_minute=120)]`."""
    return Depends(_Limited(operation, per_minute))
