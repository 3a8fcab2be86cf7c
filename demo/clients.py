"""`make demo-clients`: 202 small clients, a secret cohort in every round, and noise added by the server."""

from __future__ import annotations

import json
import shutil
import sys
import time
from pathlib import Path
from typing import Any

from rich.console import Console
from rich.progress import track

from cli.embedded.stack import running_stack
from client.policy import Policy
from demo import client_plan
from demo.attack import AttackResult, attack
from demo.bench import Bench, Score
from demo.client_plan import CLIENTS
from demo.command import run
from demo.federation import Federation, FederationError
from demo.mailboxes import Mailbox, open_mailbox, serve
from demo.mails import Silo, load_silos, load_test
from demo.plan import DECLARED, DELTA, Arm, arms
from demo.reference import bag_of_words, majority
from demo.report import Findings, show, write

UNIT = "all mails of one client"
COVERS = (
    f"{UNIT}, against everybody but the server's operator, who sees updates and knows who was drawn and is "
    "trusted with both"
)


class ClientsDemo:
    """One run of the demo in its own folder, made anew."""

    def __init__(self, folder: Path, *, epsilon: float, seed: int, console: Console) -> None:
        self.folder, self.epsilon, self.seed, self.console = folder, epsilon, seed, console
        self.silos = load_silos(seed)
        self.private, self.open_arm = arms(epsilon)
        self.runs: dict[str, dict[str, Any]] = {}

    def train(self) -> float:
        """Run the server, both arms and the download of their last releases; returns the arms' seconds."""
        with (
            running_stack(self.folder / "server", environment={"DPFL_TRUSTS": "central,none"}) as stack,
            Federation(stack.url, json.loads(stack.admin_file.read_text())["api_key"]) as federation,
        ):
            mailboxes = self._open_all(federation, stack.url)
            began = time.monotonic()
            for arm in (self.private, self.open_arm):
                self._run(arm, federation, mailboxes)
            seconds = time.monotonic() - began
            for arm in (self.private, self.open_arm):
                releases = federation.releases(self.runs[arm.name]["id"])
                for release in releases:
                    federation.pull(release["id"], self._release(arm, int(release["number"])))
        return seconds

    def _open_all(self, federation: Federation, server: str) -> list[Mailbox]:
        places = [(silo, number) for silo in self.silos for number in sorted(silo.clients)]
        organisations = {
            silo.number: federation.organisation(f"organisation-{silo.number}") for silo in self.silos
        }
        return [
            self._open(federation, server, organisations[silo.number], silo, number)
            for silo, number in track(places, description="enrolling", console=self.console)
        ]

    def _open(
        self, federation: Federation, server: str, organisation_id: str, silo: Silo, number: int
    ) -> Mailbox:
        policy = Policy.of(
            dataset=f"client-{number}",
            epsilon=self.epsilon,
            delta=DELTA,
            trusts=["central", "none"],  # `none` for the comparison; no real client would allow it
            units=["client"],
            smallest_cohort=int(client_plan.RATE * CLIENTS),
            **DECLARED,
            base_model_folders={},
        )
        invitation = federation.invite(organisation_id, epsilon=self.epsilon, delta=DELTA, unit="client")
        home = self.folder / "mailboxes" / str(number)
        return open_mailbox(silo.clients[number], policy, invitation, server=server, home=home)

    def _run(self, arm: Arm, federation: Federation, mailboxes: list[Mailbox]) -> None:
        plan = client_plan.manifest(arm, seed=self.seed)
        run_id = federation.start_run(plan, [box.client_id for box in mailboxes])
        private = arm.epsilon is not None
        serve(
            mailboxes,
            run_id,
            title=arm.title,
            rounds=plan["rounds"],
            updates=None,
            order_seed=None if private else self.seed,
        )
        run = federation.wait_for_run(run_id, {"finished"})
        if run["state"] != "finished":
            raise FederationError(f"the run ended {run['state']}: {run.get('reason')}")
        self.runs[arm.name] = run

    def _release(self, arm: Arm, number: int) -> Path:
        return self.folder / "releases" / arm.name / f"round-{number}"

    def evaluate(self, train_s: float, began: float) -> None:
        """Score every release, attack the last ones, write everything down."""
        test = load_test()
        bench = Bench(client_plan.manifest(self.private, seed=self.seed), self.silos, test)
        price = self.runs[self.private.name]["price"]
        final = self._release(self.private, client_plan.ROUNDS)
        certificate = json.loads((final / "certificate.json").read_text())
        findings = Findings(
            seed=self.seed,
            clients=CLIENTS,
            rounds=client_plan.ROUNDS,
            unit=UNIT,
            trainable_parameters=bench.trainable_parameters(),
            epsilon=price["epsilon"],
            noise_multiplier=price["noise_multiplier"],
            majority=majority(test),
            before=bench.untrained(),
            private=self._scores(bench, self.private, client_plan.ROUNDS),
            non_private=self._scores(bench, self.open_arm, client_plan.OPEN_ROUNDS),
            bag_of_words=bag_of_words(self.silos, test),
            attack_private=self._attack(bench, self.private, client_plan.ROUNDS),
            attack_non_private=self._attack(bench, self.open_arm, client_plan.OPEN_ROUNDS),
            train_s=train_s,
            total_s=time.monotonic() - began,
            adapter_sha256=certificate["release"]["adapter_sha256"],
        )
        shutil.copytree(final, self.folder / "adapter")
        shutil.move(self.folder / "adapter" / "certificate.json", self.folder / "certificate.json")
        write(findings, self.folder / "report.json")
        show(findings, self.console, title=f"A spam filter from {CLIENTS} small clients", covers=COVERS)
        self.console.print(f"adapter, certificate and report: {self.folder}/")

    def _scores(self, bench: Bench, arm: Arm, rounds: int) -> list[Score]:
        return [bench.release(self._release(arm, number)) for number in range(1, rounds + 1)]

    def _attack(self, bench: Bench, arm: Arm, rounds: int) -> AttackResult:
        """What a reader of the last release can tell of single mails; only the operator sees updates."""
        folder = self._release(arm, rounds)
        gains = [bench.release_gains(silo.number, folder) for silo in self.silos]
        return attack(gains, seed=self.seed)


def main() -> int:
    """Run the demo."""
    return run(ClientsDemo, prog="python -m demo.clients", description=__doc__, out="out/demo-clients")


if __name__ == "__main__":
    sys.exit(main())
