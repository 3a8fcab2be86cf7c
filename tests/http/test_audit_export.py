"""An export proves itself offline; changed, cut or put together otherwise at any place it is refused."""

from __future__ import annotations

import io
import json
import random
import socket
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import pytest
from cryptography.hazmat.primitives.asymmetric.ed25519 import Ed25519PrivateKey
from starlette.testclient import TestClient
from typer.testing import CliRunner

from app.audit import keys
from app.audit.checkpoint import Checkpoint, PublicKey, sign
from app.audit.merkle import leaf_hash, root_of
from app.audit.record import Action, record
from app.audit.verify import ExportInvalid, Verified, verify
from app.core.canonical import canonical_bytes
from app.core.db import Database
from app.core.ids import new_id
from app.identity.roles import Role
from app.main import build_app
from cli.main import app as command
from tests.audit_log import ORIGIN, place_all
from tests.database import clone_of, settings_for
from tests.http.accounts import VAULT, add_caller

PLACES = 10_000


@dataclass
class Exports:
    """What a small log gave, early and late, to an administrator and to one organisation's auditor."""

    early: bytes
    whole: bytes
    partial: bytes
    checkpoint: str
    """Of the time of `early`."""
    key: str


@pytest.fixture(scope="module")
def exports(template_name: str, tmp_path_factory: pytest.TempPathFactory) -> Iterator[Exports]:
    with clone_of(template_name) as url:
        database = Database(url, pool_size=4)
        with TestClient(
            build_app(settings_for(url, tmp_path_factory.mktemp("blobs"))), base_url="http://127.0.0.1:8000"
        ) as client:
            yield _exported(client, database)
        database.dispose()


def _exported(client: TestClient, database: Database) -> Exports:
    def fetch(path: str, headers: dict[str, str]) -> bytes:
        answer = client.get(f"/v1/audit/{path}", headers=headers)
        assert answer.status_code == 200, answer.text
        return answer.content

    with database.run_tx("test") as session:
        admin, auditor = add_caller(session), add_caller(session, Role.AUDITOR)
    place_all(database)
    early, checkpoint = fetch("export", admin.headers), fetch("checkpoint", {}).decode()
    with database.run_tx("test") as session:
        for owner in (admin.organisation_id, auditor.organisation_id, None):
            record(
                session,
                action=Action.RUN_CREATED,
                actor=admin.principal.actor,
                organisation_id=owner,
                subject=f"run:{new_id()}",
                details={"clients": 3, "codes": ["a", "b"]},
                committed={"name": "Ärztehaus"},
            )
        keys.rotate(session, VAULT, actor="operator")
    place_all(database)
    key = json.loads(fetch("keys", {}))["keys"][0]["public_key"]
    whole, partial = (fetch("export", caller.headers) for caller in (admin, auditor))
    return Exports(early=early, whole=whole, partial=partial, checkpoint=checkpoint, key=key)


def check(content: bytes, **terms: Any) -> Verified:
    return verify(io.BytesIO(content), **terms)


def refused(content: bytes, **terms: Any) -> ExportInvalid:
    with pytest.raises(ExportInvalid) as caught:
        check(content, **terms)
    return caught.value


def lines_of(content: bytes) -> list[bytes]:
    return content.splitlines(keepends=True)


def test_a_whole_export_holds(exports: Exports) -> None:
    found = check(exports.whole, key=bytes.fromhex(exports.key), kept=exports.checkpoint)
    size = found.checkpoint.size
    assert (found.checkpoint.origin, found.scope, found.shown) == (ORIGIN, "federation", size)
    assert size == len(lines_of(exports.whole)) - 3
    assert found.key.raw.hex() == exports.key
    assert b"rztehaus" not in exports.whole
    assert check(exports.early).checkpoint.size < size


def test_an_auditor_gets_its_own_entries_and_of_the_others_the_hashes(exports: Exports) -> None:
    found, whole = check(exports.partial), check(exports.whole)
    assert found.checkpoint == whole.checkpoint
    assert 0 < found.shown < whole.shown
    shown = [json.loads(line) for line in lines_of(exports.partial)[1:-2]]
    owners = {line["entry"]["organisation_id"] for line in shown if "entry" in line}
    assert owners == {found.scope}


