"""Whether an update that the server gave a receipt for is in its audit log, as it was sent.

Looked at before the next round, when the entry has long had its place. Of a secret cohort there is no entry.
"""

from __future__ import annotations

import json
from collections.abc import Sequence
from dataclasses import replace
from datetime import UTC, datetime, timedelta
from hashlib import sha256
from typing import Annotated, Any

from pydantic import Field

from client.errors import ClientError
from client.evidence import Witness
from client.i18n import _
from client.profile import Profile
from client.session import ServerRefused, Session
from client.training import Sha256
from client.transparency import Head, follow, node_hash, remember, require_grown, verified
from client.wire import Answer, parse

_PATIENCE = timedelta(days=1)
"""An entry without a place for longer than that is none."""


class LogReceipt(Answer):
    """That an entry is in the log."""

    leaf_index: Annotated[int, Field(ge=0, lt=2**62)]
    path: Annotated[list[Sha256], Field(max_length=70)]
    checkpoint: Annotated[str, Field(max_length=8192)]


class LogEntry(Answer):
    """An entry with its receipt."""

    canonical: Annotated[str, Field(max_length=16384)]
    receipt: LogReceipt | None


def require_logged(profile: Profile, session: Session, witness: Witness) -> None:
    """Follow the server's log, and find the newest update in it that it gave a receipt for.

    Raises:
        ClientError: `log_rewritten` or `update_not_logged`, with evidence.
    """
    known, receipt = follow(profile, session, witness), newest_receipt(profile)
    if known is None or receipt is None or receipt["audit_entry_id"] == known.checked:
        return
    witness.saw(logged_as=receipt["audit_entry_id"])
    if is_logged(session, receipt, keys=known.keys, head=known.head):
        remember(profile, replace(known, checked=receipt["audit_entry_id"]))


def newest_receipt(profile: Profile) -> dict[str, Any] | None:
    """The last receipt of this server that names an entry of the log."""
    config = profile.config
    found = profile.ledger.book().receipts_of(server=config.server, client_id=config.client_id)
    named = [one for one in found if one.get("audit_entry_id")]
    return max(named, key=lambda one: str(one["received_at"]), default=None)


def is_logged(
    session: Session, receipt: dict[str, Any], *, keys: Sequence[tuple[str, str]], head: Head
) -> bool:
    """Say whether the update of a receipt is in the log under `head`; False while it waits for its place.

    Raises:
        ClientError: `update_not_logged`, or `log_rewritten` where the log of then is not that of now.
    """
    try:
        reply = session.get(f"/v1/audit/entries/{receipt['audit_entry_id']}")
    except ServerRefused as error:
        raise _not_logged() from error
    entry = parse(LogEntry, reply.json("log entry"), what="log entry")
    _require_own(entry.canonical, receipt)
    if entry.receipt is None:
        if datetime.fromisoformat(str(receipt["received_at"])) < datetime.now(UTC) - _PATIENCE:
            raise _not_logged()
        return False
    then, _signers = verified(entry.receipt.checkpoint, keys)
    path = [bytes.fromhex(one) for one in entry.receipt.path]
    leaf = sha256(b"\x00" + entry.canonical.encode()).digest()
    if not includes(leaf=leaf, index=entry.receipt.leaf_index, head=then, path=path):
        raise _not_logged()
    if then.size > head.size:
        return False  # it was placed between two questions
    require_grown(session, then, head)
    return True


def includes(*, leaf: bytes, index: int, head: Head, path: Sequence[bytes]) -> bool:
    """Say whether `path` proves the leaf at `index` of the log (RFC 9162, 2.1.3.2)."""
    at, last, found = index, head.size - 1, leaf
    if at > last:
        return False
    for one in path:
        if last == 0:
            return False
        if at & 1 or at == last:
            found = node_hash(one, found)
            while at and not at & 1:
                at, last = at >> 1, last >> 1
        else:
            found = node_hash(found, one)
        at, last = at >> 1, last >> 1
    return last == 0 and found == head.root


def _require_own(canonical: str, receipt: dict[str, Any]) -> None:
    """The entry has to be of this update, and of its bytes where it tells them."""
    try:
        entry = json.loads(canonical)
        said = (entry["action"], entry["subject"])
        digest = entry["details"].get("sha256", receipt["sha256"])
    except (ValueError, KeyError, TypeError, AttributeError, RecursionError) as error:
        raise _not_logged() from error
    if said != ("update.accepted", f"update:{receipt['update_id']}") or digest != receipt["sha256"]:
        raise _not_logged()


def _not_logged() -> ClientError:
    return ClientError(
        "update_not_logged",
        _("the server gave a receipt for an update that is not in its audit log: nothing more is sent"),
    )
