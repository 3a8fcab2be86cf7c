"""`Idempotency-Key` on POST: the same key and body from the same caller get the same answer, once done.

A route class and not middleware, because the answer is stored in the request's own transaction: it exists
exactly if what it tells of was committed. Refusals are not stored; after one the key is free again.
"""

from __future__ import annotations

import functools
import hashlib
import inspect
import re
from collections.abc import Callable, Coroutine
from contextvars import ContextVar
from dataclasses import dataclass
from datetime import timedelta
from typing import Any
from uuid import UUID

import anyio
import anyio.to_thread
import psycopg.errors
import sqlalchemy as sa
import sqlalchemy.exc
from fastapi import Request, Response
from sqlalchemy.dialects.postgresql import insert
from sqlalchemy.orm import Session

from app.core import clock
from app.core.crypto import Vault
from app.core.errors import Conflict, Invalid
from app.core.i18n import _
from app.http.bodies import whole
from app.http.models import StoredAnswer
from app.http.routes import ThreadedRoute

HEADER = "Idempotency-Key"
REPLAYED = "Idempotency-Replayed"
KEPT = timedelta(hours=24)
_KEY = re.compile(r"[\x21-\x7e]{1,200}")
_PURPOSE = "stored-answer"
_WAIT = "5s"


class IdempotencyMismatch(Invalid):
    """The key was used for something else."""

    code, title = "idempotency_mismatch", _("Idempotency key used for another request")
    meaning = _("This key was sent before, to this address, with another body.")
    remedy = _("Use a new key for a new request, and the old body with the old key.")


class IdempotencyInProgress(Conflict):
    """The first request with this key has not ended."""

    code, title = "idempotency_in_progress", _("The first request is still running")
    meaning = _("A request with this idempotency key is being worked on.")
    remedy = _("Send the same request again after the time in Retry-After; it gets the first one's answer.")
    retry_after_s = 1


@dataclass(slots=True)
class _Asked:
    """A request that came with a key, on its way to the endpoint and back."""

    request: Request
    key: str
    body_sha256: str
    session: Session | None = None
    """Set once the key is claimed: the answer is to be stored in it."""

    @property
    def principal_id(self) -> UUID | None:
        principal = getattr(self.request.state, "principal", None)
        return None if principal is None else principal.id

    @property
    def vault(self) -> Vault:
        vault: Vault = self.request.app.state.vault
        return vault

    @property
    def identity(self) -> dict[str, Any]:
        route = f"POST {self.request.url.path}"
        return {"principal_id": self.principal_id, "route": route[:300], "key": self.key}


_asked: ContextVar[_Asked | None] = ContextVar("idempotent_request", default=None)


class IdempotentRoute(ThreadedRoute):
    """Use it as `APIRouter(route_class=IdempotentRoute)`; its POST endpoints take `session` by that name."""

    def __init__(self, path: str, endpoint: Callable[..., Any], **options: Any) -> None:
        methods = options.get("methods") or ()
        self.is_idempotent = "POST" in methods and "session" in inspect.signature(endpoint).parameters
        super().__init__(path, _claiming(endpoint) if self.is_idempotent else endpoint, **options)

    def get_route_handler(self) -> Callable[[Request], Coroutine[Any, Any, Response]]:
        """Wrap FastAPI's handler: within it the request's transaction is open still."""
        handle = super().get_route_handler()

        async def handle_once(request: Request) -> Response:
            key = request.headers.get(HEADER)
            if key is None or not self.is_idempotent:
                return await handle(request)
            if not _KEY.fullmatch(key):
                raise Invalid(_("an Idempotency-Key is 1 to 200 visible ASCII characters"))
            request = whole(request)  # whose body is read here, and again by the endpoint
            body = request.url.query.encode() + b"\0" + await request.body()
            asked = _Asked(request, key, hashlib.sha256(body).hexdigest())
            token = _asked.set(asked)
            try:
                response = await handle(request)
                if asked.session is not None:
                    # A thread of its own: this request holds a connection, and every thread of the pool
                    # may be waiting for one.
                    await anyio.to_thread.run_sync(_store, asked, response, limiter=anyio.CapacityLimiter(1))
                return response
            finally:
                _asked.reset(token)

        return handle_once


def _claiming(endpoint: Callable[..., Any]) -> Callable[..., Any]:
    """The endpoint, preceded by the claim of the key; both run in the request's transaction."""

    @functools.wraps(endpoint)
    def call(*args: Any, **kwargs: Any) -> Any:
        asked = _asked.get()
        if asked is None or asked.principal_id is None:
            return endpoint(*args, **kwargs)
        session: Session = kwargs["session"]
        earlier = _claim(session, asked)
        if earlier is not None:
            return earlier
        asked.session = session
        return endpoint(*args, **kwargs)

    return call


def _claim(session: Session, asked: _Asked) -> Response | None:
    """Insert the key, waiting for a racing request to end; return the answer that was given, if one was."""
    session.execute(
        sa.delete(StoredAnswer).where(
            StoredAnswer.principal_id == asked.principal_id, StoredAnswer.created_at < clock.now() - KEPT
        )
    )
    session.execute(sa.select(sa.func.set_config("lock_timeout", _WAIT, True)))
    claim = insert(StoredAnswer).values(**asked.identity, body_sha256=asked.body_sha256, status=0, body=b"")
    try:
        fresh = session.scalar(claim.on_conflict_do_nothing().returning(StoredAnswer.status))
    except sqlalchemy.exc.OperationalError as error:
        if isinstance(error.orig, psycopg.errors.LockNotAvailable):
            raise IdempotencyInProgress(_("the first request with this key has not ended yet")) from error
        raise
    session.execute(sa.text("SET LOCAL lock_timeout TO DEFAULT"))
    if fresh is not None:
        return None
    return _replay(session.scalars(sa.select(StoredAnswer).filter_by(**asked.identity)).one(), asked)


def _replay(stored: StoredAnswer, asked: _Asked) -> Response:
    if stored.body_sha256 != asked.body_sha256:
        raise IdempotencyMismatch(_("this Idempotency-Key was sent with another body before"))
    body = asked.vault.unseal(_PURPOSE, stored.body)
    return Response(
        body or None,
        status_code=stored.status,
        media_type="application/json" if body else None,
        headers={REPLAYED: "true"},
    )


def _store(asked: _Asked, response: Response) -> None:
    """Keep the answer, sealed: it may hold a secret that is shown once. A refusal frees the key.

    Refusals come here where what was decided is to be committed, as that of a data rule is.
    """
    if asked.session is None:
        return
    if response.status_code >= 400:
        asked.session.execute(sa.delete(StoredAnswer).filter_by(**asked.identity))
        return
    body = asked.vault.seal(_PURPOSE, bytes(response.body))
    change = sa.update(StoredAnswer).filter_by(**asked.identity)
    asked.session.execute(change.values(status=response.status_code, body=body))
