"""The command line: what goes wrong is one line on standard error and exit code 1."""

import os
import secrets
import socket
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path

import psycopg
import pytest
from sqlalchemy.engine import make_url
from typer.testing import CliRunner

from cli.embedded.console import Console
from cli.embedded.folder import DataFolder
from cli.embedded.orphans import Recorded, RunRecord
from cli.embedded.plan import Addresses, cuda_is_there, lasting_commands, process_environment
from cli.embedded.processes import free_port
from cli.main import app

runner = CliRunner()
HEAVY = ("torch", "numpy", "transformers", "celery", "sqlalchemy", "psycopg", "fastapi", "alembic")


@pytest.fixture
def taken_port() -> Iterator[int]:
    """A port on which somebody else listens."""
    with socket.socket() as taken:
        taken.bind(("127.0.0.1", 0))
        taken.listen()
        yield taken.getsockname()[1]


def refused(*arguments: str) -> str:
    result = runner.invoke(app, arguments)
    assert result.exit_code == 1
    lines = result.stderr.strip().splitlines()
    assert len(lines) == 1
    assert lines[0].startswith("dpfl: ")
    return lines[0]


def test_asking_for_help_loads_nothing_heavy() -> None:
    code = f"import sys, cli.main; print([name for name in {HEAVY} if name in sys.modules])"
    fresh = subprocess.run(
        [sys.executable, "-c", code], capture_output=True, text=True, check=True, timeout=60
    )
    assert fresh.stdout.strip() == "[]"


def test_a_file_in_place_of_the_data_folder_is_refused(tmp_path: Path) -> None:
    in_the_way = tmp_path / "taken"
    in_the_way.write_text("")
    assert "taken" in refused("up", "--data", str(in_the_way))


def test_a_second_run_on_one_folder_is_refused(tmp_path: Path) -> None:
    with DataFolder(tmp_path).held():
        assert "another" in refused("up", "--data", str(tmp_path))


def test_an_occupied_port_is_refused_and_nothing_is_started(tmp_path: Path) -> None:
    with socket.socket() as taken:
        taken.bind(("127.0.0.1", 0))
        taken.listen()
        port = str(taken.getsockname()[1])
        assert f"port {port}" in refused("up", "--data", str(tmp_path), "--port", port)
    assert not (tmp_path / "postgres").exists()


def test_a_host_that_is_not_this_machine_is_refused(tmp_path: Path) -> None:
    assert "192.0.2.1" in refused("up", "--data", str(tmp_path), "--host", "192.0.2.1")


