"""A second machine, as far as one machine can play it: a network namespace with nothing but a cable to us."""

from __future__ import annotations

import json
import os
import secrets
import shutil
import subprocess
import sys
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path

import pytest

from client.profile import Profile
from tests.certificates import Authority
from tests.client_folders import MAILS
from tests.system.driver import Processes
from tests.tls_servers import Front

ROOT = Path(__file__).resolve().parents[2]


@dataclass
class Machine:
    """A network namespace and the address by which it sees us."""

    name: str
    our_address: str

    def run(self, *command: object) -> subprocess.CompletedProcess[str]:
        """Run `dpfl` there."""
        return dpfl(*command, within=("ip", "netns", "exec", self.name))


def dpfl(
    *command: object, within: tuple[str, ...] = (), **environment: str
) -> subprocess.CompletedProcess[str]:
    return subprocess.run(
        [*within, sys.executable, "-m", "cli.main", *map(str, command)],
        env=os.environ | {"PYTHONPATH": str(ROOT), "LC_ALL": "C.UTF-8", "DPFL_PATIENCE_S": "3"} | environment,
        capture_output=True,
        text=True,
        timeout=60,
        check=False,
    )


def ip(*words: str) -> None:
    subprocess.run(["ip", *words], check=True, capture_output=True, text=True, timeout=10)


@pytest.fixture
def machine() -> Iterator[Machine]:
    """A namespace with one cable; where this machine makes none, the test says why it cannot run."""
    tag, subnet = secrets.token_hex(3), f"198.18.{secrets.randbelow(256)}"
    name, here, there = f"dpfl-{tag}", f"dpfl{tag}a", f"dpfl{tag}b"
    if shutil.which("ip") is None:
        pytest.skip("a second machine needs the command `ip` (iproute2)")
    try:
        ip("netns", "add", name)
    except subprocess.CalledProcessError as error:
        pytest.skip(f"a second machine needs a network namespace: {error.stderr.strip()}")
    try:
        try:
            ip("link", "add", here, "type", "veth", "peer", "name", there, "netns", name)
            ip("address", "add", f"{subnet}.1/30", "dev", here)
            ip("link", "set", here, "up")
            for words in (
                ("address", "add", f"{subnet}.2/30", "dev", there),
                ("link", "set", there, "up"),
                ("link", "set", "lo", "up"),
            ):
                ip("-n", name, *words)
        except subprocess.CalledProcessError as error:
            pytest.skip(f"a second machine needs a cable (veth): {error.stderr.strip()}")
        yield Machine(name, f"{subnet}.1")
    finally:
        subprocess.run(["ip", "link", "delete", here], check=False, capture_output=True, timeout=10)
        ip("netns", "delete", name)


@pytest.mark.system
@pytest.mark.timeout(240)
def test_a_second_machine_enrols_by_one_file_and_is_answered(
    tmp_path: Path, database_url: str, machine: Machine
) -> None:
    authority = Authority("Federation CA")
    shown, following = authority.issue(machine.our_address), authority.issue(machine.our_address)
    processes = Processes(database_url, tmp_path)
    key_file, there = tmp_path / "admin.json", tmp_path / "there"
    there.mkdir()
    (there / "mails.jsonl").write_text("".join(json.dumps(mail) + "\n" for mail in MAILS))
    site = there / "site"
    try:
        with Front(shown.server_context(), processes.port, host=machine.our_address) as front:
            processes.environment["DPFL_PUBLIC_URL"] = front.url
            processes.start("gateway")
            authority.write(tmp_path / "ca.pem")
            key_file.write_text(
                json.dumps({"url": front.url, "api_key": processes.api_key, "ca_file": "ca.pem"})
            )
            told = ("--key-file", key_file, "--org", "Klinik", "--region", "eu-central-1")
            file = there / "invitation.json"
            assert dpfl("client", "invite", *told, "-o", file, "--next-pin", following.pin).returncode == 0
            examined = machine.run("doctor", "--client", file)
            assert examined.returncode == 0, examined.stdout + examined.stderr
            assert "the invitation can be used until" in examined.stdout
            site_options = ("--labels", "ham,spam", "--text-fields", "subject,body", "--dataset", "letters")
            place = ("--data", there / "mails.jsonl", "--folder", site, "--ledgers", there / "ledgers")
            done = machine.run("client", "enrol", file, *place, *site_options)
            assert done.returncode == 0, done.stderr
            used = machine.run("doctor", "--client", file)
            assert "!!  token: [enrolment_used]" in used.stdout
            examined = machine.run("doctor", "--client", site)
            assert examined.returncode == 0, examined.stdout + examined.stderr
            assert "the server takes what this client signs" in examined.stdout
            assert "[no_open_round]" in machine.run("client", "fetch", "--folder", site).stderr
            assert Profile.open(site).config.region == "eu-central-1"
            port = front.port
        for certificate, told_there in (
            (following, "no_open_round"),
            (authority.issue(machine.our_address), "pin_mismatch"),
        ):
            with Front(certificate.server_context(), processes.port, host=machine.our_address, port=port):
                assert f"[{told_there}]" in machine.run("client", "fetch", "--folder", site).stderr
    finally:
        processes.stop()
