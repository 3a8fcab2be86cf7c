"""The whole stack with more than records under local noise: by person, noised by the server, in buffers.

On the demo's mails, with their authors as persons.
"""

import gzip
import json
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest

from cli.embedded.stack import Stack, running_stack
from client.profile import Profile
from demo.mails import DATA_FILE
from tests.serving import serve
from tests.system.test_client_leaks import LABELS, Outside, enrolled, invite, planned
from tests.unit.tiny_model import write_tiny_bert

pytestmark = [pytest.mark.system, pytest.mark.timeout(400)]
SILOS = 2
RECORDS_CAP = 22
"""Most mails of one author; each author is in one silo."""


@pytest.fixture
def stack(tmp_path: Path) -> Iterator[Stack]:
    environment = {"DPFL_TRUSTS": "local,central"}
    with running_stack(tmp_path / "stack", environment=environment) as running:
        yield running


def mails_of(silo: int) -> list[dict[str, str]]:
    """A silo's mails, each with its author's id, in words that can be searched for."""
    with gzip.open(DATA_FILE, "rt", encoding="utf-8") as file:
        rows = [json.loads(line) for line in file]
    return [
        {
            "subject": one["subject"],
            "body": one["body"],
            "label": LABELS[one["label"]],
            "client": f"canary-{one['client']}",
        }
        for one in rows
        if (one["split"], one["silo"]) == ("train", silo)
    ]


def mailbox(outside: Outside, folder: Path, *, stack: Stack, silo: int, base: Path) -> str:
    data = folder.with_suffix(".jsonl")
    data.write_text("".join(json.dumps(one) + "\n" for one in mails_of(silo)))
    token = invite(stack.admin_file, stack.url, unit="person")
    client_id = enrolled(outside, folder, url=stack.url, token=token, data=data, base=base)
    policy = next((folder / "ledgers").glob("*/policy.toml"))
    text = policy.read_text().replace('trusts = ["local"]', 'trusts = ["local", "central"]')
    text = text.replace('["example", "person", "client"]', '["person", "client"]')
    declared = text.replace('# person_field = "author"', 'person_field = "client"')
    declared = declared.replace("# person_records = 100", f"person_records = {RECORDS_CAP}")
    policy.write_text(declared.replace("smallest_cohort = 2", "smallest_cohort = 1"))
    return client_id


def served(outside: Outside, plan: dict[str, Any], clients: dict[Path, str], stack: Stack) -> str:
    """Plan, price, start and serve a run to its end."""
    admin = ("--key-file", str(stack.admin_file), "--server", stack.url)
    manifest = outside.root / "manifest.json"
    manifest.write_text(json.dumps(plan))
    run_id = outside.dpfl(
        *("run", "create", str(manifest), *admin),
        *(part for client in clients.values() for part in ("--client", client)),
    )
    outside.dpfl("run", "price", run_id, *admin)
    outside.dpfl("run", "start", run_id, *admin)
    serve([Profile.open(folder) for folder in clients], run_id)
    assert outside.dpfl("release", "list", "--run", run_id, *admin).split()
    return run_id


def certificate(outside: Outside, run_id: str, stack: Stack) -> dict[str, Any]:
    """The certificate of a run's last release, pulled and computed again."""
    admin = ("--key-file", str(stack.admin_file), "--server", stack.url)
    release = outside.dpfl("release", "list", "--run", run_id, *admin).split()[0]
    folder = outside.root / run_id
    outside.dpfl("release", "pull", release, "--to", str(folder), *admin)
    assert "holds" in outside.dpfl("verify-certificate", str(folder / "certificate.json"))
    read: dict[str, Any] = json.loads((folder / "certificate.json").read_text())
    return read


def test_persons_then_whole_clients_and_then_buffers_are_charged_on_one_stack(
    tmp_path: Path, stack: Stack, capsys: pytest.CaptureFixture[str]
) -> None:
    outside, base = Outside(tmp_path / "outside"), write_tiny_bert(tmp_path / "base")
    clients = dict[Path, str]()
    for silo in range(SILOS):
        folder = tmp_path / f"mailbox-{silo}"
        clients[folder] = mailbox(outside, folder, stack=stack, silo=silo, base=base)
    by_person, by_client = planned(base), planned(base)
    by_person["privacy"] |= {
        "unit": "person",
        "person": {"id_field": "client", "records_cap": RECORDS_CAP, "silos": 1},
        "epsilon": 3.0,
        "delta": 4e-6,
    }
    by_client["privacy"] |= {
        "trust": "central",
        "unit": "client",
        "relation": "replace_one",
        "epsilon": 4.0,
        "delta": 4e-6,
        "divisor": 2.0,
    }
    # Both are asked for every buffer, and one of them fills it: the other one's update is late.
    buffered = planned(base) | {
        "rounds": 3,
        "buffered": {"participations": 2, "staleness": 2},
        "quorum": {"min_updates": 1, "max_updates": 1},
    }
    buffered["privacy"] |= by_person["privacy"] | {"epsilon": 0.9, "delta": 1e-6}
    first = served(outside, by_person, clients, stack)
    second = served(outside, by_client, clients, stack)
    third = served(outside, buffered, clients, stack)
    for run_id, unit, trust in ((first, "person", "local"), (second, "client", "central")):
        privacy = certificate(outside, run_id, stack)["privacy"]
        assert (privacy["unit"], privacy["trust"]) == (unit, trust)
    together = privacy["population"]
    assert (together["claimed"], together["unit"], together["relation"]) == (True, "person", "zero_out")
    privacy = certificate(outside, third, stack)["privacy"]
    assert (privacy["steps"], privacy["participations"]) == (4, 2)
    outside.printed += "".join(capsys.readouterr())
    assert "the server sees this client's updates" in outside.printed
    for folder in clients:
        book = Profile.open(folder).ledger.book()
        person, client = book.commitments[first], book.commitments[second]
        assert (person.unit, person.trust, person.rounds_sent) == ("person", "local", 2)
        assert (client.unit, client.trust, client.rounds_sent) == ("client", "central", 2)
        spent = person.epsilon + client.epsilon + book.commitments[third].epsilon_spent
        assert book.epsilon_spent == spent
        assert not list((folder / "ledgers").glob("*/evidence-*.json"))
    runs = [Profile.open(folder).ledger.book().commitments[third] for folder in clients]
    assert sorted(run.rounds_sent for run in runs) == [1, 2]
    assert len({one.round_id for run in runs for one in run.contributions.values()}) == 3
    assert "canary" not in outside.printed
