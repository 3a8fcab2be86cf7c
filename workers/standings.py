"""From a judged round to what is kept of it: evidence, and one step of the ladder for each client."""

from __future__ import annotations

import math
from collections.abc import Sequence
from uuid import UUID

from sqlalchemy.orm import Session

from app.rounds import standing, suspicions
from app.rounds.models import Evidence as EvidenceRow
from app.rounds.standing import Stand
from app.rounds.states import LADDER
from app.rounds.states import Step as StepName
from engines.aggregation.ladder import WORTH, Observation, Origin, Standing, Step, Trust, follow
from workers.context import ACTOR
from workers.merging import Judged

HONEST_DIVERGENCE = 0.1
"""How often an honest client's training may diverge: once is no step yet, twice in a row is one."""


def worths(session: Session, client_ids: Sequence[UUID]) -> dict[UUID, float]:
    """What clients' updates count; those of whom nothing odd was ever found are missing."""
    stands = standing.stands_of(session, client_ids)
    return {client_id: WORTH[_engine(stand).step] for client_id, stand in stands.items()}


def keep(
    session: Session, round_id: UUID, judged: Sequence[Judged], *, trust: Trust, expects_hostile: bool
) -> None:
    """Keep a round's evidence and move its clients on the ladder, in the transaction that ends the round.

    Args:
        session: the transaction.
        round_id: the round.
        judged: what it says about each client.
        trust: the plan's.
        expects_hostile: the plan names hostile clients (`faulty` at least 1). A plan that trusts everybody is
            taken at its word: there what is odd is evidence, and moves nobody.
    """
    rows = [_row(round_id, one) for one in judged]
    standing.keep(session, rows)
    if expects_hostile:
        _follow(session, round_id, judged, trust=trust)
    # After the ladder, which notes events under the lock of standings: the other way round, two rounds that
    # end at once would wait for each other.
    suspicions.note_norms(session, rows, is_private=trust == "local")
    suspicions.note_alike(session, rows)


def _follow(session: Session, round_id: UUID, judged: Sequence[Judged], *, trust: Trust) -> None:
    standing.hold(session)
    stands = standing.stands_of(session, [one.client_id for one in judged])
    for one in judged:
        before = stands.get(one.client_id, Stand())
        after = follow(_engine(before), _observation(one), trust=trust)
        stand = Stand(LADDER[after.step], after.suspicion)
        if one.odd or stand != before:  # an ordinary round of a client without suspicion changes nothing
            standing.step_after_round(session, one.client_id, round_id, odd=one.odd, stand=stand, actor=ACTOR)


def _observation(one: Judged) -> Observation:
    """What the round says: by comparison, or else by the test of the update alone whether it is finite."""
    if one.finding is not None:
        return Observation(odd=one.odd, origin=Origin.UPDATES)
    return Observation(odd=one.odd, origin=Origin.OWN_TEST, honest_rate=HONEST_DIVERGENCE)


def _engine(stand: Stand) -> Standing:
    return Standing(Step(LADDER.index(StepName(stand.step))), stand.suspicion)


def _row(round_id: UUID, one: Judged) -> EvidenceRow:
    evidence, finding = one.evidence, one.finding
    return EvidenceRow(
        round_id=round_id,
        client_id=one.client_id,
        finite=one.finite,
        norm=one.norm,
        clipped=one.clipped,
        norm_ratio=_finite(None if evidence is None else evidence.norm_ratio),
        distance_ratio=_finite(None if evidence is None else evidence.distance_ratio),
        cosine=_finite(None if evidence is None else evidence.cosine),
        nearest_ratio=_finite(None if evidence is None else evidence.nearest_ratio),
        odd=one.measures,
        score=_finite(None if finding is None else finding.score),
        weight=one.weight,
    )


def _finite(value: float | None) -> float | None:
    return value if value is not None and math.isfinite(value) else None
