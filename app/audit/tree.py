"""The stored tree: its hashes, its checkpoints and the proofs from them. Nothing here writes."""

from __future__ import annotations

from collections.abc import Iterable, Sequence

import sqlalchemy as sa
from sqlalchemy.orm import Session

from app.audit import merkle
from app.audit.merkle import Node, Span
from app.audit.models import AuditCheckpoint, AuditEntry, AuditNode


def latest(session: Session) -> AuditCheckpoint | None:
    """The newest checkpoint; None while the log is empty."""
    return session.scalar(sa.select(AuditCheckpoint).order_by(AuditCheckpoint.size.desc()).limit(1))


def checkpoint_of(session: Session, size: int) -> AuditCheckpoint | None:
    """The checkpoint of one size, if the tree was ever shown at it."""
    return session.get(AuditCheckpoint, size)


def checkpoint_over(session: Session, index: int) -> AuditCheckpoint | None:
    """The first checkpoint that covers a leaf."""
    return session.scalar(
        sa.select(AuditCheckpoint).where(AuditCheckpoint.size > index).order_by(AuditCheckpoint.size).limit(1)
    )


def inclusion_proof(session: Session, *, index: int, size: int) -> list[bytes]:
    """The path from a leaf to the root of the tree of `size` leaves; raises ValueError."""
    return _proof(session, merkle.inclusion_spans(index, size))


def consistency_proof(session: Session, *, first: int, second: int) -> list[bytes]:
    """That the tree of `second` leaves begins with that of `first`; raises ValueError."""
    return _proof(session, merkle.consistency_spans(first, second))


def leaf(session: Session, index: int) -> bytes:
    """The hash of the leaf at `index`; raises KeyError where there is none."""
    return _hashes(session, [(0, index)])[0, index]


def whole_nodes(session: Session, size: int) -> list[bytes]:
    """The hashes of the largest whole subtrees of a tree: what appending goes on from."""
    nodes = merkle.span(0, size)
    found = _hashes(session, nodes)
    return [found[node] for node in nodes]


def _proof(session: Session, spans: Sequence[Span]) -> list[bytes]:
    found = _hashes(session, [node for one in spans for node in one])
    return merkle.proof(spans, found.__getitem__)


def _hashes(session: Session, nodes: Iterable[Node]) -> dict[Node, bytes]:
    """The hashes of whole nodes, leaves included; raises KeyError for one that is not there."""
    wanted = list(nodes)
    leaves = sa.select(AuditEntry.leaf_index, AuditEntry.leaf_hash).where(
        AuditEntry.leaf_index.in_([index for level, index in wanted if level == 0])
    )
    above = sa.select(AuditNode.level, AuditNode.index, AuditNode.hash).where(
        sa.tuple_(AuditNode.level, AuditNode.index).in_([node for node in wanted if node[0] > 0])
    )
    found = {(0, index or 0): hash_ for index, hash_ in session.execute(leaves)}
    found |= {(level, index): hash_ for level, index, hash_ in session.execute(above)}
    if missing := [node for node in wanted if node not in found]:
        raise KeyError(f"the stored tree lacks {missing}")
    return found
