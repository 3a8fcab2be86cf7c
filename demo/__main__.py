"""`make demo`: two federated runs on real services and real mails, then a table and a picture."""

from __future__ import annotations

import json
import shutil
import sys
import time
from pathlib import Path
from typing import Any

from rich.console import Console

from cli.embedded.stack import running_stack
from client.policy import Policy
from demo.attack import ATTACKED_ROUNDS, AttackResult, CanaryGains, attack, mean_gains
from demo.bench import Bench, Score
from demo.command import run
from demo.federation import Federation, FederationError
from demo.mailboxes import Mailbox, open_mailbox, serve
from demo.mails import Silo, load_silos, load_test
from demo.picture import Curve, Results, draw
from demo.plan import DECLARED, DELTA, ROUNDS, Arm, arms, manifest
from demo.reference import bag_of_words, majority
from demo.report import Findings, show, write

UNIT = "one mail in one mailbox"
COVERS = (
    f"{UNIT}, not a person, against everybody who sees the updates of that run, as declared by the clients"
)


class Demo:
    """One run of the demo in its own folder, made anew."""

    def __init__(self, folder: Path, *, epsilon: float, seed: int, console: Console) -> None:
        self.folder = folder
        self.epsilon = epsilon
        self.seed = seed
        self.console = console
        self.silos = load_silos(seed)
        self.runs: dict[str, dict[str, Any]] = {}

    def train(self) -> float:
        """Run the server, both arms and the download of their releases; returns the arms' seconds."""
        with (
            running_stack(self.folder / "server", environment={"DPFL_TRUSTS": "local,none"}) as stack,
            Federation(stack.url, json.loads(stack.admin_file.read_text())["api_key"]) as federation,
        ):
            self.console.print(
                f"server ready at {stack.url} (PostgreSQL, Valkey, gateway, dispatcher, worker)"
            )
            mailboxes = [self._open(silo, federation, stack.url) for silo in self.silos]
            self.console.print(
                f"{len(mailboxes)} mailboxes enrolled, each with its own key and its own terms"
            )
            began = time.monotonic()
            for arm in arms(self.epsilon):
                self._run(arm, federation, mailboxes)
            seconds = time.monotonic() - began
            for arm in arms(self.epsilon):
                for release in federation.releases(self.runs[arm.name]["id"]):
                    federation.pull(release["id"], self._release(arm, int(release["number"])))
        return seconds

    def _open(self, silo: Silo, federation: Federation, server: str) -> Mailbox:
        name = f"mailbox-{silo.number}"
        policy = Policy.of(
            dataset=name,
            epsilon=self.epsilon,
            delta=DELTA,
            trusts=["local", "none"],  # `none` for the comparison; no real mailbox would allow it
            smallest_cohort=len(self.silos),
            **DECLARED,
            base_model_folders={},
        )
        invitation = federation.invite(
            federation.organisation(name), epsilon=self.epsilon, delta=DELTA, unit="example"
        )
        home = self.folder / "mailboxes" / str(silo.number)
        return open_mailbox(silo.training, policy, invitation, server=server, home=home)

    def _run(self, arm: Arm, federation: Federation, mailboxes: list[Mailbox]) -> None:
        plan = manifest(arm, clients=len(mailboxes), seed=self.seed)
        run_id = federation.start_run(plan, [box.client_id for box in mailboxes])
        serve(
            mailboxes,
            run_id,
            title=arm.title,
            rounds=ROUNDS,
            updates=self.folder / "updates" / arm.name,
            order_seed=self.seed if arm.epsilon is None else None,
        )
        run = federation.wait_for_run(run_id, {"finished"})
        if run["state"] != "finished":
            raise FederationError(f"the run ended {run['state']}: {run.get('reason')}")
        self.runs[arm.name] = run

    def _release(self, arm: Arm, number: int) -> Path:
        return self.folder / "releases" / arm.name / f"round-{number}"

    def evaluate(self, train_s: float, began: float) -> None:
        """Score every release, attack the updates, write everything down."""
        test = load_test()
        private, open_arm = arms(self.epsilon)
        plan = manifest(private, clients=len(self.silos), seed=self.seed)
        bench = Bench(plan, self.silos, test)
        scores: dict[str, list[Score]] = {
            arm.name: [bench.release(self._release(arm, number)) for number in range(1, ROUNDS + 1)]
            for arm in (private, open_arm)
        }
        attacks = {arm.name: self._attack(arm, bench) for arm in (private, open_arm)}
        price = self.runs[private.name]["price"]
        final = self._release(private, ROUNDS)
        certificate = json.loads((final / "certificate.json").read_text())
        findings = Findings(
            seed=self.seed,
            clients=len(self.silos),
            rounds=ROUNDS,
            unit=UNIT,
            trainable_parameters=bench.trainable_parameters(),
            epsilon=price["epsilon"],
            noise_multiplier=price["noise_multiplier"],
            majority=majority(test),
            before=bench.untrained(),
            private=scores[private.name],
            non_private=scores[open_arm.name],
            bag_of_words=bag_of_words(self.silos, test),
            attack_private=attacks[private.name],
            attack_non_private=attacks[open_arm.name],
            train_s=train_s,
            total_s=time.monotonic() - began,
            adapter_sha256=certificate["release"]["adapter_sha256"],
        )
        self._keep(findings, final, price["epsilon_by_round"])

    def _attack(self, arm: Arm, bench: Bench) -> AttackResult:
        """Tell the canaries that were trained on from those that were not, by each client's updates."""
        last = range(ROUNDS - ATTACKED_ROUNDS + 1, ROUNDS + 1)
        gains = [
            mean_gains([self._gains(arm, bench, silo.number, number) for number in last])
            for silo in self.silos
        ]
        return attack(gains, seed=self.seed)

    def _gains(self, arm: Arm, bench: Bench, silo: int, number: int) -> CanaryGains:
        given = self._release(arm, number - 1)
        update = self.folder / "updates" / arm.name / f"mailbox-{silo}" / f"round-{number}.safetensors"
        return bench.canary_gains(silo, given, update)

    def _keep(self, findings: Findings, final: Path, epsilon_by_round: list[float]) -> None:
        shutil.copytree(final, self.folder / "adapter")
        shutil.move(self.folder / "adapter" / "certificate.json", self.folder / "certificate.json")
        draw(
            Results(
                private=Curve(
                    f"ε = {self.epsilon:g}",
                    [findings.before.accuracy, *(score.accuracy for score in findings.private)],
                ),
                non_private=Curve(
                    "without DP",
                    [findings.before.accuracy, *(score.accuracy for score in findings.non_private)],
                ),
                epsilon_by_round=epsilon_by_round,
                majority=findings.majority,
                bag_of_words=findings.bag_of_words.accuracy,
                attack_private=findings.attack_private,
                attack_non_private=findings.attack_non_private,
                epsilon=self.epsilon,
            ),
            self.folder / "learning.png",
        )
        write(findings, self.folder / "report.json")
        show(findings, self.console, title="A spam filter from eight private mailboxes", covers=COVERS)
        self.console.print(f"picture, adapter, certificate and report: {self.folder}/")


def main() -> int:
    """Run the demo."""
    return run(Demo, prog="python -m demo", description=__doc__, out="out/demo")


if __name__ == "__main__":
    sys.exit(main())
