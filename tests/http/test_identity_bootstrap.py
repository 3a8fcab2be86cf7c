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

from app.__main__ import main
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


def set_environment(patch: pytest.MonkeyPatch, database_url: str, folder: Path) -> None:
    for name, value in {
        "DATABASE_URL": database_url,
        "BLOB_URL": f"file://{folder}/blobs",
        "DPFL_MASTER_KEY": TEST_MASTER_KEY,
        "DPFL_ADMIN_FILE": str(folder / "admin.json"),
        "DPFL_ENVIRONMENT": "development",
    }.items():
        patch.setenv(name, value)


def run_app(patch: pytest.MonkeyPatch, *arguments: str) -> None:
    """What `python -m app ...` does, in this process."""
    patch.setattr(sys, "argv", ["app", *arguments])
    main()


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


def test_the_command_says_where_the_key_is_and_never_what_it_is(
    database_url: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capfd: pytest.CaptureFixture[str]
) -> None:
    set_environment(monkeypatch, database_url, tmp_path)
    run_app(monkeypatch, "bootstrap")
    first = capfd.readouterr()
    run_app(monkeypatch, "bootstrap")
    again = capfd.readouterr()
    key = json.loads((tmp_path / "admin.json").read_text())["api_key"]
    for text in (*first, *again):
        assert key[-20:] not in text
    assert "written to" in first.out
    assert "is in" in again.out


@pytest.mark.parametrize("missing", ["DATABASE_URL", "DPFL_MASTER_KEY", "BLOB_URL", "DPFL_ADMIN_FILE"])
def test_a_missing_setting_is_named_in_one_line(
    database_url: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, missing: str
) -> None:
    set_environment(monkeypatch, database_url, tmp_path)
    monkeypatch.delenv(missing)
    with pytest.raises(SystemExit, match=missing) as stopped:
        run_app(monkeypatch, "bootstrap")
    assert len(str(stopped.value).splitlines()) == 1


@pytest.mark.parametrize("verb", ["", "bootstrap"])
def test_a_short_master_key_is_refused_without_being_shown(
    database_url: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, verb: str
) -> None:
    set_environment(monkeypatch, database_url, tmp_path)
    short = base64.b64encode(b"only a few bytes").decode()
    monkeypatch.setenv("DPFL_MASTER_KEY", short)
    with pytest.raises(SystemExit, match="DPFL_MASTER_KEY") as stopped:
        run_app(monkeypatch, *verb.split())
    assert short not in str(stopped.value)


def test_a_database_that_is_not_there_is_told_in_one_line(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    set_environment(monkeypatch, "postgresql+psycopg://nobody@127.0.0.1:1/none", tmp_path)
    with pytest.raises(SystemExit, match="bootstrap failed: OperationalError"):
        run_app(monkeypatch, "bootstrap")


def test_an_unknown_verb_is_answered_with_the_known_ones(monkeypatch: pytest.MonkeyPatch) -> None:
    with pytest.raises(SystemExit, match="usage"):
        run_app(monkeypatch, "bootsrap")


def test_the_served_gateway_takes_the_bootstrapped_key_and_stops_on_a_signal(
    database_url: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    set_environment(monkeypatch, database_url, tmp_path)
    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        port = probe.getsockname()[1]
    run_app(monkeypatch, "bootstrap")
    key = json.loads((tmp_path / "admin.json").read_text())["api_key"]
    process = subprocess.Popen([sys.executable, "-m", "app"], env=os.environ | {"DPFL_PORT": str(port)})
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
    deadline = time.monotonic() + 60
    while time.monotonic() < deadline and process.poll() is None:
        try:
            return httpx2.get(url)
        except httpx2.ConnectError:
            time.sleep(0.05)  # nothing tells when a foreign process has begun to listen
    raise AssertionError("the gateway did not start")
