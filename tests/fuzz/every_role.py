"""`make fuzz`: schemathesis as a caller of every role, with all its checks.

Not part of the suite, for its length: its name keeps it from being collected.
"""

from pathlib import Path

import pytest

from app.core.db import Database
from app.identity.roles import Role
from tests.fuzzing import Effort, require_conformance, served

EFFORT = Effort(phases="examples,coverage,fuzzing,stateful", examples=8, limit_s=1500)


@pytest.mark.timeout(1600)
@pytest.mark.parametrize("caller", [role.value for role in Role])
def test_the_gateway_answers_as_it_declares_to(
    database_url: str, database: Database, tmp_path: Path, caller: str
) -> None:
    with served(database_url, database, tmp_path) as gateway:
        report = require_conformance(gateway, tmp_path, caller=caller, effort=EFFORT)
    print(caller, *report.splitlines()[-12:], sep="\n")  # noqa: T201  the figures are what was asked for
