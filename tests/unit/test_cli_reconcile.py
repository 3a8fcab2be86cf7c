"""The client's ledger against the server's mirror: agreement, harmless extras, and the first difference."""

from __future__ import annotations

import logging
import warnings
from collections.abc import Iterator
from dataclasses import replace
from pathlib import Path
from typing import Any
from uuid import uuid4

import pytest
from typer.testing import CliRunner

from cli.main import app
from client.book import Book, Commitment, Contribution, Stage
from client.ledger import Ceiling, Terms
from client.reconciling import Comparison, MirroredAccount, MirroredEntry, compare
from tests.client_folders import manifest, profile_in
from tests.recording import Answer, Heard, PlayedRun, RecordingServer

SERVER = "https://server"


@pytest.fixture(autouse=True)
def restored() -> Iterator[None]:
    """The command silences this process's logs and warnings; others here want them back."""
    with warnings.catch_warnings():
        yield
    logging.disable(logging.NOTSET)


def sent(number: int, stage: Stage = Stage.SENT) -> Contribution:
    return Contribution(f"round-{number}", "u", "0" * 64, 1, "1" * 64, stage)


def committed(run_id: str = "r", *, trust: str = "local", **changed: Any) -> Commitment:
    terms = Commitment(run_id, "c", SERVER, "m", trust, 300, 7, (200, 300), "2026-11-01T00:00:00Z")
    return replace(terms, **{"contributions": {1: sent(1)} if trust == "local" else {}} | changed)


def book_of(*runs: Commitment) -> Book:
    return Book("data", {run.run_id: run for run in runs})


def mirror(*entries: dict[str, Any]) -> list[MirroredEntry]:
    made, previous = [], "genesis"
    for seq, entry in enumerate(entries, start=1):
        event = {"trust": "local", "manifest_sha256": "m"} | entry.pop("event", {})
        plain = {"seq": seq, "reserve_ref": None, "amount": 0, "delta_amount": 0, "prev_hash": previous}
        made.append(MirroredEntry(**plain | {"event": event, "hash": f"h{seq}"} | entry))
        previous = made[-1].hash
    return made


def grant() -> dict[str, Any]:
    return {"kind": "grant", "ref": "opening", "event": {}}


def reserve(run_id: str = "r", **changed: Any) -> dict[str, Any]:
    return {"kind": "reserve", "ref": f"run:{run_id}", "amount": 300, "delta_amount": 7} | changed


def spend(number: int = 1, run_id: str = "r", **event: Any) -> dict[str, Any]:
    booked = {"kind": "spend", "ref": f"round:{number}", "reserve_ref": f"run:{run_id}", "amount": 200}
    return booked | {"event": {"round": number} | event}


def void(run_id: str = "r") -> dict[str, Any]:
    return {"kind": "void", "ref": f"void:{run_id}", "reserve_ref": f"run:{run_id}", "amount": 300}


def compared(
    book: Book, *entries: dict[str, Any], kind: str = "basic", count: int | None = None
) -> Comparison:
    made = mirror(*entries)
    account = MirroredAccount(id="a", kind=kind, entries=len(made) if count is None else count)
    return compare(book, account, made, server=SERVER)


def test_ledgers_that_say_the_same_agree() -> None:
    found = compared(book_of(committed()), grant(), reserve(), spend())
    assert found == Comparison()


def test_an_update_without_a_receipt_may_be_uncharged() -> None:
    torn = committed(contributions={1: sent(1, Stage.SPENT)})
    assert compared(book_of(torn), grant(), reserve()) == Comparison()


def test_a_central_charge_for_a_client_that_was_never_drawn_is_harmless_and_said_so() -> None:
    found = compared(book_of(), grant(), reserve(), spend(1, trust="central"), spend(2, trust="central"))
    assert (found.first, found.never_drawn, found.pending) == (None, 2, ["r"])


def test_a_joined_central_run_is_charged_for_rounds_without_an_update() -> None:
    run = committed(trust="central")
    assert compared(book_of(run), grant(), reserve(), spend(1, trust="central")).first is None


def test_a_renyi_mirror_counts_in_another_unit() -> None:
    assert compared(book_of(committed()), grant(), reserve(amount=5), spend(), kind="renyi").first is None


