"""What is thrown away after a round with a secret cohort, without a sign of who was in it."""

from __future__ import annotations

from pathlib import Path

import pytest

from app.core.db import Database
from app.rounds import lifecycle
from app.rounds.models import Round
from tests.builders import HOME
from tests.central import first_round, send_and_seal, start_central_run
from tests.worker_bench import age_blobs, context_for, is_kept, trained, work
from workers.context import Context
from workers.handlers import purge
from workers.tensors import write_tensors


@pytest.fixture
def context(database: Database, tmp_path: Path) -> Context:
    return context_for(database, tmp_path)


def test_the_purge_of_a_secret_round_waits_for_no_young_file_and_takes_it_the_second_time(
    context: Context,
) -> None:
    updates = [trained(1.0), trained(2.0)]
    start, _size = write_tensors(context.blobs.of(HOME), trained(0.25))
    with context.database.run_tx("test") as session:
        run = start_central_run(session, context.settings, start_adapter_sha256=start)
        row = first_round(session, run, cohort=(0, 1))
        send_and_seal(session, context.blobs, row, updates)
        lifecycle.abort(session, row.id, code="x", reason="x", actor="test")
        round_id, is_secret = row.id, session.get_one(Round, row.id).cohort_secret
    assert is_secret
    old, young = (write_tensors(context.blobs.of(HOME), one)[0] for one in updates)
    age_blobs(context, old)
    work(context, purge.run, "purge", round_id)  # does not raise: a job that waits would show
    assert (is_kept(context, old), is_kept(context, young)) == (False, True)
    age_blobs(context, young)
    work(context, purge.run, "purge", round_id)
    assert not is_kept(context, young)
