"""What every answer gets: a request id, security headers, the server's time; and one log line without bodies.

Plain ASGI, so that streamed bodies pass through unbuffered.
"""

from __future__ import annotations

import re
import time
from email.utils import format_datetime
from uuid import uuid4

import structlog
from fastapi import FastAPI, Request
from starlette.datastructures import Headers, MutableHeaders
from starlette.types import ASGIApp, Message, Receive, Scope, Send

from app.core import clock
from app.core.errors import DomainError
from app.core.settings import Settings
from app.http.failures import log_unhandled, operation_of
from app.http.hosts import Hosts
from app.http.limits import BodyCeiling
from app.http.metrics import COHORT_OPERATIONS, Metrics
from app.http.peers import Peers
from app.http.problems import problem

log = structlog.get_logger("access")
REQUEST_ID = "X-Request-Id"
_REQUEST_ID = re.compile(r"[A-Za-z0-9._-]{8,64}")
_QUIET = frozenset({"/healthz", "/readyz", "/metrics"})

_SECURITY = {
    "X-Content-Type-Options": "nosniff",
    "X-Frame-Options": "DENY",
    "Referrer-Policy": "no-referrer",
    "Content-Security-Policy": "default-src 'none'; frame-ancestors 'none'; base-uri 'none'",
    "Cross-Origin-Opener-Policy": "same-origin",
    "Cross-Origin-Resource-Policy": "same-origin",
    "Cache-Control": "no-store",
}
"""Set where the endpoint has not set its own."""


class Envelope:
    """ASGI middleware around everything else."""

    def __init__(self, app: ASGIApp, *, metrics: Metrics, is_https: bool) -> None:
        self._app = app
        self._metrics = metrics
        self._is_https = is_https

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        """Give the request its id and the answer its headers; log both."""
        if scope["type"] != "http":
            await self._app(scope, receive, send)
            return
        request_id = _request_id(scope)
        scope.setdefault("state", {})["request_id"] = request_id
        structlog.contextvars.clear_contextvars()
        structlog.contextvars.bind_contextvars(request_id=request_id)
        started, status = time.perf_counter(), 0

        async def send_dressed(message: Message) -> None:
            nonlocal status
            if message["type"] == "http.response.start":
                status = message["status"]
                self._dress(MutableHeaders(scope=message), request_id)
            await send(message)

        try:
            await self._app(scope, receive, send_dressed)
        except Exception as error:  # the outermost boundary: anything becomes an answer
            log_unhandled(scope, error)
            if status:
                raise
            await problem(Request(scope), DomainError())(scope, receive, send_dressed)
        finally:
            self._record(scope, status, time.perf_counter() - started)

    def _record(self, scope: Scope, status: int, seconds: float) -> None:
        """Count and log the answer, by its path only: queries may carry what is nobody's business."""
        operation = operation_of(scope)
        self._metrics.count(operation=operation, status=status, seconds=seconds)
        if scope["path"] not in _QUIET and operation not in self._metrics.hidden:
            path = scope["path"][:300]
            log.info("request", method=scope["method"], path=path, status=status, ms=round(seconds * 1000, 1))

    def _dress(self, headers: MutableHeaders, request_id: str) -> None:
        headers[REQUEST_ID] = request_id
        headers["Date"] = format_datetime(clock.now(), usegmt=True)
        for name, value in _SECURITY.items():
            headers.setdefault(name, value)
        if self._is_https:
            headers.setdefault("Strict-Transport-Security", "max-age=31536000")


def _request_id(scope: Scope) -> str:
    """The caller's id if it is harmless in a log, otherwise a new one."""
    given = Headers(scope=scope).get(REQUEST_ID, "")
    return given if _REQUEST_ID.fullmatch(given) else str(uuid4())


def install(app: FastAPI, settings: Settings) -> None:
    """Add the middleware; the last one added is the outermost."""
    app.state.metrics = Metrics(hidden=COHORT_OPERATIONS if "central" in settings.trusts else frozenset())
    secret = settings.proxy_secret
    app.add_middleware(BodyCeiling, max_bytes=settings.max_body_bytes)
    app.add_middleware(
        Peers,
        proxies=settings.trusted_proxies,
        secret=None if secret is None else secret.get_secret_value(),
    )
    app.add_middleware(Hosts, settings=settings)
    app.add_middleware(
        Envelope, metrics=app.state.metrics, is_https=settings.public_url.startswith("https://")
    )
