"""The demo's folder and report; the whole of it is run by `make demo`."""

import json
import subprocess
import sys
from pathlib import Path

import numpy as np
import psutil
import pytest

from cli.embedded.errors import FolderInUse, FolderUnusable
from cli.embedded.folder import data_folder
from cli.embedded.orphans import RunRecord
from demo.attack import AttackResult, CanaryGains, attack, mean_gains
from demo.bench import Score
from demo.federation import Federation, FederationError
from demo.folder import RESULTS, WORK, make_anew
from demo.reference import BagOfWords
from demo.report import Findings, write


def test_a_folder_that_holds_something_else_is_left_alone(tmp_path: Path) -> None:
    (tmp_path / "server").mkdir()
    (tmp_path / "report.json").touch()
    (tmp_path / "thesis.tex").write_text("of three years")
    with pytest.raises(FolderUnusable):
        make_anew(tmp_path)
    with pytest.raises(FolderUnusable):
        make_anew(tmp_path / "thesis.tex")
    assert sorted(path.name for path in tmp_path.iterdir()) == ["report.json", "server", "thesis.tex"]


def test_an_earlier_demos_folder_is_emptied_and_what_it_left_running_ended(tmp_path: Path) -> None:
    folder = tmp_path / "demo"
    for name in sorted(RESULTS | WORK):
        (folder / name).mkdir(parents=True)
    command = [sys.executable, "-c", "import sys; sys.stdin.read()"]
    with subprocess.Popen(command, stdin=subprocess.PIPE) as left:
        RunRecord(data_folder(folder / "server").running).add("valkey", left.pid)
        make_anew(folder)
        assert not psutil.pid_exists(left.pid)
    assert list(folder.iterdir()) == []


def test_a_folder_in_which_a_demo_runs_is_left_alone(tmp_path: Path) -> None:
    with data_folder(tmp_path / "server").held(), pytest.raises(FolderInUse):
        make_anew(tmp_path)
    assert (tmp_path / "server").is_dir()


def test_a_server_that_is_gone_ends_the_demo_in_one_line() -> None:
    with (
        Federation("http://127.0.0.1:1", "key") as federation,
        pytest.raises(FederationError, match="does not answer"),
    ):
        federation.releases("run")


def test_the_report_has_the_promised_keys(tmp_path: Path) -> None:
    attack, score = AttackResult(auc=0.7, low=0.6, high=0.8), Score(accuracy=0.9, auc=0.95)
    findings = Findings(
        seed=1,
        clients=8,
        rounds=8,
        unit="one mail in one mailbox",
        trainable_parameters=6529,
        epsilon=7.999,
        noise_multiplier=0.9345,
        majority=0.79,
        before=score,
        private=[score],
        non_private=[score],
        bag_of_words=BagOfWords(accuracy=0.95, auc=0.98),
        attack_private=attack,
        attack_non_private=attack,
        train_s=1.0,
        total_s=2.0,
        adapter_sha256="0" * 64,
    )
    write(findings, tmp_path / "report.json")
    report = json.loads((tmp_path / "report.json").read_text(encoding="utf-8"))
    promised = {
        *("base_model", "dataset", "clients", "rounds", "trainable_parameters", "unit", "epsilon", "delta"),
        *("accuracy", "auc", "attack", "seconds", "adapter_sha256"),
    }
    assert promised <= set(report)
    assert {"majority", "before", "after", "non_private"} <= set(report["accuracy"])
    assert {"non_private", "private", "interval"} <= set(report["attack"])
    assert {"train", "total"} <= set(report["seconds"])


def test_rounds_are_averaged_before_canaries_are_compared() -> None:
    rounds = [
        CanaryGains(inside=np.array([3.0, 0.0]), outside=np.array([1.0, 1.0])),
        CanaryGains(inside=np.array([0.0, 3.0]), outside=np.array([1.0, 1.0])),
    ]
    assert attack([rounds[0]], seed=1).auc == 0.5
    assert attack([mean_gains(rounds)], seed=1).auc == 1.0
