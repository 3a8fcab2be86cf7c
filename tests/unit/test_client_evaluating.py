"""A client of a `fedsa` run measures the release, its own model and one without the others."""

from __future__ import annotations

import hashlib
import json
import logging
import warnings
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any
from uuid import uuid4

import pytest
from click.testing import Result
from safetensors.torch import load_file, save
from torch import Tensor
from typer.testing import CliRunner

from app.core.canonical import canonical_bytes, canonical_sha256
from cli.main import app
from client.profile import Profile
from client.round_files import RoundFiles
from client.rounds import train
from client.wire import Assignment
from client.workbench import Workbench
from engines.lora.adapter import initial_adapter
from modelling.adapters import adapter_tensors
from modelling.spec import ModelSpec
from tests.client_folders import DECLARED, manifest, profile_in
from tests.unit.tiny_model import manifest_of, texts_and_labels, write_tiny_bert

RUN = str(uuid4())
Figures = dict[str, Any]


@pytest.fixture(autouse=True)
def restored() -> Iterator[None]:
    """The command silences this process's logs and warnings; others here want them back."""
    with warnings.catch_warnings():
        yield
    logging.disable(logging.NOTSET)


def write_mails(path: Path, count: int, *, seed: int) -> Path:
    texts, labels = texts_and_labels(count, seed=seed)
    lines = [
        {"subject": text, "body": "", "label": DECLARED["labels"][label]}
        for text, label in zip(texts, labels, strict=True)
    ]
    path.write_text("".join(json.dumps(line) + "\n" for line in lines))
    return path


@dataclass
class Alone:
    """The one client of a run of two rounds, and the run's last release."""

    profile: Profile
    release: Path
    held_out: Path

    def evaluate(self, *, code: int = 0, **options: Path) -> Result:
        named = {"folder": self.profile.folder, "release": self.release, "held_out": self.held_out} | options
        words = [word for name, path in named.items() for word in (f"--{name.replace('_', '-')}", str(path))]
        done = CliRunner().invoke(app, ["client", "evaluate", *words])
        assert done.exit_code == code, done.output
        return done

    def figures(self) -> Figures:
        found: Figures = json.loads(self.evaluate().stdout)
        return found

    def stored(self) -> dict[str, str]:
        """Digests of all that the client keeps, but the cache of its own examples and its empty lock."""
        root = self.profile.folder.parent
        return {
            str(path): hashlib.sha256(path.read_bytes()).hexdigest()
            for path in sorted(root.rglob("*"))
            if path.is_file() and path.parent.name != "cache" and path.name != "lock"
        }


def alone(root: Path, *, trust: str = "none", method: str = "fedsa") -> Alone:
    base = write_tiny_bert(root / "base")
    plan = manifest_of(base, trust=trust, method=method)
    plan["privacy"]["examples"] = {"kind": "all"}
    plan["privacy"] |= {"divisor": 24.0} | ({"noise_multiplier": 20.0} if trust == "local" else {})
    plan["tensors"] = adapter_tensors(ModelSpec.from_manifest(plan), base)
    whole = manifest() | plan | {"rounds": 2}
    write_mails(root / "mails.jsonl", 24, seed=1)
    profile = profile_in(
        root / "mailbox",
        server="https://one.example",
        client_id=str(uuid4()),
        base_model_folders={"tiny": str(base)},
        trusts=["none", "local"],
    )
    state = initial_adapter(whole["tensors"], whole["lora"]["seed"], trained_only=True)
    for number in (1, 2):
        change = taken_part(profile, whole, state, number=number)
        state = {name: one + change[name] for name, one in state.items()}
    return Alone(
        profile, released(root / "release", whole, state), write_mails(root / "held.jsonl", 40, seed=2)
    )


def taken_part(
    profile: Profile, whole: dict[str, Any], state: dict[str, Tensor], *, number: int
) -> dict[str, Tensor]:
    """One round of the client; returns what it sent."""
    adapter = save(state)
    assignment = Assignment(
        round_id=uuid4(),
        run_id=RUN,
        number=number,
        rounds=2,
        manifest_sha256=canonical_sha256(whole),
        adapter_sha256=hashlib.sha256(adapter).hexdigest(),
    )
    files = RoundFiles(profile.round_folder(RUN, number))
    files.write_assignment(assignment, canonical_bytes(whole))
    files.write_adapter(adapter)
    one = train(profile, files, Workbench(), on_step=lambda _done, _steps: None)
    profile.ledger.spend(RUN, number, sha256=one.sha256)
    return load_file(files.update_path)


def released(to: Path, whole: dict[str, Any], state: dict[str, Tensor]) -> Path:
    to.mkdir()
    adapter = save({**initial_adapter(whole["tensors"], whole["lora"]["seed"]), **state})
    said = {"run_id": RUN, "round": 2, "adapter_sha256": hashlib.sha256(adapter).hexdigest()}
    (to / "adapter_model.safetensors").write_bytes(adapter)
    (to / "manifest.json").write_bytes(canonical_bytes(whole))
    (to / "certificate.json").write_text(json.dumps({"release": said}))
    return to


def test_who_is_alone_in_a_run_has_the_same_model_with_the_others_and_without(tmp_path: Path) -> None:
    """Without noise, and with every example in every step, sharing with nobody changes nothing."""
    client = alone(tmp_path)
    found = client.figures()
    assert (found["examples"], found["rounds"]) == (40, [1, 2])
    assert found["local_only"]["loss"] == pytest.approx(found["personalized"]["loss"], rel=1e-4)
    assert found["local_only"]["accuracy"] == found["personalized"]["accuracy"]
    assert found["personalized"]["loss"] < 0.9 * found["global"]["loss"]


def test_what_is_trained_without_the_others_carries_the_plans_noise(tmp_path: Path) -> None:
    client = alone(tmp_path, trust="local")
    one, other = client.figures(), client.figures()
    assert one["global"] == other["global"]
    assert one["personalized"] == other["personalized"]
    assert one["local_only"]["loss"] != other["local_only"]["loss"]


def test_nothing_is_kept_or_charged_and_a_warning_says_what_the_figures_are(tmp_path: Path) -> None:
    client = alone(tmp_path, trust="local")
    before = client.stored()
    assert "private data" in client.evaluate().stderr
    assert client.stored() == before


def test_what_has_no_model_of_ones_own_or_no_data_beside_it_is_refused(tmp_path: Path) -> None:
    client = alone(tmp_path)
    same = client.evaluate(held_out=Path(client.profile.config.data), code=1)
    assert "[held_out_is_trained_on]" in same.stderr
    certificate = client.release / "certificate.json"
    said = json.loads(certificate.read_text())
    certificate.write_text(json.dumps({"release": said["release"] | {"run_id": str(uuid4())}}))
    assert "[run_not_joined]" in client.evaluate(code=1).stderr
    certificate.write_text(json.dumps({"release": said["release"] | {"adapter_sha256": "0" * 64}}))
    assert "[adapter_mismatch]" in client.evaluate(code=1).stderr
    certificate.write_text(json.dumps({"release": {}}))
    assert "[release_incomplete]" in client.evaluate(code=1).stderr
    assert "[nothing_personal]" in alone(tmp_path / "other", method="ffa").evaluate(code=1).stderr
