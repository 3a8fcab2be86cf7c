"""What endpoints ask for: a session, a principal with a permission, a short transaction.

One of the only two places that commit (the other is app/core/db.py).
"""

from __future__ import annotations

from collections.abc import Callable, Iterator
from typing import Annotated, Any, TypeVar

from fastapi import Depends, Request
from fastapi.concurrency import run_in_threadpool
from fastapi.security import HTTPAuthorizationCredentials, HTTPBearer
from sqlalchemy.orm import Session

from app.core.settings import Settings
from app.http.limits import count_call
from app.http.peers import certificate_of
from app.identity.permissions import scope_of
from app.identity.possession import Presented
from app.identity.roles import Principal

T = TypeVar("T")
_CREDENTIALS = (
    "An API key, or the access token of a sign-in (POST /v1/sessions) or a client (POST /v1/tokens)."
)
_bearer = HTTPBearer(auto_error=False, description=_CREDENTIALS)


def request_session(request: Request) -> Iterator[Session]:
    """Open one transaction per request; commit it before the response is sent."""
    with request.app.state.database.sessions() as session, session.begin():
        yield session


# scope="function": a plain yield dependency ends after the response has left,
# so a failed COMMIT would still have answered 2xx.
SessionDep = Annotated[Session, Depends(request_session, scope="function")]


async def request_settings(request: Request) -> Settings:
    """The settings that the application was built with."""
    settings: Settings = request.app.state.settings
    return settings


SettingsDep = Annotated[Settings, Depends(request_settings)]


async def short_tx(request: Request, name: str, work: Callable[[Session], T]) -> T:
    """Run `work(session)` in one transaction on a thread: for `async def` endpoints around their waits."""

    def run() -> T:
        with request.app.state.database.run_tx(name) as session:
            return work(session)

    return await run_in_threadpool(run)


def presented(request: Request) -> Presented:
    """What the request shows beside its token; its address is the one that its sender knows."""
    base: str = request.app.state.settings.public_url.rstrip("/")
    raw: bytes = request.scope.get("raw_path") or request.scope["path"].encode()
    return Presented(
        method=request.method,
        target=base + raw.partition(b"?")[0].decode("latin-1"),
        proof=", ".join(request.headers.getlist("dpop")) or None,  # two are no proof
        certificate=certificate_of(request),
        address=address_of(request),
    )


def address_of(request: Request) -> str | None:
    """The caller's address: the peer's, or what a trusted proxy says."""
    return request.client.host if request.client else None


def authenticated(request: Request) -> Principal:
    """Who calls, by the request's bearer, and one call more of theirs (401, 403, 429)."""
    principal: Principal = request.app.state.authenticator.principal(
        request.headers.get("authorization"), presented(request)
    )
    count_call(request, principal)
    return principal


class Requires:
    """A dependency that yields the principal if it holds the permission, in any scope."""

    def __init__(self, permission: str) -> None:
        self.permission = permission

    def __call__(
        self,
        request: Request,
        _credentials: Annotated[HTTPAuthorizationCredentials | None, Depends(_bearer)],
    ) -> Principal:
        """Authenticate the request's bearer, count it and check its role (401, 429, 403)."""
        principal = authenticated(request)
        scope_of(principal, self.permission)
        request.state.principal = principal
        return principal


class Public:
    """A dependency that declares a route open to anyone, and says why."""

    def __init__(self, why: str) -> None:
        self.why = why

    async def __call__(self) -> None:
        """Nothing to check."""


def requires(permission: str) -> Any:
    """Declare a route's permission: `principal: Annotated[Principal, requires("rounds:seal")]`."""
    return Depends(Requires(permission))


def public(why: str) -> Any:
    """Declare a route open: `dependencies=[public("the login itself")]`."""
    return Depends(Public(why))
