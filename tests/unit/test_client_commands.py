"""The commands of the client, of runs and of releases, in this process against a recording server."""

import hashlib
import json
import logging
import subprocess
import sys
import warnings
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any
from uuid import uuid4

import pytest
from click.testing import Result
from cryptography.hazmat.primitives.asymmetric.ed25519 import Ed25519PrivateKey
from peft import PeftModel
from safetensors.torch import save
from typer.testing import CliRunner

from app.core.settings import Settings
from cli.main import app
from client.profile import Profile
from client.turns import Turn
from client.wire import FrozenManifest
from client.workbench import Workbench
from modelling.adapters import build_model
from modelling.spec import ModelSpec
from tests.client_folders import manifest, profile_in
from tests.recording import Answer, Heard, PlayedRun, RecordingServer, problem
from tests.unit.tiny_model import manifest_of, trained_part_of, write_tiny_bert

KEY = Ed25519PrivateKey.generate()
LINES = [
    {"subject": "cheap offer", "body": "click here for money", "label": "spam"},
    {"subject": "meeting", "body": "the patch builds on the kernel list", "label": "ham"},
] * 20


@pytest.fixture(autouse=True)
def restored() -> Iterator[None]:
    """The commands silence this process's logs and warnings; others here want them back."""
    with warnings.catch_warnings():
        yield
    logging.disable(logging.NOTSET)


@pytest.fixture
def server(tmp_path: Path) -> Iterator[RecordingServer]:
    base = write_tiny_bert(tmp_path / "base")
    plan = manifest_of(base)
    _part, _examples, start = trained_part_of(plan, base)
    whole = manifest() | plan | {"rounds": 2}
    with RecordingServer(PlayedRun(whole, save(start))) as running:
        yield running


@pytest.fixture
def folder(tmp_path: Path, server: RecordingServer) -> str:
    (tmp_path / "mails.jsonl").write_text("".join(json.dumps(line) + "\n" for line in LINES))
    made = profile_in(
        tmp_path / "mailbox",
        server=server.url,
        client_id=server.client_id,
        base_model_folders={"tiny": str(tmp_path / "base")},
    )
    return str(made.folder)


@pytest.fixture
def key_file(tmp_path: Path, server: RecordingServer) -> str:
    path = tmp_path / "admin.json"
    path.write_text(json.dumps({"url": server.url, "api_key": "dpfl_key"}))
    return str(path)


def dpfl(*arguments: str, code: int = 0) -> Result:
    done = CliRunner().invoke(app, arguments)
    assert done.exit_code == code, done.output
    return done


def test_the_three_steps_and_the_loop_train_a_real_model(server: RecordingServer, folder: str) -> None:
    dpfl("client", "fetch", "--folder", folder)
    dpfl("client", "train", "--folder", folder)
    assert server.bodies() == []
    dpfl("client", "submit", "--folder", folder)
    server.run.open_again(number=2)
    done = dpfl("client", "run", "--folder", folder, "--once")
    assert "round 2 of 2 sent, epsilon " in done.stderr
    assert len(set(server.bodies())) == 2
    assert "2 of 2 rounds sent" in dpfl("client", "status", "--folder", folder).stdout
    assert dpfl("client", "id", "--folder", folder).stdout.strip() == server.client_id


