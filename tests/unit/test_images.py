"""The images and the compose file: not root, nothing writable, nothing unpinned, no secret by default."""

import re
from pathlib import Path

import pytest
import yaml

from client.profile import default_home

ROOT = Path(__file__).resolve().parents[2]
IMAGES = sorted((ROOT / "docker").glob("*.Dockerfile"))
COMPOSE = yaml.safe_load((ROOT / "docker" / "compose.yaml").read_text())
SERVICES = sorted(COMPOSE["services"])


@pytest.mark.parametrize("path", IMAGES, ids=lambda path: path.stem)
def test_an_image_runs_as_a_numbered_ordinary_user(path: Path) -> None:
    users = re.findall(r"^USER (\d+):(\d+)$", path.read_text(), re.MULTILINE)
    assert users == [("10001", "10001")]


@pytest.mark.parametrize("path", IMAGES, ids=lambda path: path.stem)
def test_an_image_starts_from_one_exact_version(path: Path) -> None:
    bases = set(re.findall(r"^FROM (\S+)", path.read_text(), re.MULTILINE))
    assert len(bases) == 1
    assert re.fullmatch(r"python:3\.\d+\.\d+-slim-\w+", bases.pop())


@pytest.mark.parametrize("path", IMAGES, ids=lambda path: path.stem)
def test_an_image_installs_torch_first_and_in_the_tested_version(path: Path) -> None:
    text = path.read_text()
    tested = re.search(r"^(torch==\S+)$", (ROOT / "constraints.txt").read_text(), re.MULTILINE)
    assert tested is not None
    if "torch==" not in text:
        assert path.stem == "gateway"
        return
    assert f" {tested[1]}\n" in text
    assert text.index(tested[1]) < text.index("-c constraints.txt")


@pytest.mark.parametrize("path", IMAGES, ids=lambda path: path.stem)
def test_an_image_says_how_its_health_is_told(path: Path) -> None:
    assert len(re.findall(r"^HEALTHCHECK ", path.read_text(), re.MULTILINE)) == 1


def test_the_clients_image_keeps_its_ledgers_in_the_volume(monkeypatch: pytest.MonkeyPatch) -> None:
    text = (ROOT / "docker" / "client.Dockerfile").read_text()
    volumes = re.findall(r"^VOLUME (\S+)$", text, re.MULTILINE)
    for name, value in re.findall(r"\b(HOME|XDG_DATA_HOME)=(\S+)", text):
        monkeypatch.setenv(name, value)
    assert [default_home().is_relative_to(volume) for volume in volumes] == [True]


@pytest.mark.parametrize("path", IMAGES, ids=lambda path: path.stem)
def test_an_image_copies_only_rooms_that_exist(path: Path) -> None:
    copied = [
        source
        for line in re.findall(r"^COPY (?!--from)(.+)$", path.read_text(), re.MULTILINE)
        for source in line.split()[:-1]
    ]
    kept = re.findall(r"^!(\S+)$", (ROOT / ".dockerignore").read_text(), re.MULTILINE)
    for source in copied:
        assert source.split("/")[0] in kept
        assert (ROOT / source).exists()


@pytest.mark.parametrize("name", SERVICES)
def test_a_service_cannot_write_its_image_nor_gain_a_privilege(name: str) -> None:
    service = COMPOSE["services"][name]
    assert service["read_only"] is True
    assert service["cap_drop"] == ["ALL"]
    assert service["security_opt"] == ["no-new-privileges:true"]
    assert "cap_add" not in service
    assert "privileged" not in service


def test_no_secret_has_a_default() -> None:
    text = (ROOT / "docker" / "compose.yaml").read_text()
    assert re.findall(r"(?<!\$)\$\{(?![A-Z_]+:(?:\?|-\}))[^}]*\}", text) == []
    example = (ROOT / "docker" / "secrets.env.example").read_text()
    assert [
        line for line in example.splitlines() if not line.startswith("#") and not line.endswith("=")
    ] == []
    asked = set(re.findall(r"\$\{([A-Z_]+):(?:\?|-\})", text))
    assert asked == set(re.findall(r"^([A-Z_]+)=$", example, re.MULTILINE))


def test_only_the_gateway_can_be_reached_from_outside_and_only_on_loopback() -> None:
    published = {
        name: service["ports"] for name, service in COMPOSE["services"].items() if "ports" in service
    }
    assert published == {"gateway": ["127.0.0.1:8000:8000"]}
    assert COMPOSE["networks"]["inside"] == {"internal": True}
    outside = [name for name in SERVICES if "outside" in COMPOSE["services"][name]["networks"]]
    assert outside == ["gateway"]
