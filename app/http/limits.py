"""Ceilings: how large a body may be, how often a principal may call, and an address without credentials."""

from __future__ import annotations

import math
import re
from typing import Any

from fastapi import Depends, Request
from starlette.exceptions import HTTPException
from starlette.types import ASGIApp, Message, Receive, Scope, Send

from app.core.errors import DomainError, TooLarge
from app.core.i18n import _
from app.core.networks import subscriber
from app.core.settings import Settings
from app.http.problems import problem
from app.http.rates import Rates
from app.identity.roles import Principal, Role

_OWN_CEILING = re.compile(r"/v1/rounds/[^/]+/updates/[^/]+")
"""Updates stream to disk under their own ceiling (app/updates/router.py)."""


class RateLimited(DomainError):
    """Too many calls from one address."""

    status, code, title = 429, "rate_limited", _("Too many requests")
    meaning = _("This address has called the operation more often than is allowed without credentials.")
    remedy = _("Wait for the time in Retry-After, and keep access tokens until they expire.")
    retry_after_s = 2


class TooManyCalls(DomainError):
    """Too many calls with one set of credentials."""

    status, code, title = 429, "too_many_calls", _("Too many calls")
    meaning = _("This training client, member or API key has called more often than one may.")
    remedy = _("Wait for the time in Retry-After; instead of asking again and again, let an answer wait.")

    def __init__(self, detail: str, /, *, per_minute: int, wait_s: float) -> None:
        super().__init__(detail, per_minute=per_minute)
        self.retry_after_s = max(1, math.ceil(wait_s))  # type: ignore[misc]  # of this refusal, not of its class


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


class _Limited:
    """A dependency that counts calls of one operation by address."""

    def __init__(self, operation: str, per_minute: int) -> None:
        self._operation = operation
        self._per_minute = per_minute

    def __call__(self, request: Request) -> None:
        """Raise RateLimited (429) above the rate."""
        rates: Rates = request.app.state.rates
        address = subscriber(request.client.host if request.client else None)
        wait_s = rates.take(f"{self._operation}:{address}", per_minute=self._per_minute)
        if wait_s > 0:
            raise RateLimited(_("at most {per_minute} calls a minute"), per_minute=self._per_minute)


def limited(operation: str, *, per_minute: int) -> Any:
    """Declare an operation's rate: `dependencies=[public("..."), limited("tokens", per_minute=120)]`."""
    return Depends(_Limited(operation, per_minute))


def count_call(request: Request, principal: Principal) -> None:
    """Count one request of a caller who is known, whatever it asks for; raises TooManyCalls (429).

    An upload and a held answer are one request each, however long they last.
    """
    settings: Settings = request.app.state.settings
    is_client = principal.role is Role.CLIENT
    per_minute = settings.client_calls_per_minute if is_client else settings.member_calls_per_minute
    rates: Rates = request.app.state.rates
    wait_s = rates.take(_counted_as(principal), per_minute=per_minute)
    if wait_s > 0:
        raise TooManyCalls(_("at most {per_minute} calls a minute"), per_minute=per_minute, wait_s=wait_s)


def _counted_as(principal: Principal) -> str:
    """Each API key by itself: one that a script overdoes stops neither its owner nor the owner's others."""
    return principal.actor if principal.api_key_id is None else f"key:{principal.api_key_id}"
