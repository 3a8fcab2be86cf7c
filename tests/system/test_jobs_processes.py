"""How worker and dispatcher start: light where they fork, plain about what is missing, inert otherwise."""

from __future__ import annotations

import os
import ssl
import subprocess
import sys
import threading
from pathlib import Path

import pytest

from tests.database import TEST_MASTER_KEY
from workers import checkpoints
from workers.broker import build_celery

pytestmark = pytest.mark.system


def environment(folder: Path, **values: str) -> dict[str, str]:
    return {
        "PATH": os.environ["PATH"],
        "DATABASE_URL": "postgresql+psycopg://nobody@127.0.0.1:1/none",
        "BLOB_URL": f"file://{folder}/blobs",
        "DPFL_MASTER_KEY": TEST_MASTER_KEY,
    } | values


def python(code: str, variables: dict[str, str]) -> subprocess.CompletedProcess[str]:
    return subprocess.run(
        [sys.executable, "-c", code], env=variables, capture_output=True, text=True, timeout=60, check=False
    )


@pytest.mark.parametrize("module", ["workers.main", "workers.dispatcher"])
def test_the_process_that_forks_or_dispatches_imports_nothing_heavy(module: str, tmp_path: Path) -> None:
    code = (
        f"import sys, {module}\n"
        "print([name for name in ('torch', 'numpy', 'safetensors', 'dp_accounting') if name in sys.modules])"
    )
    ended = python(code, environment(tmp_path, REDIS_URL="redis://127.0.0.1:1/0"))
    assert (ended.returncode, ended.stdout.strip()) == (0, "[]"), ended.stderr


@pytest.mark.parametrize("module", ["workers.main", "workers.dispatcher"])
def test_without_a_broker_address_it_says_so(module: str, tmp_path: Path) -> None:
    ended = python(f"import runpy; runpy.run_module('{module}', run_name='__main__')", environment(tmp_path))
    assert (ended.returncode, ended.stderr.strip()) == (1, "REDIS_URL is not set")


def test_a_worker_that_cannot_prepare_ends_and_says_why(tmp_path: Path) -> None:
    (tmp_path / "blobs").write_text("a file where the folder should be")
    ended = subprocess.run(
        [sys.executable, "-m", "celery", "-A", "workers.main", "worker", "-Q", "cpu"],
        env=environment(tmp_path, REDIS_URL="redis://127.0.0.1:1/0"),
        capture_output=True,
        text=True,
        timeout=120,
        check=False,
    )
    assert "worker_cannot_start" in ended.stderr


@pytest.mark.parametrize("where", ["production", ""])
def test_outside_development_a_checkpoint_passes(
    where: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    (tmp_path / "point").touch()
    monkeypatch.setenv(checkpoints.FOLDER_VARIABLE, str(tmp_path))
    monkeypatch.setenv("DPFL_ENVIRONMENT", where)
    checkpoints.reach("point")
    assert (tmp_path / "point").exists()


def test_in_development_a_checkpoint_holds_the_first_and_lets_the_next_pass(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    (tmp_path / "point").touch()
    monkeypatch.setenv(checkpoints.FOLDER_VARIABLE, str(tmp_path))
    monkeypatch.setenv("DPFL_ENVIRONMENT", "development")
    held = threading.Thread(target=checkpoints.reach, args=("point",))
    held.start()
    reached = tmp_path / "point.reached"
    while not (reached.exists() and reached.read_text()):
        pass
    checkpoints.reach("point")
    assert held.is_alive()
    reached.unlink()
    held.join(10)
    assert not held.is_alive()


def test_messages_are_json_acknowledged_early_and_leave_no_result() -> None:
    conf = build_celery("redis://127.0.0.1:1/0").conf
    assert (conf.accept_content, conf.task_serializer, conf.result_backend) == (["json"], "json", None)
    assert (conf.task_acks_late, conf.task_ignore_result, conf.worker_prefetch_multiplier) == (False, True, 1)


def test_an_encrypted_broker_must_show_a_certificate() -> None:
    with build_celery("rediss://127.0.0.1:1/0").connection_for_write() as connection:
        assert connection.ssl == {"ssl_cert_reqs": ssl.CERT_REQUIRED}
