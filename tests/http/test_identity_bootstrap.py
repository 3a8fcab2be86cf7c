"""The first administrator: made once, told to one file, and the processes around it."""

import base64
import json
import os
import socket
import stat
import subprocess
import sys
import time
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

import httpx2
import pytest
import sqlalchemy as sa

from app.core.db import Database
from app.identity.bootstrap import bootstrap
from app.identity.keys import KeyRing, rotate_signing_keys
from app.identity.models import ApiKey, KeyState, Member, Organisation, SigningKey
from tests.database import TEST_MASTER_KEY, settings_for
from tests.http.accounts import VAULT


def counts(database: Database) -> list[int]:
    with database.run_tx("test") as session:
        return [
            session.scalar(sa.select(sa.func.count()).select_from(model)) or 0
            for model in (Organisation, Member, ApiKey, SigningKey)
        ]


def environment(database_url: str, folder: Path, **values: str) -> dict[str, str]:
    return {
        "PATH": os.environ["PATH"],
        "DATABASE_URL": database_url,
        "BLOB_URL": f"file://{folder}/blobs",
        "DPFL_MASTER_KEY": TEST_MASTER_KEY,
        "DPFL_ADMIN_FILE": str(folder / "admin.json"),
        "DPFL_ENVIRONMENT": "development",
    } | values


def run_app(arguments: list[str], variables: dict[str, str]) -> subprocess.CompletedProcess[str]:
    return subprocess.run(
        [sys.executable, "-m", "app", *arguments],
        env=variables,
        capture_output=True,
        text=True,
        timeout=60,
        check=False,
    )


def test_bootstrapping_twice_makes_one_of_everything(database: Database, tmp_path: Path) -> None:
    settings = settings_for("postgresql+psycopg://unused", tmp_path)
    file = tmp_path / "admin.json"
    assert bootstrap(settings, database, VAULT, admin_file=file) is True
    content = file.read_text()
    assert bootstrap(settings, database, VAULT, admin_file=file) is False
    assert file.read_text() == content
    assert counts(database) == [1, 1, 1, 2]
    assert stat.S_IMODE(file.stat().st_mode) == 0o600
    assert [path.name for path in tmp_path.iterdir() if "admin" in path.name] == ["admin.json"]


def test_racing_bootstraps_make_one_administrator(database: Database, tmp_path: Path) -> None:
    settings = settings_for("postgresql+psycopg://unused", tmp_path)

    def race(index: int) -> bool:
        return bootstrap(settings, database, VAULT, admin_file=tmp_path / f"admin-{index}.json")

    with ThreadPoolExecutor(6) as pool:
        assert all(pool.map(race, range(6)))
    assert counts(database) == [1, 1, 6, 2]


@pytest.mark.parametrize("content", [None, "", "{", '{"api_key": 5}', '{"api_key": "dpfl_live_x"}', "[]"])
def test_a_lost_or_spoilt_file_gets_a_new_key(
    database: Database, tmp_path: Path, content: str | None
) -> None:
    settings = settings_for("postgresql+psycopg://unused", tmp_path)
    file = tmp_path / "admin.json"
    bootstrap(settings, database, VAULT, admin_file=file)
    first = json.loads(file.read_text())["api_key"]
    file.unlink()
    if content is not None:
        file.write_text(content)
    assert bootstrap(settings, database, VAULT, admin_file=file) is True
    assert json.loads(file.read_text())["api_key"] != first
    assert stat.S_IMODE(file.stat().st_mode) == 0o600
    assert counts(database) == [1, 1, 2, 2]


def test_a_folder_that_cannot_be_written_leaves_no_key(database: Database, tmp_path: Path) -> None:
    settings = settings_for("postgresql+psycopg://unused", tmp_path)
    with pytest.raises(OSError, match="nowhere"):
        bootstrap(settings, database, VAULT, admin_file=tmp_path / "nowhere" / "admin.json")
    assert counts(database) == [0, 0, 0, 0]


