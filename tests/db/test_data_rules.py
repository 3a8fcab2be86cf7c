"""Data rules where a worker opens the next round, whose region they are held against, and set all at once."""

from concurrent.futures import ThreadPoolExecutor
from dataclasses import replace
from pathlib import Path

import pytest

from app.core.db import Database
from app.core.ids import new_id
from app.identity.roles import Principal, Role
from app.policies.rules import Rules
from app.policies.service import set_rules
from app.rounds.queries import rounds_of
from app.runs.models import Run
from app.runs.states import RunState
from tests.audit_log import entries
from tests.builders import build_organisation
from tests.db.test_jobs_audit_privacy import started, validated
from tests.worker_bench import context_for, work
from workers.handlers import publish


@pytest.mark.parametrize(
    ("declared", "expected"),
    [
        ({}, (RunState.PAUSED, 1, "deny")),
        ({"region": "eu-central-1"}, (RunState.PAUSED, 1, "deny")),
        ({"region": "eu-west-1"}, (RunState.RUNNING, 2, "allow")),
    ],
)
def test_after_a_release_the_worker_opens_the_next_round_only_as_data_rules_allow(
    database: Database, tmp_path: Path, declared: dict[str, str], expected: tuple[RunState, int, str]
) -> None:
    context = context_for(database, tmp_path)
    run_id = started(context)
    round_id = validated(context, run_id, 1)
    with database.run_tx("test") as session:
        owner = session.get_one(Run, run_id).organisation_id
        steward = Principal(id=new_id(), organisation_id=owner, role=Role.DATA_STEWARD)
        set_rules(session, steward, owner, rules=Rules(processing_regions=["eu-west-1"]))
    context = replace(context, settings=context.settings.model_copy(update=declared))
    work(context, publish.run, "publish", round_id)
    with database.run_tx("test") as session:
        decided = [one for one in entries(session, owner) if one["action"] == "data_rules.decided"]
        assert [one["details"]["decision"] for one in decided] == [expected[2]]
        assert (session.get_one(Run, run_id).state, len(rounds_of(session, run_id))) == expected[:2]


def test_of_stewards_who_set_rules_at_once_each_makes_a_version(database: Database) -> None:
    with database.run_tx("test") as session:
        owner = build_organisation(session).id
    steward = Principal(id=new_id(), organisation_id=owner, role=Role.DATA_STEWARD)

    def set_once(cohort: int) -> int:
        with database.run_tx("test") as session:
            return set_rules(session, steward, owner, rules=Rules(smallest_cohort=cohort)).version

    with ThreadPoolExecutor(4) as pool:
        assert sorted(pool.map(set_once, [1, 2, 3, 4])) == [1, 2, 3, 4]
