"""Giving entries their places in the tree: one at a time in the whole federation, driven by the dispatcher.

Acts write their entries side by side and wait for nobody; here they are put in order, behind them. Only
entries below the oldest transaction that still runs are taken: all that will ever be below it is there, so
the order of the tree is that of transactions, and none that commits late lands between placed ones.
"""

from __future__ import annotations

import sqlalchemy as sa
from sqlalchemy.orm import Session

from app.audit import keys, tree
from app.audit.checkpoint import Checkpoint, sign
from app.audit.merkle import CompactRange, Node
from app.audit.models import AuditCheckpoint, AuditNode
from app.core.crypto import Vault
from app.core.db import notify

CHANNEL = "dpfl_audit"
GROWN = "grown"
"""What is announced when there is a new checkpoint."""
BATCH = 2000
_LOCK = sa.text("SELECT pg_try_advisory_xact_lock(hashtext('dpfl.audit.sequencer'))")
_PLACE = sa.text(
    """
    UPDATE audit_entries SET leaf_index = placed.leaf_index
    FROM (
        SELECT id, :size + row_number() OVER (ORDER BY transaction_id, id) - 1 AS leaf_index
        FROM audit_entries
        WHERE leaf_index IS NULL
          AND transaction_id < pg_snapshot_xmin(pg_current_snapshot())::text::bigint
        ORDER BY transaction_id, id
        LIMIT :batch
    ) AS placed
    WHERE audit_entries.id = placed.id
    RETURNING audit_entries.leaf_index, audit_entries.leaf_hash
    """
)


class TreeBroken(Exception):
    """The stored tree is not the one that was signed last: somebody changed it beneath the guards."""


def sequence(session: Session, vault: Vault, *, public_url: str) -> int:
    """Place what is due, and sign the tree as it is then; returns how many entries were placed.

    0 as well where another process is at it. Call it again at once when it placed a whole BATCH. Raises
    TreeBroken, and signs nothing.
    """
    if not session.scalar(_LOCK):
        return 0
    # A statement of its own, after the lock: its snapshot holds what the process before this one committed.
    former = tree.latest(session)
    size = 0 if former is None else former.size
    placed = sorted(
        (index, bytes(leaf)) for index, leaf in session.execute(_PLACE, {"size": size, "batch": BATCH})
    )
    if not placed:
        return 0
    range_ = CompactRange(size, tree.whole_nodes(session, size))
    if former is not None and former.root != range_.root():
        raise TreeBroken(f"the tree of {size} leaves has another root than its checkpoint")
    nodes: list[tuple[Node, bytes]] = []
    for _index, leaf in placed:
        nodes.extend(range_.append(leaf))
    if nodes:
        rows = [{"level": level, "index": index, "hash": hash_} for (level, index), hash_ in nodes]
        session.execute(sa.insert(AuditNode), rows)
    _sign(session, vault, range_, public_url=public_url)
    notify(session, CHANNEL, GROWN)
    return len(placed)


def _sign(session: Session, vault: Vault, range_: CompactRange, *, public_url: str) -> None:
    origin = keys.ensure(session, vault, public_url=public_url).name
    checkpoint = Checkpoint(origin, range_.size, range_.root())
    note = sign(checkpoint, keys.signers(session, vault))
    session.add(AuditCheckpoint(size=checkpoint.size, root=checkpoint.root, note=note))
    session.flush()