def test_migrating_without_a_database_is_refused(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.delenv("DATABASE_URL", raising=False)
    assert "DATABASE_URL" in refused("migrate")


def test_migrating_an_unreachable_database_is_refused(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("DATABASE_URL", "postgresql+psycopg://dpfl:x@127.0.0.1:1/dpfl")
    assert "could not be migrated" in refused("migrate")


def test_migrating_brings_an_empty_database_to_the_newest_schema(monkeypatch: pytest.MonkeyPatch) -> None:
    server = make_url(os.environ["DPFL_TEST_DATABASE_URL"])
    name = f"migrated_{secrets.token_hex(6)}"
    plain = server.set(drivername="postgresql").render_as_string(hide_password=False)
    with psycopg.connect(plain, autocommit=True) as connection:
        connection.execute(f"CREATE DATABASE {name}")
        try:
            named = server.set(database=name).render_as_string(hide_password=False)
            monkeypatch.setenv("DATABASE_URL", named)
            for _again in range(2):
                result = runner.invoke(app, ["migrate"])
                assert result.exit_code == 0, result.output
            migrated = make_url(named).set(drivername="postgresql").render_as_string(hide_password=False)
            with psycopg.connect(migrated) as inside:
                assert inside.execute("SELECT count(*) FROM alembic_version").fetchone() == (1,)
        finally:
            connection.execute(f"DROP DATABASE {name} WITH (FORCE)")


def test_the_doctor_finds_nothing_wrong_with_a_sound_installation(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    for name in ("DATABASE_URL", "REDIS_URL"):
        monkeypatch.delenv(name, raising=False)
    monkeypatch.setenv("DPFL_PORT", str(free_port()))
    result = runner.invoke(app, ["doctor", "--data", str(tmp_path / "data")])
    assert result.exit_code == 0, result.output
    assert "PostgreSQL made its files and answered" in result.output
    assert "Valkey answered" in result.output
    assert "!!" not in result.output
    assert not (tmp_path / "data").exists()


def test_the_doctor_uses_the_servers_that_the_environment_names(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("DATABASE_URL", os.environ["DPFL_TEST_DATABASE_URL"])
    monkeypatch.setenv("REDIS_URL", os.environ["DPFL_TEST_REDIS_URL"])
    monkeypatch.setenv("DPFL_PORT", str(free_port()))
    result = runner.invoke(app, ["doctor", "--data", str(tmp_path / "data")])
    assert result.exit_code == 0, result.output
    assert "DATABASE_URL answers: PostgreSQL 18" in result.output
    assert "REDIS_URL answers" in result.output


def test_the_doctor_names_each_thing_that_is_wrong_and_no_secret(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, taken_port: int
) -> None:
    secret = "not-for-anybody"
    (tmp_path / "secrets.json").write_text("{}")
    monkeypatch.setenv("DATABASE_URL", f"postgresql+psycopg://dpfl:{secret}@127.0.0.1:1/dpfl")
    monkeypatch.setenv("REDIS_URL", f"redis://:{secret}@127.0.0.1:1/0")
    monkeypatch.setenv("DPFL_MASTER_KEY", secret)
    monkeypatch.setenv("DPFL_PORT", str(taken_port))
    result = runner.invoke(app, ["doctor", "--data", str(tmp_path)])
    assert result.exit_code == 1
    wrong = [line for line in result.output.splitlines() if line.startswith("!!")]
    for named in ("secrets.json", "--port", "DPFL_MASTER_KEY", "DATABASE_URL", "REDIS_URL"):
        assert any(named in line for line in wrong), (named, wrong)
    assert secret not in result.output


@pytest.fixture
def consulted(tmp_path: Path, monkeypatch: pytest.MonkeyPatch, taken_port: int) -> RunRecord:
    """The record of a data folder whose next `dpfl up` would be told to take a port that is taken."""
    monkeypatch.setenv("DATABASE_URL", os.environ["DPFL_TEST_DATABASE_URL"])
    monkeypatch.setenv("REDIS_URL", os.environ["DPFL_TEST_REDIS_URL"])
    monkeypatch.setenv("DPFL_PORT", str(taken_port))
    return RunRecord(tmp_path / "running.json", addresses={"gateway": f"http://127.0.0.1:{taken_port}"})


def test_the_doctor_knows_the_running_gateway_of_its_data_folder(consulted: RunRecord) -> None:
    consulted.add("gateway", os.getpid())
    result = runner.invoke(app, ["doctor", "--data", str(consulted.path.parent)])
    assert result.exit_code == 0, result.output
    assert f"runs at {consulted.addresses['gateway']}" in result.output


def test_a_gateway_that_ended_does_not_excuse_who_has_its_port_now(consulted: RunRecord) -> None:
    consulted.children["gateway"] = Recorded("gateway", os.getpid(), started=1.0)  # its number, another start
    consulted.write()
    result = runner.invoke(app, ["doctor", "--data", str(consulted.path.parent)])
    assert result.exit_code == 1
    assert "DPFL_PORT" in next(line for line in result.output.splitlines() if line.startswith("!!"))


@pytest.mark.parametrize("value", ["eighty", "-1", "65536", "8e3"])
def test_the_doctor_names_a_port_that_is_none(
    consulted: RunRecord, monkeypatch: pytest.MonkeyPatch, value: str
) -> None:
    monkeypatch.setenv("DPFL_PORT", value)
    result = runner.invoke(app, ["doctor", "--data", str(consulted.path.parent)])
    assert result.exit_code == 1
    assert f"DPFL_PORT is no port: {value}" in result.output


def test_the_port_is_taken_from_the_environment(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, taken_port: int
) -> None:
    monkeypatch.setenv("DPFL_PORT", str(taken_port))
    assert str(taken_port) in refused("up", "--data", str(tmp_path / "data"))


ADDRESSES = Addresses(
    host="0.0.0.0",  # noqa: S104  never bound
    port=8123,
    database_url="postgresql+psycopg://dpfl:x@127.0.0.1:5/dpfl",
    redis_url="redis://:x@127.0.0.1:6/0",
    blob_url="file:///blobs",
)


def environment(inherited: dict[str, str]) -> dict[str, str]:
    return process_environment(
        inherited, ADDRESSES, master_key="made", data=Path("/data"), admin_file=Path("/data/admin.json")
    )


def test_what_the_operator_set_is_kept_and_what_only_the_supervisor_knows_is_not() -> None:
    found = environment({"DPFL_MASTER_KEY": "mine", "DPFL_PUBLIC_URL": "https://x", "DPFL_PORT": "1"})
    assert (found["DPFL_MASTER_KEY"], found["DPFL_PUBLIC_URL"]) == ("mine", "https://x")
    assert (found["DPFL_PORT"], found["DATABASE_URL"]) == ("8123", ADDRESSES.database_url)


def test_a_gateway_that_others_can_reach_is_a_production_gateway() -> None:
    assert environment({})["DPFL_ENVIRONMENT"] == "production"
    assert environment({})["DPFL_PUBLIC_URL"] == "http://127.0.0.1:8123"


@pytest.mark.parametrize(("cuda", "queues"), [(False, ["cpu", "cpu"]), (True, ["cpu", "cpu", "gpu"])])
def test_a_worker_computes_with_one_thread_and_the_gpu_queue_exists_only_with_cuda(
    cuda: bool, queues: list[str]
) -> None:
    commands = lasting_commands(environment({}), workers=2, cuda=cuda)
    workers = [command for command in commands if "celery" in command.argv]
    assert [command.argv[command.argv.index("-Q") + 1] for command in workers] == queues
    assert len({command.name for command in commands}) == len(commands)
    for command in workers:
        assert command.environment["OMP_NUM_THREADS"] == "1"
        assert command.environment["OMP_WAIT_POLICY"] == "PASSIVE"
    for command in commands:
        assert "x@127" not in " ".join(command.argv)
        assert "x@127" not in repr(command)


def test_without_a_device_there_is_no_gpu_and_torch_is_not_even_asked(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(sys, "executable", "/nonexistent")
    monkeypatch.setenv("PATH", str(tmp_path))
    monkeypatch.setattr("cli.embedded.plan.DEVICE", tmp_path / "nvidiactl")
    assert cuda_is_there() is False


def test_hidden_devices_are_not_used(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(sys, "executable", "/nonexistent")
    monkeypatch.setattr("cli.embedded.plan.DEVICE", Path("/dev/null"))
    monkeypatch.setenv("CUDA_VISIBLE_DEVICES", "")
    assert cuda_is_there() is False


@pytest.mark.parametrize(("answer", "expected"), [(0, True), (1, False)])
def test_where_a_device_is_torch_decides_in_a_process_of_its_own(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, answer: int, expected: bool
) -> None:
    python = tmp_path / "python"
    python.write_text(f"#!/bin/sh\nexit {answer}\n")
    python.chmod(0o700)
    monkeypatch.setattr(sys, "executable", str(python))
    monkeypatch.setattr("cli.embedded.plan.DEVICE", Path("/dev/null"))
    monkeypatch.delenv("CUDA_VISIBLE_DEVICES", raising=False)
    assert cuda_is_there() is expected


def test_a_log_that_grew_large_is_moved_aside(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("cli.embedded.console.KEPT_LOG_BYTES", 10)
    log = tmp_path / "gateway.log"
    log.write_text("x" * 11)
    assert Console(tmp_path).log_path("gateway") == log
    assert not log.exists()
    assert (tmp_path / "gateway.log.1").read_text() == "x" * 11
