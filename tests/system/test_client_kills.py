"""A client killed anywhere sends no second update for a round: real processes, kill -9, every byte kept."""

import os
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path

import pytest

from client.accepting import accept
from client.book import Stage
from client.pauses import POINTS
from client.profile import Profile
from client.wire import Assignment, FrozenManifest
from tests.client_folders import adapter, manifest, profile_in
from tests.recording import PlayedRun, RecordingServer

pytestmark = pytest.mark.system
BOUND_S = 60


@pytest.fixture
def server() -> Iterator[RecordingServer]:
    with RecordingServer(PlayedRun(manifest(), adapter())) as running:
        yield running


@pytest.fixture
def profile(server: RecordingServer, tmp_path: Path) -> Profile:
    """A client that has accepted the run: the processes need not price it again, which takes seconds."""
    made = profile_in(tmp_path / "profile", server=server.url, client_id=server.client_id)
    run = server.run
    accept(made, Assignment.model_validate(run.assignment()), FrozenManifest(run.manifest_bytes))
    return made


def start(profile: Profile, run_id: str, *, pause_at: str = "") -> subprocess.Popen[str]:
    environment = os.environ | {
        "DPFL_ENVIRONMENT": "development",
        "DPFL_CLIENT_PAUSE_AT": pause_at,
        "OMP_NUM_THREADS": "1",
    }
    command = [sys.executable, "-m", "tests.client_driver", str(profile.folder), run_id]
    return subprocess.Popen(
        command, env=environment, stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True
    )


def kill_at(profile: Profile, server: RecordingServer, point: str) -> None:
    """Let a client run to a point and kill it there; the server then asks for the round again."""
    with start(profile, server.run.run_id, pause_at=point) as process:
        assert process.stderr is not None
        said = process.stderr.readline()
        process.kill()
        assert said == f"paused at {point}\n", said + process.stderr.read()
        process.wait(BOUND_S)
    server.run.received.clear()


def finish(profile: Profile, server: RecordingServer) -> None:
    with start(profile, server.run.run_id) as process:
        out, complaints = process.communicate(timeout=BOUND_S)
    assert (process.returncode, complaints) == (0, "")
    assert out.startswith("mailbox-3: round 1 of 2 sent")


def require_one_update(profile: Profile, server: RecordingServer) -> None:
    """All that ever arrived is one update, or beginnings of it."""
    bodies = server.bodies()
    whole = max(bodies, key=len)
    assert all(whole.startswith(body) for body in bodies)
    assert (profile.round_folder(server.run.run_id, 1) / "update.safetensors").read_bytes() == whole
    known = profile.ledger.book().contribution(server.run.run_id, 1)
    assert known is not None
    assert (known.stage, known.size_bytes) == (Stage.SENT, len(whole))


@pytest.mark.parametrize("point", POINTS)
def test_a_client_killed_at_a_point_sends_one_update(
    server: RecordingServer, profile: Profile, point: str
) -> None:
    kill_at(profile, server, point)
    finish(profile, server)
    require_one_update(profile, server)


def test_a_client_killed_again_and_again_sends_one_update(server: RecordingServer, profile: Profile) -> None:
    for point in ("after_digest_fsync", "after_prepared", "mid_body", "after_receipt"):
        kill_at(profile, server, point)
    finish(profile, server)
    require_one_update(profile, server)


@pytest.mark.parametrize("point", ["after_prepared", "after_spent", "after_body_before_receipt"])
def test_a_client_of_a_central_run_that_is_killed_sends_one_update(
    server: RecordingServer, tmp_path: Path, point: str
) -> None:
    privacy = {"trust": "central", "unit": "client"}
    server.run = PlayedRun(manifest(privacy=privacy), adapter())
    terms = {"trusts": ["central"], "units": ["client"]}
    made = profile_in(tmp_path / "central", server=server.url, client_id=server.client_id, **terms)
    run = server.run
    accept(made, Assignment.model_validate(run.assignment()), FrozenManifest(run.manifest_bytes))
    whole = made.ledger.book().epsilon_spent
    kill_at(made, server, point)
    with start(made, run.run_id) as process:
        out, complaints = process.communicate(timeout=BOUND_S)
    assert (process.returncode, complaints) == (0, "")
    assert "round 1 of 2 sent" in out
    require_one_update(made, server)
    assert made.ledger.book().epsilon_spent == whole > 0


def test_pause_points_are_dead_in_production(server: RecordingServer, profile: Profile) -> None:
    environment = os.environ | {"DPFL_ENVIRONMENT": "production", "DPFL_CLIENT_PAUSE_AT": "after_spent"}
    command = [sys.executable, "-m", "tests.client_driver", str(profile.folder), server.run.run_id]
    done = subprocess.run(command, env=environment, capture_output=True, timeout=BOUND_S, check=False)
    assert (done.returncode, done.stderr) == (0, b"")
