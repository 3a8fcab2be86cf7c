"""What a server announced that this client could not accept, kept for whoever has to look into it.

A file holds the server's words and the client's own, by their digests; nothing of the data set and no
update. It is signed by the client's key, so that it shows who says so; the server signs nothing here.
"""

from __future__ import annotations

import base64
import json
import re
from collections.abc import Iterator
from contextlib import contextmanager
from datetime import UTC, datetime
from pathlib import Path
from typing import Any

from client.durable import write_whole
from client.errors import ClientError
from client.i18n import _
from client.profile import Profile, raw_public_key
from client.wire import Assignment, Receipt, canonical_sha256

LIES = frozenset(
    {
        "adapter_mismatch",  # other bytes than the round's announced digest
        "log_rewritten",  # an audit log that does not go on from the one that was seen
        "ledger_reset",  # the server's account of this data set forgot entries, or is another one
        "manifest_changed",  # another manifest than the one that the run was accepted under
        "manifest_mismatch",  # another manifest than the one that the round announces
        "noise_too_small",  # the manifest claims less than its noise costs
        "receipt_mismatch",  # a receipt for other bytes
        "round_not_priced",  # a round beyond the priced schedule
        "round_replayed",  # a round that was sent already, from another adapter
        "update_not_logged",  # a receipt, and no entry of the update in the audit log
        "run_taken",  # a second client on one data set in one run
    }
)
"""Refusals after which the server, or somebody between, has something to explain."""

_OF_RUN = ("client_id", "server", "manifest_sha256", "trust", "unit", "epsilon", "delta", "at", "void")
_OF_ROUND = ("round_id", "update_id", "adapter_sha256", "stage", "receipt")


class Witness:
    """Collects what the server says about a round while it is handled."""

    def __init__(self, profile: Profile, run_id: str, *, number: int | None) -> None:
        self._profile = profile
        self._run_id = run_id
        self._number = number
        self._announced: dict[str, Any] = {}

    def saw(self, **said: Any) -> None:
        """Note more of what the server said, as JSON values."""
        self._announced |= said

    def saw_receipt(self, receipt: Receipt, *, noised: bool) -> None:
        """Note a receipt; the digest of an update without noise would confirm a guess of it."""
        self.saw(receipt=_without_digest(receipt.model_dump(mode="json"), noised=noised))

    def keep(self, error: ClientError) -> Path:
        """Put the evidence on the disk; the same evidence again is kept once."""
        folder = self._profile.ledger.folder
        body = {
            "code": error.code,
            "server": self._profile.config.server,
            "client_id": self._profile.config.client_id,
            "run_id": self._run_id,
            "number": self._number,
            "announced": self._announced,
            "held": self._held(),
            "told": {name: str(value) for name, value in error.members.items()},
        }
        digest = canonical_sha256(body)
        for path in sorted(folder.glob("evidence-*.json")):
            if _read(path).get("sha256") == digest:
                return path
        key = self._profile.key()
        at = datetime.now(UTC).isoformat(timespec="microseconds").replace("+00:00", "Z")
        signed = {
            "evidence": body,
            "sha256": digest,
            "at": at,
            "public_key": base64.b64encode(raw_public_key(key)).decode(),
            "signature": base64.b64encode(key.sign(bytes.fromhex(digest))).decode(),
        }
        path = folder / f"evidence-{re.sub('[-:.]', '', at)}.json"
        write_whole(path, json.dumps(signed, indent=2, ensure_ascii=False).encode() + b"\n")
        return path

    def _held(self) -> dict[str, Any]:
        """What this client's ledger says about the run and the round, and where its chain stands."""
        book, (entries, head) = self._profile.ledger.book(), self._profile.ledger.head()
        held: dict[str, Any] = {"ledger_entries": entries, "ledger_head": head}
        run = book.commitments.get(self._run_id)
        if run is not None:
            held["run"] = {name: getattr(run, name) for name in _OF_RUN}
        one = None if self._number is None else book.contribution(self._run_id, self._number)
        if one is not None:
            held["round"] = {name: getattr(one, name) for name in _OF_ROUND}
            if one.receipt is not None:
                noised = run is not None and run.trust == "local"
                held["round"]["receipt"] = _without_digest(one.receipt, noised=noised)
        return held


@contextmanager
def witnessed(profile: Profile, run_id: str, assignment: Assignment | None = None) -> Iterator[Witness]:
    """Keep evidence of a refusal that the server has to explain; the refusal then names the file."""
    witness = Witness(profile, run_id, number=None if assignment is None else assignment.number)
    if assignment is not None:
        witness.saw(assignment=assignment.model_dump(mode="json"))
    try:
        yield witness
    except ClientError as error:
        if error.code in LIES and error.evidence is None:
            error.evidence = str(witness.keep(error))
        raise


def require_trusted(profile: Profile) -> None:
    """Refuse a server whose ledger was seen to begin anew, while the evidence lies in the folder.

    Raises:
        ClientError: `server_distrusted`, naming the file; a person who had it explained moves it away.
    """
    config = profile.config
    for path in sorted(profile.ledger.folder.glob("evidence-*.json")):
        body = _read(path).get("evidence", {})
        who = (body.get("code"), body.get("server"), body.get("client_id"))
        if who == ("ledger_reset", config.server, config.client_id):
            raise ClientError(
                "server_distrusted",
                _("{path} shows that {server} lost this data set's spending: move it away once explained"),
                path=str(path),
                server=config.server,
            )


def verify(path: Path) -> dict[str, Any]:
    """Return a file's evidence if its digest holds; raises `evidence_changed`."""
    kept = _read(path)
    body: dict[str, Any] = kept.get("evidence", {})
    if canonical_sha256(body) != kept.get("sha256"):
        raise ClientError("evidence_changed", _("{path} is not as it was written"), path=str(path))
    return body


def _without_digest(receipt: dict[str, Any], *, noised: bool) -> dict[str, Any]:
    return receipt if noised else {name: value for name, value in receipt.items() if name != "sha256"}


def _read(path: Path) -> dict[str, Any]:
    try:
        value = json.loads(path.read_text(encoding="utf-8"))
    except (OSError, ValueError):
        return {}
    return value if isinstance(value, dict) else {}