@pytest.mark.parametrize(
    ("book", "entries", "code", "where"),
    [
        (book_of(), [grant(), reserve(), spend()], "unknown_charge", "#3 (spend round:1)"),
        (book_of(committed()), [grant(), reserve(amount=299), spend()], "amount_differs", "#2"),
        (book_of(committed()), [grant(), reserve(delta_amount=6), spend()], "amount_differs", "#2"),
        (
            book_of(committed()),
            [grant(), reserve(event={"manifest_sha256": "other"})],
            "manifest_differs",
            "#2",
        ),
        (book_of(committed()), [grant(), reserve(), spend(), spend(2)], "unknown_charge", "#4"),
        (
            book_of(committed(contributions={1: sent(1, Stage.PREPARED)})),
            [grant(), reserve(), spend()],
            "unknown_charge",
            "#3",
        ),
        (book_of(committed(contributions={})), [grant(), reserve(), void()], "not_disclaimed", "#3"),
        (book_of(committed(contributions={}, void=True)), [grant(), reserve()], "not_mirrored", "run r"),
        (book_of(committed()), [grant()], "not_mirrored", "run r"),
        (book_of(committed()), [grant(), reserve()], "not_mirrored", "run r, round 1"),
        (book_of(committed()), [grant(), reserve(), spend() | {"prev_hash": "x"}], "chain_broken", "#3"),
        (book_of(committed()), [grant(), reserve(), spend() | {"seq": 4}], "chain_broken", "#4"),
    ],
)
def test_the_first_difference_is_named(
    book: Book, entries: list[dict[str, Any]], code: str, where: str
) -> None:
    first = compared(book, *[dict(entry) for entry in entries]).first
    assert first is not None
    assert first.code == code
    assert first.where.startswith(where)


def test_of_several_differences_the_first_entry_is_named() -> None:
    first = compared(book_of(committed()), grant(), reserve(amount=1), spend(2)).first
    assert first is not None
    assert first.where.startswith("#2")


def test_entries_that_the_server_keeps_back_are_missed() -> None:
    first = compared(book_of(committed()), grant(), reserve(), spend(), count=4).first
    assert (first.code, first.where) == ("chain_broken", "#4") if first else pytest.fail("not found")


def test_a_run_on_another_server_or_without_a_claim_is_not_looked_for() -> None:
    elsewhere = committed("x", server="https://other")
    open_run = committed("y", trust="none", epsilon=0, delta=0)
    assert compared(book_of(elsewhere, open_run), grant()).first is None


def test_the_command_reads_every_page_as_the_client_and_ends_with_the_difference(tmp_path: Path) -> None:
    run_id, account = str(uuid4()), str(uuid4())
    with RecordingServer(PlayedRun(manifest(), b"")) as server:
        (tmp_path / "mails.jsonl").write_text('{"subject": "a", "body": "b", "label": "ham"}\n')
        profile = profile_in(tmp_path / "mailbox", server=server.url, client_id=server.client_id)
        terms = Terms(run_id, server.client_id, server.url, "m", "local", 300, 7, (200, 300))
        profile.ledger.commit(terms, ceiling=Ceiling(epsilon=1000, delta=1000))
        entries = [entry.model_dump() for entry in mirror(grant(), reserve(run_id))]

        def script(heard: Heard) -> Answer | None:
            path, _sep, query = heard.path.partition("?")
            if path == "/v1/budgets":
                one = {"id": account, "kind": "basic", "entries": len(entries)}
                return Answer(payload={"items": [one], "next_cursor": None})
            if path == f"/v1/budgets/{account}/entries":
                page, cursor = (entries[1:], None) if "cursor=more" in query else (entries[:1], "more")
                return Answer(payload={"items": page, "next_cursor": cursor})
            return None

        server.script = script
        done = CliRunner().invoke(app, ["reconcile", "--folder", str(profile.folder)])
        assert (done.exit_code, done.stdout.splitlines()[-1]) == (0, "the ledgers agree")
        assert "mirror " + account + ": 2 entries, head h2" in done.stdout
        entries[1]["amount"] = 1
        done = CliRunner().invoke(app, ["reconcile", "--folder", str(profile.folder)])
        assert done.exit_code == 1
        assert done.stderr.startswith("dpfl: [amount_differs] the ledgers first differ at #2 (reserve run:")