def test_rotation_lets_the_announced_key_sign_and_the_former_one_verify(
    database: Database, tmp_path: Path
) -> None:
    bootstrap(
        settings_for("postgresql+psycopg://unused", tmp_path), database, VAULT, admin_file=tmp_path / "a"
    )
    before = KeyRing(database, VAULT)
    kid, signature = before.sign(b"certificate")
    announced = {key["kid"] for key in before.jwks()["keys"]} - {kid}
    with database.run_tx("rotate") as session:
        rotate_signing_keys(session, VAULT)
    after = KeyRing(database, VAULT)
    assert after.current()[0] in announced
    former = after.public_key(kid)
    assert former is not None
    former.verify(signature, b"certificate")
    with database.run_tx("test") as session:
        states = session.scalars(sa.select(SigningKey.state)).all()
    assert sorted(states) == [KeyState.CURRENT, KeyState.NEXT, KeyState.RETIRED]


def test_private_keys_lie_sealed_in_the_database(database: Database, tmp_path: Path) -> None:
    bootstrap(
        settings_for("postgresql+psycopg://unused", tmp_path), database, VAULT, admin_file=tmp_path / "a"
    )
    _kid, key = KeyRing(database, VAULT).current()
    with database.run_tx("test") as session:
        for row in session.scalars(sa.select(SigningKey)):
            assert key.private_bytes_raw() not in row.sealed_private_key


def test_the_command_says_where_the_key_is_and_never_what_it_is(database_url: str, tmp_path: Path) -> None:
    variables = environment(database_url, tmp_path)
    first, again = run_app(["bootstrap"], variables), run_app(["bootstrap"], variables)
    assert (first.returncode, again.returncode) == (0, 0), first.stderr + again.stderr
    key = json.loads((tmp_path / "admin.json").read_text())["api_key"]
    for text in (first.stdout, first.stderr, again.stdout, again.stderr):
        assert key not in text
        assert key[-20:] not in text
    assert "written to" in first.stdout
    assert "is in" in again.stdout


@pytest.mark.parametrize(
    ("missing", "named"),
    [
        ("DATABASE_URL", "DATABASE_URL"),
        ("DPFL_MASTER_KEY", "DPFL_MASTER_KEY"),
        ("DPFL_ADMIN_FILE", "DPFL_ADMIN_FILE"),
    ],
)
def test_a_missing_setting_is_named_in_one_line(
    database_url: str, tmp_path: Path, missing: str, named: str
) -> None:
    variables = environment(database_url, tmp_path)
    del variables[missing]
    answer = run_app(["bootstrap"], variables)
    assert answer.returncode == 1
    assert named in answer.stderr
    assert len(answer.stderr.strip().splitlines()) == 1


def test_a_short_master_key_is_refused_without_being_shown(database_url: str, tmp_path: Path) -> None:
    short = base64.b64encode(b"only a few bytes").decode()
    answer = run_app([], environment(database_url, tmp_path, DPFL_MASTER_KEY=short))
    assert answer.returncode == 1
    assert "DPFL_MASTER_KEY" in answer.stderr
    assert short not in answer.stderr


def test_the_served_gateway_takes_the_bootstrapped_key_and_stops_on_a_signal(
    database_url: str, tmp_path: Path
) -> None:
    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        port = probe.getsockname()[1]
    variables = environment(database_url, tmp_path, DPFL_PORT=str(port))
    assert run_app(["bootstrap"], variables).returncode == 0
    key = json.loads((tmp_path / "admin.json").read_text())["api_key"]
    process = subprocess.Popen([sys.executable, "-m", "app"], env=variables)
    try:
        answer = _first_answer(f"http://127.0.0.1:{port}/readyz", process)
        assert answer.json()["status"] == "ready"
        assert len(answer.headers.get_list("date")) == 1
        assert "server" not in answer.headers
        url = f"http://127.0.0.1:{port}/v1/organisations"
        assert httpx2.get(url, headers={"Authorization": f"Bearer {key}"}).status_code == 200
        process.terminate()
        assert process.wait(15) in {0, -15, 143}
    finally:
        process.kill()
        process.wait()


def _first_answer(url: str, process: subprocess.Popen[bytes]) -> httpx2.Response:
    deadline = time.monotonic() + 30
    while time.monotonic() < deadline and process.poll() is None:
        try:
            return httpx2.get(url)
        except httpx2.ConnectError:
            time.sleep(0.05)  # nothing tells when a foreign process has begun to listen
    raise AssertionError("the gateway did not start")
