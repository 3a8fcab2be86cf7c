"""What leaves a client: the whole stack runs, real mails are trained on, and every way out is searched."""

import gzip
import json
import os
import re
import subprocess
import sys
import warnings
from collections.abc import Callable, Iterable, Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import pytest
from peft import PeftModel
from safetensors.torch import save
from transformers import AutoModelForTokenClassification

from cli.embedded.processes import free_port
from cli.embedded.stack import Stack, running_stack
from cli.templates import Shape, manifest_for
from client.session import Session
from tests.client_folders import profile_in
from tests.contracts.sources import ROOT
from tests.recording import PlayedRun, RecordingServer
from tests.relay import Relay
from tests.unit.tiny_model import manifest_of, trained_part_of, write_tiny_bert

pytestmark = [pytest.mark.system, pytest.mark.timeout(400)]
LABELS = {"ham": "wanted-label-6b1f", "spam": "unwanted-label-90c2"}
"""Words that stand nowhere by chance: not in a mail, not in the bytes of an update."""
MAILS_A_CLIENT = 40
RUN_WORDS = 8
BOUND_S = 180


def mails() -> list[dict[str, str]]:
    """Real mails, with labels that can be searched for."""
    with gzip.open(ROOT / "demo" / "data" / "mails.jsonl.gz", "rt", encoding="utf-8") as file:
        records = [json.loads(line) for line, _ in zip(file, range(4 * MAILS_A_CLIENT), strict=False)]
        records += [json.loads(line) for line in file if '"label": "spam"' in line][: 2 * MAILS_A_CLIENT]
    return [
        {"subject": one["subject"], "body": one["body"], "label": LABELS[one["label"]]}
        for one in records[1::3]
    ]


@dataclass
class Outside:
    """Everything that is not a client's own folder: its terminal, its home, where it works."""

    root: Path
    printed: str = ""

    def dpfl(self, *arguments: str, code: int = 0) -> str:
        """Run the command as a person would; what it prints is kept and searched later."""
        for name in ("home", "tmp", "work"):
            (self.root / name).mkdir(parents=True, exist_ok=True)
        environment = os.environ | {
            "HOME": str(self.root / "home"),
            "TMPDIR": str(self.root / "tmp"),
            "PYTHONPATH": str(ROOT),
            "DPFL_DEBUG": "1",
            "LANGUAGE": "C",
            "OMP_NUM_THREADS": "1",
        }
        for name in ("XDG_DATA_HOME", "XDG_CACHE_HOME", "XDG_CONFIG_HOME", "HF_HOME"):
            environment.pop(name, None)
        done = subprocess.run(
            [sys.executable, "-m", "cli.main", *arguments],
            env=environment,
            cwd=self.root / "work",
            capture_output=True,
            text=True,
            timeout=BOUND_S,
            check=False,
        )
        self.printed += done.stdout + done.stderr
        assert done.returncode == code, done.stderr
        return done.stdout.strip()

    def everything(self) -> Iterator[tuple[str, str]]:
        """Yield each place with its text."""
        yield "what it printed", self.printed
        for path in sorted(self.root.rglob("*")):
            yield str(path.name), path.name
            if path.is_file():
                yield str(path), path.read_bytes().decode("utf-8", "replace")


def runs_of_words(text: str) -> set[str]:
    words = text.split()
    return {" ".join(words[at : at + RUN_WORDS]) for at in range(len(words) - RUN_WORDS + 1)}


def require_nothing_of(records: list[dict[str, str]], *, where: str, text: str) -> None:
    flat = " ".join(text.split())
    secret = {run for one in records for run in runs_of_words(f"{one['subject']} {one['body']}")}
    assert len(secret) > 1000
    assert [run for run in secret if run in flat] == [], where
    assert [label for label in LABELS.values() if label in flat] == [], where


def invite(admin: Path, url: str, *, unit: str = "example") -> str:
    """Make an organisation and an enrolment token in it, with a budget for this unit."""
    session = Session(url, bearer=json.loads(admin.read_text())["api_key"], patience_s=10.0)
    name = f"silo-{os.urandom(4).hex()}"
    organisation = session.post("/v1/organisations", {"name": name, "region": "eu-west-1"}).json(
        "organisation"
    )
    budget = {"kind": "basic", "epsilon": 8.0, "delta": 1e-5, "unit": unit}
    wish = {"organisation_id": organisation["id"], "region": "eu-west-1", "budget": budget}
    token: str = session.post("/v1/enrolments", wish).json("enrolment")["token"]
    session.close()
    return token