def test_two_profiles_of_a_process_share_one_model(
    tmp_path: Path, server: RecordingServer, folder: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    loaded: list[PeftModel] = []

    def counted(spec: ModelSpec, base: Path) -> PeftModel:
        loaded.append(build_model(spec, base))
        return loaded[-1]

    monkeypatch.setattr("client.workbench.build_model", counted)
    second = tmp_path / "elsewhere"
    second.mkdir()
    (second / "mails.jsonl").write_text("".join(json.dumps(line) + "\n" for line in LINES[::-1]))
    folders = {"tiny": str(tmp_path / "base")}
    other = profile_in(
        second / "mailbox", server=server.url, client_id=str(uuid4()), base_model_folders=folders
    )
    bench, frozen = Workbench(), FrozenManifest(server.run.manifest_bytes)
    profiles = [Profile.open(Path(folder)), other]
    for profile in profiles:
        bench.make_ready(profile, frozen)
    updates = [
        bench.train(profile, frozen, server.run.adapter, turn=Turn(), on_step=lambda _done, _steps: None)
        for profile in profiles
    ]
    assert len(loaded) == 1
    assert save(updates[0]) != save(updates[1])


def test_a_base_model_that_no_policy_names_is_not_looked_for(tmp_path: Path, server: RecordingServer) -> None:
    (tmp_path / "mails.jsonl").write_text("".join(json.dumps(line) + "\n" for line in LINES))
    made = profile_in(tmp_path / "mailbox", server=server.url, client_id=server.client_id)
    done = dpfl("client", "run", "--folder", str(made.folder), "--once", code=1)
    assert "[base_model_missing]" in done.stderr


@pytest.mark.parametrize(
    ("arguments", "code"),
    [
        (("client", "status", "--folder", "/nowhere"), "no_profile"),
        (("release", "list"), "no_credentials"),
        (("run", "show", str(uuid4()), "--key-file", "/nowhere"), "cannot_read"),
        (
            ("run", "template", "--base-model", "/nowhere", "--layers", "1", "--clients", "2"),
            "base_model_missing",
        ),
        (("price", "--q", "0.1", "--z", "-1", "--steps", "10"), "cannot_price"),
        *(
            (("run", "template", "--base-model", "/x", "--clients", "2", f"--layers={layers}"), "bad_options")
            for layers in ("a", "", "1,", "1.5", "1;2")
        ),
    ],
)
def test_an_error_is_one_line_with_a_stable_code(arguments: tuple[str, ...], code: str) -> None:
    done = dpfl(*arguments, code=1)
    assert done.stderr.startswith(f"dpfl: [{code}] ")
    assert done.stderr.count("\n") == 1


@pytest.mark.parametrize(
    "content",
    [
        "",
        "{",
        '["a", "b"]',
        '{"api_key": 5}',
        '{"api_key": "a b"}',
        '{"api_key": "k", "url": 5}',
        '{"url": "x"}',
        "ä",
    ],
)
def test_a_file_without_a_key_is_refused_by_name(tmp_path: Path, content: str) -> None:
    file = tmp_path / "key"
    file.write_text(content, encoding="utf-8")
    done = dpfl("release", "list", "--server", "http://127.0.0.1:9", "--key-file", str(file), code=1)
    assert done.stderr.startswith("dpfl: [bad_key_file] ")


@pytest.mark.parametrize("patience", ["nan", "inf", "-1", "soon", ""])
def test_a_patience_that_is_no_number_of_seconds_is_refused(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, patience: str
) -> None:
    monkeypatch.setenv("DPFL_PATIENCE_S", patience)
    made = profile_in(tmp_path / "mailbox", server="http://127.0.0.1:9", client_id=str(uuid4()))
    done = dpfl("client", "fetch", "--folder", str(made.folder), "--round", str(tmp_path / "round"), code=1)
    assert "[setting_invalid]" in done.stderr


def test_an_unforeseen_error_tells_lines_of_code_and_never_its_text(
    folder: str, server: RecordingServer, monkeypatch: pytest.MonkeyPatch
) -> None:
    def fails(*_: object, **__: object) -> None:
        raise RuntimeError("click here for money")

    monkeypatch.setattr("client.workbench.read_examples", fails)
    dpfl("client", "fetch", "--folder", folder)
    for debug in ("", "1"):
        monkeypatch.setenv("DPFL_DEBUG", debug)
        done = dpfl("client", "train", "--folder", folder, code=1)
        assert done.stderr.startswith("dpfl: [internal_error] RuntimeError ")
        assert "money" not in done.output
    assert "workbench.py" in done.stderr


def test_enrolment_takes_its_token_from_a_file(tmp_path: Path, server: RecordingServer) -> None:
    (tmp_path / "token").write_text("dpfl_enrol_y\n")
    (tmp_path / "mails.jsonl").write_text("".join(json.dumps(line) + "\n" for line in LINES))
    declared = ("--labels", "ham,spam", "--text-fields", "subject,body")
    done = dpfl(
        *("client", "enrol", "--server", server.url, "--token", f"@{tmp_path / 'token'}", "--name", "n"),
        *("--data", str(tmp_path / "mails.jsonl"), "--dataset", "d", "--folder", str(tmp_path / "new")),
        *("--ledgers", str(tmp_path / "ledgers"), "--base-model", f"tiny={tmp_path}", *declared),
        *("--persons", "subject=20"),
    )
    assert json.loads(server.heard[0].body)["enrolment_token"] == "dpfl_enrol_y"
    assert server.client_id in done.stdout
    policy = Profile.open(tmp_path / "new").policy
    assert (policy.labels, policy.person_field, policy.person_records) == (["ham", "spam"], "subject", 20)
    bad = dpfl(
        *("client", "enrol", "--server", server.url, "--token", "x", "--name", "n", "--base-model", "tiny"),
        *("--data", "x", "--dataset", "d", "--folder", str(tmp_path / "other"), *declared),
        code=1,
    )
    assert "[bad_option]" in bad.stderr


def run_shown(state: str, **changed: Any) -> dict[str, Any]:
    price = {"noise_multiplier": 2.0, "epsilon": 3.5, "delta": 1e-5}
    said = {"id": str(uuid4()), "name": "n", "state": state, "version": 1, "reason": None, "price": price}
    return said | changed


def answering(answers: dict[tuple[str, str], list[Any]]) -> Callable[[Heard], Answer | None]:
    def script(heard: Heard) -> Answer | None:
        found = answers.get((heard.method, heard.path.partition("?")[0]))
        return Answer(payload=found.pop(0) if len(found) > 1 else found[0]) if found else None

    return script


def test_a_run_is_planned_priced_started_and_followed(
    tmp_path: Path, server: RecordingServer, key_file: str
) -> None:
    run_id, access = str(uuid4()), ("--key-file", key_file)
    path = f"/v1/runs/{run_id}"
    server.script = answering(
        {
            ("POST", "/v1/runs"): [{"id": run_id}],
            ("POST", f"{path}/price"): [run_shown("pricing")],
            ("POST", f"{path}/start"): [run_shown("running")],
            ("POST", f"{path}/pause"): [run_shown("paused")],
            ("POST", f"{path}/resume"): [run_shown("running")],
            ("POST", f"{path}/stop"): [run_shown("aborted", reason="enough")],
            ("GET", path): [
                run_shown("pricing"),
                run_shown("priced", version=2),
                run_shown("running", version=3),
                run_shown("finished", version=4),
            ],
        }
    )
    plan = tmp_path / "plan.json"
    base = str(tmp_path / "base")
    plan.write_text(dpfl("run", "template", "--base-model", base, "--layers", "2", "--clients", "2").stdout)
    release = str(uuid4())
    options = ("--client", str(uuid4()), "--name", "spring", "--from-release", release)
    assert dpfl("run", "create", str(plan), *options, *access).stdout.strip() == run_id
    sent = json.loads(server.heard[-1].body)
    assert sent["manifest"] == json.loads(plan.read_text())
    assert (sent["name"], sent["from_release_id"]) == ("spring", release)
    assert "noise multiplier 2.0, epsilon 3.5 at delta 1e-05" in dpfl("run", "price", run_id, *access).stdout
    assert "running" in dpfl("run", "start", run_id, *access).stdout
    assert "paused" in dpfl("run", "pause", run_id, *access).stdout
    assert "running" in dpfl("run", "resume", run_id, *access).stdout
    assert "enough" in dpfl("run", "stop", run_id, "--reason", "enough", *access).stdout
    shown = dpfl("run", "show", run_id, "--follow", *access).stdout
    assert "running" in shown
    assert "finished" in shown


def test_a_refused_plan_ends_in_its_code(server: RecordingServer, key_file: str) -> None:
    run_id = str(uuid4())
    refused = run_shown("refused", reason_code="impossible_plan", reason="no noise reaches it", price=None)
    server.script = answering(
        {("POST", f"/v1/runs/{run_id}/price"): [refused], ("GET", f"/v1/runs/{run_id}"): [refused]}
    )
    done = dpfl("run", "price", run_id, "--key-file", key_file, code=1)
    assert "[impossible_plan] the plan was refused: no noise reaches it" in done.stderr


def test_a_plan_that_an_account_cannot_pay_names_what_runs_out(
    server: RecordingServer, key_file: str
) -> None:
    lacking = {"population": "mails", "amounts_in": "delta", "asked": 1e-5, "left": 9e-6, "ceiling": 1e-5}
    run_id, reason = str(uuid4()), "The plan costs more."
    refused = run_shown("refused", reason_code="budget_exceeded", reason=reason, shortfall=lacking)
    server.script = answering(
        {("POST", f"/v1/runs/{run_id}/price"): [refused], ("GET", f"/v1/runs/{run_id}"): [refused]}
    )
    done = dpfl("run", "price", run_id, "--key-file", key_file, code=1)
    assert "mails: delta 1e-05 asked, 9e-06 left of 1e-05" in done.stdout
    assert "[budget_exceeded]" in done.stderr


def test_an_account_of_the_default_grant_takes_several_runs_of_the_template(tmp_path: Path) -> None:
    base = str(write_tiny_bert(tmp_path / "base"))
    words = ("run", "template", "--base-model", base, "--layers", "1", "--clients", "2")
    asked = json.loads(dpfl(*words).stdout)["privacy"]
    granted = {name: Settings.model_fields[f"grant_{name}"].default for name in ("epsilon", "delta")}
    assert all(granted[name] >= 3 * asked[name] for name in granted), (granted, asked)


def test_a_plan_is_explained_warnings_first(server: RecordingServer, key_file: str) -> None:
    run_id = str(uuid4())
    told = {
        "warnings": [{"code": "weak_promise", "text": "The promise is weak."}],
        "nist_sp_800_226": [{"point": "unit", "title": "Unit of privacy", "text": "One record."}],
        "attack": {"text": "At most 61.5 %."},
        "noise_to_signal": None,
    }
    server.script = answering({("GET", f"/v1/plans/{run_id}/explanation"): [told]})
    shown = dpfl("run", "explain", run_id, "--key-file", key_file).stdout
    assert shown.splitlines() == [
        "warning: The promise is weak.",
        "Unit of privacy: One record.",
        "At most 61.5 %.",
    ]
    assert json.loads(dpfl("run", "explain", run_id, "--json", "--key-file", key_file).stdout) == told


def test_releases_are_listed_and_pulled_whole(tmp_path: Path, server: RecordingServer, key_file: str) -> None:
    one = {
        "id": str(uuid4()),
        "run_id": str(uuid4()),
        "number": 2,
        "adapter_sha256": hashlib.sha256(b"adapter").hexdigest(),
        "size_bytes": 7,
        "privacy_claimed": True,
        "epsilon": 2.5,
        "delta": 1e-5,
    }
    path = f"/v1/releases/{one['id']}"
    parts = {"adapter": b"adapter", "config": b"{}", "certificate": b'{"version":1}'}

    def script(heard: Heard) -> Answer | None:
        asked = heard.path.partition("?")[0]
        if asked == "/v1/releases":
            return Answer(payload={"items": [one], "next_cursor": None})
        if asked == f"/v1/runs/{one['run_id']}/manifest":
            return Answer(content=b"{}")
        part = asked.removeprefix(path)
        if part == "":
            return Answer(payload=one)
        return Answer(content=parts[part[1:]]) if part[1:] in parts else problem(404, "not_found")

    server.script = script
    listed = dpfl("release", "list", "--run", one["run_id"], "--key-file", key_file).stdout
    assert listed.startswith(f"{one['id']} run {one['run_id']} round 2: epsilon 2.5")
    to = tmp_path / "pulled"
    dpfl("release", "pull", one["id"], "--to", str(to), "--key-file", key_file)
    assert (to / "adapter_model.safetensors").read_bytes() == b"adapter"
    assert (to / "certificate.json").read_bytes() == parts["certificate"]
    assert (to / "manifest.json").read_bytes() == b"{}"
    parts["adapter"] = b"anothe"
    done = dpfl("release", "pull", one["id"], "--to", str(to), "--key-file", key_file, code=1)
    assert "[adapter_mismatch]" in done.stderr


ODD_ANSWERS: list[Any] = [None, [], {}, "text", 1, {"items": None}, {"id": "x"}, {"items": [[]]}]


@pytest.mark.parametrize("odd", ODD_ANSWERS)
def test_an_answer_of_another_shape_ends_in_one_line(
    tmp_path: Path, server: RecordingServer, key_file: str, folder: str, odd: Any
) -> None:
    server.script = lambda heard: None if heard.path == "/v1/tokens" else Answer(payload=odd)
    plan, run_id = tmp_path / "plan.json", str(uuid4())
    plan.write_text("{}")
    for words in (
        ("run", "create", str(plan), "--client", run_id),
        ("run", "price", run_id),
        ("run", "start", run_id),
        ("run", "show", run_id),
        ("run", "explain", run_id),
        ("release", "list"),
        ("release", "pull", run_id, "--to", str(tmp_path / "to")),
        ("client", "invite", "--organisation", "o", "--to", str(tmp_path / "token")),
    ):
        done = dpfl(*words, "--key-file", key_file, code=1)
        assert done.stderr.startswith("dpfl: [unexpected_answer] "), (words, done.stderr)
        assert done.stderr.count("\n") == 1
    for words in (("client", "fetch"), ("reconcile",)):
        done = dpfl(*words, "--folder", folder, code=1)
        assert "[unexpected_answer]" in done.stderr, (words, done.stderr)


def test_a_folder_that_another_process_works_with_is_left_alone(folder: str, server: RecordingServer) -> None:
    holder = (
        "import sys; from pathlib import Path; from client.profile import Profile\n"
        "with Profile.open(Path(sys.argv[1])).locked():\n"
        "    print('held', flush=True)\n"
        "    sys.stdin.read()\n"
    )
    command = [sys.executable, "-c", holder, folder]
    with subprocess.Popen(command, stdin=subprocess.PIPE, stdout=subprocess.PIPE, text=True) as process:
        assert process.stdout is not None
        assert process.stdout.readline() == "held\n"
        done = dpfl("client", "run", "--folder", folder, "--once", code=1)
        process.communicate("")
    assert "[profile_busy]" in done.stderr
    assert server.heard == []
    dpfl("client", "run", "--folder", folder, "--once")


def test_an_unknown_run_serves_nobody(server: RecordingServer, folder: str) -> None:
    done = dpfl("client", "run", "--folder", folder, "--run", str(uuid4()), code=1)
    assert "[not_found]" in done.stderr
    assert server.bodies() == []


def test_a_seat_without_work_ends_with_its_run(server: RecordingServer, folder: str) -> None:
    server.run.state = "finished"
    dpfl("client", "run", "--folder", folder, "--run", server.run.run_id)
    no_round = dpfl("client", "fetch", "--folder", folder, code=1)
    assert "[no_open_round]" in no_round.stderr
    assert "[no_round]" in dpfl("client", "submit", "--folder", folder, code=1).stderr
