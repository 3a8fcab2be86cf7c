"""What commands read of a server's answers, and no more; an answer of another shape is refused by name."""

from __future__ import annotations

from collections.abc import Iterator
from typing import Any
from uuid import UUID

from client.session import Session
from client.wire import Answer, parse

_PAGE = "200"


class Made(Answer):
    """Something that the server has made."""

    id: UUID


class Organisation(Answer):
    """An organisation by its name."""

    id: UUID
    name: str


class Client(Answer):
    """A training client, and whose it is."""

    id: UUID
    organisation_id: UUID
    name: str


class Invitation(Answer):
    """The token with which one client may enrol."""

    token: str
    expires_at: str


class Cost(Answer):
    """The noise of a run and what it costs; null with trust `none`."""

    noise_multiplier: float | None
    epsilon: float | None
    delta: float | None


class Shortfall(Answer):
    """What an account lacks for a run."""

    population: str
    amounts_in: str
    asked: float
    left: float
    ceiling: float


class Run(Answer):
    """A run as it stands."""

    id: UUID
    name: str
    state: str
    version: int
    reason_code: str | None = None
    reason: str | None = None
    shortfall: Shortfall | None = None
    price: Cost | None = None


class Text(Answer):
    """A part of an explanation."""

    text: str


class Point(Answer):
    """A question of the guideline, with its answer."""

    title: str
    text: str


class Explanation(Answer):
    """What a plan protects, from whom, and how well."""

    warnings: list[Text]
    nist_sp_800_226: list[Point]
    attack: Text | None
    noise_to_signal: Text | None


class Page(Answer):
    """Some of a list, and where the rest begins."""

    items: list[Any]
    next_cursor: str | None


def every(session: Session, path: str) -> Iterator[Any]:
    """Every item of a list, page by page."""
    query = {"limit": _PAGE}
    while True:
        page = parse(Page, session.get(path, query=query).json("list"), what="list")
        yield from page.items
        if page.next_cursor is None:
            return
        query = {"limit": _PAGE, "cursor": page.next_cursor}
