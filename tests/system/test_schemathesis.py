"""The running gateway against its own description: no 500, and no status that is not declared.

As an administrator and as a training client; `make fuzz` goes on with every role.
"""

from pathlib import Path

import pytest

from app.core.db import Database
from tests.fuzzing import Effort, require_conformance, served

EFFORTS = {
    "admin": Effort(phases="examples,coverage,fuzzing", examples=2),
    # How requests are parsed, which is what `coverage` tries, does not depend on who sends them. Left out are
    # large bodies that this caller may not send anyway: their answers are all the same 403.
    "client": Effort(phases="examples,fuzzing", examples=6, excluded=("create_run", "replace_manifest")),
}


@pytest.mark.system
@pytest.mark.timeout(150)
@pytest.mark.parametrize("caller", EFFORTS)
def test_the_gateway_answers_as_it_declares_to(
    database_url: str, database: Database, tmp_path: Path, caller: str
) -> None:
    with served(database_url, database, tmp_path) as gateway:
        require_conformance(gateway, tmp_path, caller=caller, effort=EFFORTS[caller])