def planned(base: Path) -> dict[str, Any]:
    """A short plan for two clients, of two rounds with two steps each."""
    shape = Shape(
        labels=list(LABELS.values()),
        text_fields=["subject", "body"],
        layers=[2],
        rank=8,
        method="ffa",
        seed=1,
    )
    plan = manifest_for(str(base), shape, clients=2) | {"rounds": 2, "round_deadline_s": 300.0}
    plan["training"]["local_steps"] = 2
    plan["task"]["max_tokens"] = 16
    return plan


@pytest.fixture
def records() -> list[dict[str, str]]:
    return mails()


def enrolled(outside: Outside, folder: Path, *, url: str, token: str, data: Path, base: Path) -> str:
    (folder.parent / "token").write_text(token)
    said = outside.dpfl(
        *("client", "enrol", "--server", url, "--token", f"@{folder.parent / 'token'}"),
        *("--name", folder.name, "--data", str(data), "--dataset", folder.name, "--folder", str(folder)),
        *("--ledgers", str(folder / "ledgers"), "--base-model", f"base={base}"),
        *("--labels", ",".join(LABELS.values()), "--text-fields", "subject,body"),
    )
    return said.split()[1]


def test_no_run_of_eight_words_and_no_label_leaves_a_client_and_the_release_holds(
    tmp_path: Path, records: list[dict[str, str]]
) -> None:
    outside, base = Outside(tmp_path / "outside"), write_tiny_bert(tmp_path / "base")
    port = free_port()
    with Relay(port) as relay:
        environment = {"DPFL_PUBLIC_URL": relay.url, "DPFL_TRUSTS": "local"}
        with running_stack(tmp_path / "stack", environment=environment, port=port) as stack:
            admin = ("--key-file", str(stack.admin_file), "--server", stack.url)
            clients: dict[Path, str] = {}
            for number in range(2):
                data = tmp_path / f"mails-{number}.jsonl"
                data.write_text("".join(json.dumps(one) + "\n" for one in records[number::2]))
                folder = tmp_path / f"mailbox-{number}"
                token = invite(stack.admin_file, stack.url)
                clients[folder] = enrolled(outside, folder, url=relay.url, token=token, data=data, base=base)
            manifest = tmp_path / "manifest.json"
            manifest.write_text(json.dumps(planned(base)))
            run_id = outside.dpfl(
                *("run", "create", str(manifest), *admin),
                *(part for client in clients.values() for part in ("--client", client)),
            )
            outside.dpfl("run", "price", run_id, *admin)
            outside.dpfl("run", "start", run_id, *admin)
            profiles = [part for folder in clients for part in ("--profile", str(folder))]
            outside.dpfl("client", "run", *profiles, "--run", run_id)
            for folder in clients:
                assert "2 of 2 rounds sent" in outside.dpfl("client", "status", "--folder", str(folder))
            listed = outside.dpfl("release", "list", "--run", run_id, *admin).split()
            release = tmp_path / "release"
            outside.dpfl("release", "pull", listed[0], "--to", str(release), *admin)
            jwks = f"{stack.url}/.well-known/jwks.json"
            assert "holds" in outside.dpfl("verify-release", str(release), "--key", jwks)
            require_tampering_is_found(outside, release, jwks)
            require_the_log_holds(outside, tmp_path, clients, admin)
    assert b"lora_B" in relay.sent  # updates went through the relay
    require_no_secret_in_logs(stack, relay.sent)
    require_nothing_of(records, where="what it sent", text=relay.sent.decode("utf-8", "replace"))
    for where, text in outside.everything():
        require_nothing_of(records, where=where, text=text)
    require_loads(release, base)


def require_no_secret_in_logs(stack: Stack, sent: bytes) -> None:
    """No process of the stack wrote down a password, a key, or a token that a client presented."""
    secrets = set(json.loads(stack.folder.secrets.read_text()).values())
    secrets |= {json.loads(stack.admin_file.read_text())["api_key"]}
    presented = {one.decode() for one in re.findall(rb"(?i)\r\n(?:authorization: \w+|dpop:) (\S+)", sent)}
    presented |= {one.decode() for one in re.findall(rb"dpfl_enrol_\w+|(?<=client_assertion=)[\w.-]+", sent)}
    assert len(presented) >= 2 * 4  # each of two clients: an assertion, a token, and a proof for each call
    logs = {path.name: path.read_text(errors="replace") for path in (stack.log, *stack.folder.logs.iterdir())}
    assert {"gateway.log", "dispatcher.log", "up.log"} <= logs.keys()
    told = {name for name, text in logs.items() for one in secrets | presented if one and str(one) in text}
    assert told == set()


