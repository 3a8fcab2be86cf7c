"""Work that nobody asks for: what falls due by time. Every dispatcher asks; uniqueness makes it once."""

from __future__ import annotations

import sqlalchemy as sa
from sqlalchemy.orm import Session

from app.jobs.kinds import KINDS
from app.jobs.queue import enqueue
from app.rounds.queries import overdue


class Clock:
    """Remembers the last slot of each periodic kind, only to spare the database a refused insert."""

    def __init__(self) -> None:
        self._last_slot: dict[str, int] = {}

    def ask(self, session: Session) -> None:
        """Queue the periodic kinds whose slot began, and a job for each round past its deadline."""
        for row in overdue(session):
            moment = int(row.deadline.timestamp()) if row.deadline else 0
            enqueue(session, "deadline", key=f"{row.id}:{moment}", payload={"round_id": str(row.id)})
        seconds = session.scalar(sa.select(sa.func.extract("epoch", sa.func.now())))
        for kind in KINDS.values():
            if kind.every_s is None or seconds is None:
                continue
            slot = int(float(seconds) // kind.every_s)
            if self._last_slot.get(kind.name) != slot:
                enqueue(session, kind.name, key=f"slot:{slot}", payload={})
                self._last_slot[kind.name] = slot
