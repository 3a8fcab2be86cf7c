"""The one source of the current time, in aware UTC; tests move it, nothing else does."""

from collections.abc import Iterator
from contextlib import contextmanager
from datetime import UTC, datetime, timedelta

_shift = timedelta()


def now() -> datetime:
    """Return the current time in UTC."""
    return datetime.now(UTC) + _shift


@contextmanager
def shifted(by: timedelta) -> Iterator[None]:
    """Move this process's clock for the length of a block (for tests)."""
    global _shift  # noqa: PLW0603  one clock a process is the point
    before, _shift = _shift, _shift + by
    try:
        yield
    finally:
        _shift = before