def test_every_random_change_of_a_byte_is_refused(exports: Exports) -> None:
    chance = random.Random(20_262_026)
    for content in (exports.whole, exports.partial):
        for _number in range(PLACES // 2):
            at, bit = chance.randrange(len(content)), 1 << chance.randrange(8)
            changed = content[:at] + bytes([content[at] ^ bit]) + content[at + 1 :]
            assert refused(changed).line >= 1


def test_every_random_cut_is_refused(exports: Exports) -> None:
    chance = random.Random(5)
    for _number in range(1000):
        refused(exports.whole[: chance.randrange(len(exports.whole))])


def test_a_line_that_is_gone_doubled_or_moved_is_refused(exports: Exports) -> None:
    lines = lines_of(exports.whole)
    for at in range(len(lines)):
        without = lines[:at] + lines[at + 1 :]
        assert refused(b"".join(without)).line >= min(at + 1, len(lines) - 1)
        refused(b"".join([*lines[:at], lines[at], *lines[at:]]))
        refused(b"".join(lines[:at]))
        if at + 1 < len(lines):
            refused(b"".join([*lines[:at], lines[at + 1], lines[at], *lines[at + 2 :]]))
    refused(exports.whole + b"\n")
    refused(exports.whole + lines[-1])
    refused(exports.whole.replace(b"\n", b"\r\n"))
    refused(b"")


@pytest.mark.parametrize(
    ("member", "value"),
    [
        ("actor", "member:another"),
        ("action", "run.aborted"),
        ("subject", "run:another"),
        ("details", {"clients": 4}),
        ("at", "2020-01-01T00:00:00.000000Z"),
        ("nonce", "0" * 32),
        ("commitments", {}),
        ("organisation_id", None),
        ("more", 1),
    ],
)
def test_a_changed_entry_is_named_by_its_line(exports: Exports, member: str, value: object) -> None:
    lines = lines_of(exports.whole)
    at = len(lines) - 6  # the first of the three runs
    line = json.loads(lines[at])
    assert line["entry"]["action"] == "run.created"
    line["entry"][member] = value
    lines[at] = canonical_bytes(line) + b"\n"
    wrong = refused(b"".join(lines))
    assert (wrong.line, "not the one that was logged" in str(wrong)) == (at + 1, True)
    # With its hash made to fit, only the root can tell.
    line["leaf_hash"] = leaf_hash(canonical_bytes(line["entry"])).hex()
    lines[at] = canonical_bytes(line) + b"\n"
    assert "not those that were signed" in str(refused(b"".join(lines)))


def test_an_entry_that_was_taken_out_of_a_whole_export_is_missed(exports: Exports) -> None:
    lines = lines_of(exports.whole)
    line = json.loads(lines[3])
    del line["entry"]
    lines[3] = canonical_bytes(line) + b"\n"
    assert refused(b"".join(lines)).line == 4


def rewritten(content: bytes, change: Callable[[list[dict[str, Any]]], None]) -> bytes:
    """The log with other entries, signed by a key of the forger's own."""
    lines = [json.loads(line) for line in lines_of(content)]
    change(lines)
    leaves = []
    for index, line in enumerate(lines[1:-2]):
        leaf = leaf_hash(canonical_bytes(line["entry"]))
        line |= {"leaf_index": index, "leaf_hash": leaf.hex()}
        leaves.append(leaf)
    lines[0]["size"] = len(leaves)
    key = Ed25519PrivateKey.generate()
    lines[-2]["checkpoint"] = sign(Checkpoint(ORIGIN, len(leaves), root_of(leaves)), [(ORIGIN, key)])
    lines[-1]["keys"] = [PublicKey(ORIGIN, key.public_key().public_bytes_raw()).text]
    return b"".join(canonical_bytes(line) + b"\n" for line in lines)


def drop_second(lines: list[dict[str, Any]]) -> None:
    del lines[2]


def nothing(_lines: list[dict[str, Any]]) -> None:
    """No change."""


def test_a_log_that_was_rewritten_and_signed_anew_is_found_by_the_key(exports: Exports) -> None:
    forged = rewritten(exports.whole, drop_second)
    assert check(forged).shown  # alone it is consistent: that is why the key has to come another way
    assert "not signed by the key" in str(refused(forged, key=bytes.fromhex(exports.key)))


def test_a_log_that_was_rewritten_by_its_own_key_is_found_by_an_older_checkpoint(exports: Exports) -> None:
    refused(rewritten(exports.whole, drop_second), kept=exports.checkpoint)
    assert check(rewritten(exports.whole, nothing), kept=exports.checkpoint)


@pytest.mark.parametrize("kept", ["", "no checkpoint", "another/audit\n1\n\n"])
def test_what_is_no_checkpoint_of_this_log_is_refused(exports: Exports, kept: str) -> None:
    assert refused(exports.whole, kept=kept).line == 1


def test_an_export_that_is_older_than_the_checkpoint_is_refused(exports: Exports) -> None:
    newest = json.loads(lines_of(exports.whole)[-2])["checkpoint"]
    assert refused(exports.early, kept=newest).line == 1
    assert check(exports.whole, kept=newest)


@pytest.mark.parametrize(
    ("line", "change"),
    [
        (0, {"size": 10**18}),
        (0, {"size": -1}),
        (0, {"size": 1.0}),
        (0, {"size": True}),
        (0, {"scope": 1}),
        (0, {"format": "dpfl-audit-export/2"}),
        (0, {"origin": "another/audit"}),
        (0, {"more": 1}),
        (1, {"leaf_index": 0.0}),
        (1, {"leaf_index": False}),
        (1, {"leaf_hash": 1}),
        (1, {"leaf_hash": "zz"}),
        (1, {"leaf_hash": "A" * 64}),
        (1, {"entry": []}),
        (1, {"entry": "a" * 20_000}),
        (-2, {"checkpoint": 1}),
        (-2, {"checkpoint": ""}),
        (-1, {"keys": []}),
        (-1, {"keys": "a"}),
        (-1, {"keys": [1]}),
        (-1, {"keys": ["a+b+c"] * 17}),
    ],
)
def test_a_line_of_another_shape_is_refused(exports: Exports, line: int, change: dict[str, Any]) -> None:
    lines = lines_of(exports.whole)
    lines[line] = canonical_bytes(json.loads(lines[line]) | change) + b"\n"
    refused(b"".join(lines))


@pytest.mark.parametrize(
    "raw", [b"\xff\n", b"[" * 9000 + b"\n", b"{}\n", b"null\n", b'{"size":NaN}\n', b"a" * 10**6]
)
def test_what_is_no_export_is_refused(raw: bytes) -> None:
    assert refused(raw).line == 1


def test_the_command_needs_neither_server_nor_network(
    exports: Exports, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    def no_network(*_args: object, **_more: object) -> None:
        raise AssertionError("a socket was opened")

    monkeypatch.setattr(socket, "socket", no_network)
    for name in ("DATABASE_URL", "DPFL_SERVER", "DPFL_KEY_FILE"):
        monkeypatch.delenv(name, raising=False)
    file, kept = tmp_path / "log.jsonl", tmp_path / "checkpoint"
    file.write_bytes(exports.whole)
    kept.write_text(exports.checkpoint, encoding="utf-8")
    words = ["audit", "verify", "--offline", str(file)]
    told = CliRunner().invoke(command, words)
    assert told.exit_code == 0, told.output
    assert "every hash, the root and the signature hold" in told.output
    assert "file's own word" in told.output
    pinned = CliRunner().invoke(command, [*words, "--key", exports.key, "--checkpoint", str(kept)])
    assert pinned.exit_code == 0, pinned.output
    assert "file's own word" not in pinned.output
    assert "goes on from the checkpoint that was kept" in pinned.output
    file.write_bytes(exports.whole.replace(b"run.created", b"run.aborted", 1))
    wrong = CliRunner().invoke(command, words)
    assert wrong.exit_code == 1
    assert wrong.stderr.startswith("dpfl: [export_invalid] line ")
    assert len(wrong.stderr.splitlines()) == 1


@pytest.mark.parametrize(
    ("words", "code"),
    [
        (["--key", "zz"], "bad_key"),
        (["--key", "00"], "bad_key"),
        (["--checkpoint", "/nonexistent/file"], "unreadable"),
    ],
)
def test_a_wrong_option_is_told_in_one_line(
    exports: Exports, tmp_path: Path, words: list[str], code: str
) -> None:
    file = tmp_path / "log.jsonl"
    file.write_bytes(exports.whole)
    told = CliRunner().invoke(command, ["audit", "verify", str(file), *words])
    assert told.exit_code == 1
    assert told.stderr.startswith(f"dpfl: [{code}] ")
