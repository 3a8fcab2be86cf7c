"""What is logged of a request that failed.

Where the federation allows runs with a secret cohort, a client's requests are not noted (app.http.metrics),
and so must their failures be: a line each, during an outage, would be a line for each member.
"""

from __future__ import annotations

import traceback
from typing import Protocol

import structlog
from starlette.types import Scope

log = structlog.get_logger()
_FRAMES = 8


class Discretion(Protocol):
    """What the application's metrics say of what may be noted."""

    @property
    def hidden(self) -> frozenset[str]:
        """Operations of which nothing is noted."""

    def may_tell(self, event: str, error: Exception) -> bool:
        """Say whether a failure of a hidden operation may be logged."""


def operation_of(scope: Scope) -> str:
    """The endpoint's name; what matched no route is not told apart."""
    return str(getattr(scope.get("endpoint"), "__name__", "none"))


def log_unavailable(scope: Scope, error: Exception) -> None:
    """Note that the database did not answer a request."""
    _log(scope, "database_unavailable", error, exc_info=False)


def log_unhandled(scope: Scope, error: Exception) -> None:
    """Note a fault of ours, with its trace."""
    _log(scope, "unhandled_error", error, exc_info=True)


def _log(scope: Scope, event: str, error: Exception, *, exc_info: bool) -> None:
    metrics: Discretion = scope["app"].state.metrics
    name = type(error).__name__
    if operation_of(scope) not in metrics.hidden:
        log.error(event, error=name, path=scope["path"][:300], exc_info=error if exc_info else None)
    elif metrics.may_tell(event, error):
        # No message and no values: they may hold the client's or the round's id.
        frames = traceback.extract_tb(error.__traceback__)[-_FRAMES:]
        log.error(event, error=name, where=[f"{frame.name}:{frame.lineno}" for frame in frames])
