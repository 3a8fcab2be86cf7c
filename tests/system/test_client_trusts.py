"""The whole stack with more than records under local noise: a run by person, and one noised by the server."""

import json
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest

from cli.embedded.stack import Stack, running_stack
from client.profile import Profile
from tests.system.test_client_leaks import Outside, enrolled, invite, mails, planned
from tests.unit.tiny_model import write_tiny_bert

pytestmark = [pytest.mark.system, pytest.mark.timeout(400)]
AUTHORS = 6


@pytest.fixture
def stack(tmp_path: Path) -> Iterator[Stack]:
    environment = {"DPFL_TRUSTS": "local,central"}
    with running_stack(tmp_path / "stack", environment=environment) as running:
        yield running


def mailbox(
    outside: Outside, folder: Path, *, stack: Stack, records: list[dict[str, Any]], base: Path
) -> str:
    data = folder.with_suffix(".jsonl")
    lines = [one | {"author": f"canary-{number % AUTHORS}"} for number, one in enumerate(records)]
    data.write_text("".join(json.dumps(one) + "\n" for one in lines))
    token = invite(stack.admin_file, stack.url)
    client_id = enrolled(outside, folder, url=stack.url, token=token, data=data, base=base)
    policy = next((folder / "ledgers").glob("*/policy.toml"))
    text = policy.read_text().replace('trusts = ["local"]', 'trusts = ["local", "central"]')
    declared = text.replace("# person_field =", "person_field =")
    policy.write_text(declared.replace("# person_records = 100", f"person_records = {len(lines)}"))
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
    profiles = [part for folder in clients for part in ("--profile", str(folder))]
    outside.dpfl("client", "run", *profiles, "--run", run_id)
    listed = outside.dpfl("release", "list", "--run", run_id, *admin).split()
    assert listed
    return run_id


def test_persons_and_then_whole_clients_are_protected_on_one_stack(tmp_path: Path, stack: Stack) -> None:
    outside, base = Outside(tmp_path / "outside"), write_tiny_bert(tmp_path / "base")
    records, clients = mails(), dict[Path, str]()
    for number in range(2):
        folder = tmp_path / f"mailbox-{number}"
        mine = records[number::2]
        clients[folder] = mailbox(outside, folder, stack=stack, records=mine, base=base)
    labels = sorted({one["label"] for one in records})
    template = outside.dpfl(
        *("run", "template", "--base-model", str(base), "--layers", "2", "--clients", "2"),
        *("--labels", ",".join(labels), "--rounds", "2", "--local-steps", "2"),
    )
    by_person, by_client = planned(template), planned(template)
    by_person["privacy"] |= {
        "unit": "person",
        "person": {"id_field": "author", "records_cap": len(records), "silos": 2},
        "epsilon": 3.0,
        "delta": 4e-6,
    }
    by_client["privacy"] |= {
        "trust": "central",
        "unit": "client",
        "epsilon": 4.0,
        "delta": 4e-6,
        "divisor": 2.0,
    }
    first = served(outside, by_person, clients, stack)
    second = served(outside, by_client, clients, stack)
    assert "the server sees this client's updates" in outside.printed
    for folder in clients:
        book = Profile.open(folder).ledger.book()
        person, client = book.commitments[first], book.commitments[second]
        assert (person.unit, person.trust, person.rounds_sent) == ("person", "local", 2)
        assert (client.unit, client.trust, client.rounds_sent) == ("client", "central", 2)
        assert book.epsilon_spent == person.epsilon + client.epsilon
        assert not list((folder / "ledgers").glob("*/evidence-*.json"))
    assert "canary" not in outside.printed
