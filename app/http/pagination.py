"""Keyset pages: `?limit=&cursor=` in, `items` and `next_cursor` out. No offsets, no totals.

A cursor is opaque to callers: the key of the last item seen, encoded. It is checked like any other input
and grants nothing: what a caller may see is decided by the statement that the page is cut from.
"""

from __future__ import annotations

import base64
import binascii
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Annotated, Any, Generic, TypeVar
from uuid import UUID

from fastapi import Depends, Query
from pydantic import BaseModel, ConfigDict
from sqlalchemy import Select
from sqlalchemy.orm import InstrumentedAttribute, Session

from app.core.errors import Invalid
from app.core.i18n import _

T = TypeVar("T")
Item = TypeVar("Item")

MAX_PAGE = 200
_MAX_INTEGER = 2**63 - 1


@dataclass(frozen=True, slots=True)
class PageParams:
    """What the caller asked for."""

    limit: int
    cursor: str | None


async def page_params(
    limit: Annotated[int, Query(ge=1, le=MAX_PAGE, description="The most items to return.")] = 50,
    cursor: Annotated[
        str | None,
        Query(
            min_length=1,
            max_length=64,
            pattern=r"^([A-Za-z0-9_-]{22}|a[A-Za-z0-9_-]{2,27})$",  # a UUID, or `i` and an integer
            description="The page before gave it; none for the first.",
        ),
    ] = None,
) -> PageParams:
    """Read the two query parameters of every list."""
    return PageParams(limit=limit, cursor=cursor)


PageDep = Annotated[PageParams, Depends(page_params)]


class Page(BaseModel, Generic[Item]):
    """One page of a list."""

    model_config = ConfigDict(extra="forbid")

    items: Sequence[Item]
    next_cursor: str | None
    """Send it as `cursor` for the next page; null on the last one."""


def page(
    session: Session,
    statement: Select[T],
    id_column: InstrumentedAttribute[UUID] | InstrumentedAttribute[int],
    params: PageParams,
    *,
    newest_first: bool = False,
) -> tuple[list[T], str | None]:
    """Cut one page out of a statement that selects one entity; `id_column` is its unique order.

    Raises Invalid for a cursor that no page returned.
    """
    key: Any = id_column
    if params.cursor is not None:
        last = _decode(params.cursor, key.type.python_type)
        statement = statement.where(key < last if newest_first else key > last)
    statement = statement.order_by(key.desc() if newest_first else key).limit(params.limit + 1)
    rows = list(session.scalars(statement))
    if len(rows) <= params.limit:
        return rows, None
    rows = rows[: params.limit]
    return rows, _encode(getattr(rows[-1], key.key))


def _encode(value: UUID | int) -> str:
    raw = value.bytes if isinstance(value, UUID) else b"i" + str(value).encode()
    return base64.urlsafe_b64encode(raw).rstrip(b"=").decode()


def _decode(cursor: str, kind: type) -> UUID | int:
    try:
        raw = base64.b64decode(cursor + "=" * (-len(cursor) % 4), altchars=b"-_", validate=True)
        value = UUID(bytes=raw) if kind is UUID else int(raw.removeprefix(b"i").decode("ascii"))
    except (ValueError, binascii.Error) as error:
        raise Invalid(_("the cursor was not returned by this list")) from error
    if isinstance(value, int) and abs(value) > _MAX_INTEGER:
        raise Invalid(_("the cursor was not returned by this list"))
    return value
