"""When a round closes: at its deadline alone where its time could tell who was drawn, or sooner."""

from __future__ import annotations

from pathlib import Path
from typing import Any
from uuid import UUID

import pytest
import sqlalchemy as sa

from app.core.db import Database
from app.rounds.models import Round
from app.rounds.states import RoundState
from app.runs.rounds import seals_at_deadline
from tests.builders import tiny_manifest
from tests.central import CENTRAL, EVERYONE, first_round, start_central_run
from tests.worker_bench import context_for, round_of, work
from workers.context import Context
from workers.handlers import deadline


@pytest.fixture
def context(database: Database, tmp_path: Path) -> Context:
    return context_for(database, tmp_path)


def opened(context: Context, *, cohort: tuple[int, ...]) -> UUID:
    """A round of a run that says nothing of its seal."""
    with context.database.run_tx("test") as session:
        run = start_central_run(session, context.settings, seal=None)
        return first_round(session, run, cohort=cohort).id


def at_deadline(context: Context, round_id: UUID) -> RoundState:
    """The round's state after the job that comes when its time is over."""
    with context.database.run_tx("test") as session:
        session.execute(sa.update(Round).where(Round.id == round_id).values(deadline=sa.func.now()))
    work(context, deadline.run, "deadline", round_id)
    return round_of(context.database, round_id).state


@pytest.mark.parametrize("cohort", [(), (0, 1)])
def test_a_secret_cohorts_round_closes_at_its_deadline_empty_or_not(
    context: Context, cohort: tuple[int, ...]
) -> None:
    round_id = opened(context, cohort=cohort)
    work(context, deadline.run, "deadline", round_id)
    assert round_of(context.database, round_id).state is RoundState.OPEN
    assert at_deadline(context, round_id) is RoundState.SEALED


@pytest.mark.parametrize(
    ("privacy", "seal", "waits"),
    [
        (CENTRAL, None, True),
        (CENTRAL, "deadline", True),
        (CENTRAL, "quorum", False),
        (CENTRAL | EVERYONE, None, False),
        ({}, None, False),
        ({}, "deadline", True),
    ],
)
def test_without_a_word_in_the_plan_a_secret_cohorts_round_waits(
    privacy: dict[str, Any], seal: str | None, waits: bool
) -> None:
    assert seals_at_deadline(tiny_manifest(privacy=privacy, quorum={"seal": seal})) is waits