def require_tampering_is_found(outside: Outside, release: Path, jwks: str) -> None:
    certificate = release / "certificate.json"
    signed = certificate.read_text()
    certificate.write_text(signed.replace('"epsilon":1', '"epsilon":0'))
    assert certificate.read_text() != signed
    outside.dpfl("verify-release", str(release), "--key", jwks, code=1)
    assert "[member_changed]" in outside.printed
    certificate.write_text(signed)


def require_the_log_holds(
    outside: Outside, folder: Path, clients: Iterable[Path], admin: tuple[str, ...]
) -> None:
    """The audit log, taken home, goes on from what every client saw of it, and names what they sent."""
    log, kept = folder / "log.jsonl", folder / "checkpoint"
    outside.dpfl("audit", "export", str(log), *admin)
    for client in clients:
        kept.write_text(json.loads((client / "audit-log.json").read_text())["checkpoint"])
        said = outside.dpfl("audit", "verify", "--offline", str(log), "--checkpoint", str(kept))
        assert "goes on from the checkpoint that was kept" in said
    acts = [json.loads(line)["entry"]["action"] for line in log.read_text().splitlines()[1:-2]]
    assert acts.count("client.enrolled") == 2
    assert acts.count("update.accepted") >= 2
    assert "release.published" in acts


def require_loads(release: Path, base: Path) -> None:
    """Plain transformers and peft load what was released."""
    with warnings.catch_warnings():
        warnings.simplefilter("ignore", FutureWarning)  # of peft, about transformers
        model = AutoModelForTokenClassification.from_pretrained(base, num_labels=2, use_safetensors=True)
        adapted = PeftModel.from_pretrained(model, release)
    assert any(bool(part.any()) for name, part in adapted.named_parameters() if "lora_B" in name)


@pytest.fixture
def played(tmp_path: Path) -> PlayedRun:
    """A run of a tiny model whose data hold the labels that can be searched for."""
    base = write_tiny_bert(tmp_path / "base")
    plan = manifest_of(base)
    plan["task"]["labels"] = list(LABELS.values())
    _part, _examples, start = trained_part_of(plan, base)
    whole = plan | {
        "aggregation": {"mode": "plain", "rule": "mean", "weights": "uniform", "clip_norm": None},
        "rounds": 2,
        "quorum": {"min_updates": 2, "max_updates": 2},
        "round_deadline_s": 300.0,
    }
    return PlayedRun(whole, save(start))


def profile_of(tmp_path: Path, server: RecordingServer, lines: list[str]) -> str:
    (tmp_path / "mails.jsonl").write_text("".join(line + "\n" for line in lines))
    folders = {"tiny": str(tmp_path / "base")}
    made = profile_in(
        tmp_path / "mailbox",
        server=server.url,
        client_id=server.client_id,
        base_model_folders=folders,
        labels=list(LABELS.values()),
    )
    return str(made.folder)


def test_a_round_goes_through_three_commands_with_a_folder_between(
    tmp_path: Path, played: PlayedRun, records: list[dict[str, str]]
) -> None:
    outside, between = Outside(tmp_path / "outside"), str(tmp_path / "round")
    with RecordingServer(played) as server:
        profile = profile_of(tmp_path, server, [json.dumps(one) for one in records])
        outside.dpfl("client", "fetch", "--folder", profile, "--round", between)
        asked = len(server.heard)
        outside.dpfl("client", "train", "--folder", profile, "--round", between)
        assert len(server.heard) == asked  # no network was used
        outside.dpfl("client", "submit", "--folder", profile, "--round", between)
        outside.dpfl("client", "submit", "--folder", profile, "--round", between)
    assert len(server.bodies()) == 2
    assert set(server.bodies()) == {(tmp_path / "round" / "update.safetensors").read_bytes()}
    for where, text in outside.everything():
        require_nothing_of(records, where=where, text=text)


@pytest.mark.parametrize(
    ("broken", "code"),
    [
        (lambda one: json.dumps(one)[:-9], "broken_line"),
        (lambda one: json.dumps(one | {"label": one["body"]}), "unknown_label"),
    ],
)
def test_a_broken_mail_is_told_by_its_line_number_alone(
    tmp_path: Path,
    played: PlayedRun,
    records: list[dict[str, str]],
    broken: Callable[[dict[str, str]], str],
    code: str,
) -> None:
    outside = Outside(tmp_path / "outside")
    lines = [json.dumps(one) for one in records]
    lines[2] = broken(records[2])
    with RecordingServer(played) as server:
        profile = profile_of(tmp_path, server, lines)
        outside.dpfl("client", "run", "--folder", profile, "--once", code=1)
    assert f"[{code}] Line 3 " in outside.printed
    assert server.bodies() == []
    for where, text in outside.everything():
        require_nothing_of(records, where=where, text=text)
