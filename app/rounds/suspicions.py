"""What a judged round tells about its clients that somebody should look at: odd lengths, and look-alikes.

Called with evidence that was kept for the round, in a worker and never in a request. Under `central` trust
there is no such evidence, and so there are no such events. What is noted here moves no client.
"""

from __future__ import annotations

from collections import Counter, defaultdict
from collections.abc import Iterator, Sequence
from datetime import datetime, timedelta
from uuid import UUID

import sqlalchemy as sa
from sqlalchemy.orm import Session

from app.identity.models import Client
from app.rounds.models import Evidence
from app.security import events
from app.security.models import Severity

NORM, TWIN = "norm", "twin"
"""Two of the measures in `Evidence.odd`."""
FEWEST = 3
"""Look-alikes that are more than a copy."""
WINDOW = timedelta(hours=1)
"""Look-alikes enrolled within so long of each other."""
_NAMED = 5


def note_norms(session: Session, rows: Sequence[Evidence], *, is_private: bool) -> None:
    """Note every client whose update is far longer or shorter than the others of its round.

    How long it is beside them is told only where clients noise their updates (`is_private`): elsewhere it is
    data about an update, and stays in the evidence, for those who may read that.
    """
    organisations = _organisations(session, [row.client_id for row in rows if NORM in row.odd])
    for row in rows:
        if row.client_id not in organisations:
            continue
        evidence: dict[str, str | float] = {"round_id": str(row.round_id)}
        if is_private and row.norm_ratio is not None:
            evidence["times_the_median"] = round(row.norm_ratio, 3)
        events.note(
            session,
            kind="update_norm_odd",
            subject=f"client:{row.client_id}",
            organisation_id=organisations[row.client_id],
            severity=Severity.NOTICE,
            evidence=evidence,
        )


def note_alike(session: Session, rows: Sequence[Evidence]) -> None:
    """Note clients that may be one hand: near copies of each other, from one network, enrolled at one time.

    Each of the three by itself has an ordinary reason; an organisation has one network and one day on which
    it sets up its machines. The score is the mean of: which share of those clients of the round are near
    copies, how closely their enrolments lie, which share declared the same machine.
    """
    twins = {row.client_id for row in rows if TWIN in row.odd}
    if len(twins) < FEWEST:
        return
    for together in _enrolled_together(session, [row.client_id for row in rows]):
        alike = [client for client in together if client.id in twins]
        if len(alike) < FEWEST:
            continue
        span = max(one.created_at for one in alike) - min(one.created_at for one in alike)
        machines = Counter(str(sorted(one.capability.items())) for one in alike).most_common(1)[0][1]
        shares = (len(alike) / len(together), 1.0 - span / WINDOW, machines / len(alike))
        events.note(
            session,
            kind="clients_alike",
            subject=f"organisation:{alike[0].organisation_id}",
            organisation_id=alike[0].organisation_id,
            severity=Severity.WARNING,
            score=sum(shares) / len(shares),
            evidence={
                "round_id": str(rows[0].round_id),
                "near_copies": len(alike),
                "of_one_network_and_time": len(together),
                "enrolled_within_s": round(span.total_seconds(), 1),
                "with_one_machine": machines,
                "first_client_ids": " ".join(str(one.id) for one in alike[:_NAMED]),
            },
        )


def _organisations(session: Session, client_ids: Sequence[UUID]) -> dict[UUID, UUID]:
    if not client_ids:
        return {}
    found = sa.select(Client.id, Client.organisation_id).where(Client.id.in_(client_ids))
    return {row.id: row.organisation_id for row in session.execute(found)}


def _enrolled_together(session: Session, client_ids: Sequence[UUID]) -> Iterator[list[Client]]:
    """Clients of one organisation and network, as many as enrolled within one window."""
    groups: dict[tuple[UUID, bytes | None], list[Client]] = defaultdict(list)
    known = sa.select(Client).where(Client.id.in_(client_ids), Client.enrolled_from.is_not(None))
    for client in session.scalars(known.order_by(Client.created_at, Client.id)):
        groups[client.organisation_id, client.enrolled_from].append(client)
    for group in groups.values():
        yield _within_window(group, key=[one.created_at for one in group])


def _within_window(group: list[Client], *, key: Sequence[datetime]) -> list[Client]:
    """The largest run of neighbours in time."""
    best, first = (0, 0), 0
    for last in range(len(group)):
        while key[last] - key[first] > WINDOW:
            first += 1
        best = max(best, (first, last + 1), key=lambda run: run[1] - run[0])
    return group[best[0] : best[1]]
