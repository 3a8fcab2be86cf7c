"""A disk that takes no more: the upload answers 507, and nothing half-written stays."""

import base64
import subprocess
import sys
from pathlib import Path

from sqlalchemy.orm import Session

from app.budget.queries import account_of_client
from app.core.db import Database
from app.core.ids import new_id
from app.identity.keys import ensure_signing_keys
from app.updates.models import Update, UpdateState
from tests.database import settings_for
from tests.federation import Federation, sha256_of, update_file
from tests.http.accounts import VAULT

CHILD = """
import resource, sys
from pathlib import Path
from starlette.testclient import TestClient
from app.core.db import Database
from app.identity.roles import Principal, Role
from app.main import build_app, install_state
from tests.database import settings_for
from tests.http.accounts import client_headers
from uuid import UUID

url, folder, path, digest, client, organisation, body = sys.argv[1:]
settings = settings_for(url, Path(folder))
app = build_app(settings)
database = Database(url, pool_size=2)
install_state(app, settings, database)
api = TestClient(app, raise_server_exceptions=False)
principal = Principal(id=UUID(client), organisation_id=UUID(organisation), role=Role.CLIENT)
headers = client_headers(app, principal) | {
    "Content-Type": "application/octet-stream", "Content-Digest": f"sha-256=:{digest}:"
}
content = bytes.fromhex(body)
_soft, hard = resource.getrlimit(resource.RLIMIT_FSIZE)
resource.setrlimit(resource.RLIMIT_FSIZE, (64, hard))
full = api.put(path, content=content, headers=headers)
left = [str(file) for file in Path(folder).rglob("*") if file.is_file()]
resource.setrlimit(resource.RLIMIT_FSIZE, (hard, hard))
again = api.put(path, content=content, headers=headers)
database.dispose()
print(full.status_code, full.json()["code"], full.headers["retry-after"], len(left), again.status_code)
"""


def test_a_full_disk_answers_507_keeps_nothing_and_takes_the_same_bytes_later_uncharged(
    database: Database, database_url: str, tmp_path: Path
) -> None:
    settings = settings_for(database_url, tmp_path / "blobs")
    with database.run_tx("set up") as session:
        ensure_signing_keys(session, VAULT)
        federation = Federation(session, settings)
        run = federation.running()
        round_id, client = federation.round_of(run).id, federation.clients[0]
    body, update_id = update_file(run.manifest), new_id()
    digest = base64.b64encode(bytes.fromhex(sha256_of(body))).decode()
    path = f"/v1/rounds/{round_id}/updates/{update_id}"
    done = subprocess.run(
        [
            sys.executable,
            "-c",
            CHILD,
            *(database_url, settings.blob_folder, path, digest),
            *(str(client.id), str(client.organisation_id), body.hex()),
        ],
        capture_output=True,
        text=True,
        check=False,
        timeout=60,
    )
    assert done.stdout.split() == ["507", "storage_full", "60", "0", "201"], done.stderr[-2000:]
    with database.run_tx("check") as session:
        assert _state(session, update_id) is UpdateState.RECEIVED
        assert account_of_client(session, client.id).spent == 2_500_000_000


def _state(session: Session, update_id: object) -> UpdateState:
    return session.get_one(Update, update_id).state
