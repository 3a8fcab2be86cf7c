"""The Merkle tree of RFC 9162, section 2.1: hashes, proofs and their verification. No storage, no clock.

A node (level, index) is the hash over the 2^level leaves from leaf index * 2^level on. Only whole ones are
stored; the ragged right edge of a tree is folded from them.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable, Iterator, Sequence
from hashlib import sha256

Node = tuple[int, int]
"""(level, index)."""
Span = tuple[Node, ...]
"""The whole nodes that make up a range of leaves, from left to right."""
Lookup = Callable[[Node], bytes]

HASH_BYTES = 32
EMPTY_ROOT = sha256().digest()


def leaf_hash(entry: bytes) -> bytes:
    """SHA-256(0x00 | entry)."""
    return sha256(b"\x00" + entry).digest()


def node_hash(left: bytes, right: bytes) -> bytes:
    """SHA-256(0x01 | left | right)."""
    return sha256(b"\x01" + left + right).digest()


class CompactRange:
    """A tree of `size` leaves, as the hashes of its largest whole subtrees: what appending needs, no more."""

    def __init__(self, size: int = 0, hashes: Sequence[bytes] = ()) -> None:
        """Go on from a tree of `size` leaves, whose `span(0, size)` has these hashes; raises ValueError."""
        if len(hashes) != size.bit_count():
            raise ValueError(f"a tree of {size} leaves has {size.bit_count()} whole subtrees")
        self.size = size
        self._hashes = list(hashes)

    def append(self, leaf: bytes) -> Iterator[tuple[Node, bytes]]:
        """Add a leaf by its hash; yields each node above it that is whole by now, lowest first."""
        self._hashes.append(leaf)
        index, level = self.size, 0
        self.size += 1
        while index & 1:
            right, left = self._hashes.pop(), self._hashes.pop()
            self._hashes.append(node_hash(left, right))
            index, level = index >> 1, level + 1
            yield (level, index), self._hashes[-1]

    def add(self, leaf: bytes) -> None:
        """The same, for whoever needs the root alone."""
        for _node in self.append(leaf):
            pass

    def root(self) -> bytes:
        """The hash of the whole tree."""
        return fold(self._hashes) if self._hashes else EMPTY_ROOT


def root_of(leaves: Iterable[bytes]) -> bytes:
    """The root over leaf hashes, in memory that grows with the logarithm of their number."""
    tree = CompactRange()
    for leaf in leaves:
        tree.add(leaf)
    return tree.root()


def fold(hashes: Sequence[bytes]) -> bytes:
    """The hash over adjacent whole subtrees, from left to right each smaller than the one before."""
    found = hashes[-1]
    for left in reversed(hashes[:-1]):
        found = node_hash(left, found)
    return found


def span(start: int, end: int) -> Span:
    """The whole nodes over the leaves [start, end). `start` must be a multiple of the largest one's width."""
    nodes, at = [], start
    while at < end:
        level = (end - at).bit_length() - 1
        nodes.append((level, at >> level))
        at += 1 << level
    return tuple(nodes)


def inclusion_spans(index: int, size: int) -> list[Span]:
    """What the inclusion proof of a leaf consists of (RFC 9162, 2.1.3.1); raises ValueError."""
    if not 0 <= index < size:
        raise ValueError(f"a tree of {size} leaves has no leaf {index}")
    found, start, end = [], 0, size
    while end - start > 1:
        middle = start + _split(end - start)
        if index < middle:
            found.append(span(middle, end))
            end = middle
        else:
            found.append(span(start, middle))
            start = middle
    return found[::-1]


def consistency_spans(first: int, second: int) -> list[Span]:
    """What the proof consists of that a tree of `first` leaves grew to `second` (2.1.4.1); ValueError."""
    if not 0 < first <= second:
        raise ValueError(f"no tree of {first} leaves grows to {second}")
    found, start, end, whole = [], 0, second, True
    while first != end:
        middle = start + _split(end - start)
        if first <= middle:
            found.append(span(middle, end))
            end = middle
        else:
            found.append(span(start, middle))
            start, whole = middle, False
    if not whole:
        found.append(span(start, end))
    return found[::-1]


def proof(spans: Iterable[Span], lookup: Lookup) -> list[bytes]:
    """The hashes of a proof, from those of whole nodes."""
    return [fold([lookup(node) for node in one]) for one in spans]


def includes(*, leaf: bytes, index: int, size: int, path: Sequence[bytes], root: bytes) -> bool:
    """Say whether `path` proves the leaf (its hash) at `index` in the tree (RFC 9162, 2.1.3.2)."""
    if not 0 <= index < size:
        return False
    at, last, found = index, size - 1, leaf
    for one in path:
        if last == 0:
            return False
        if at & 1 or at == last:
            found = node_hash(one, found)
            while at & 1 == 0 and at != 0:
                at, last = at >> 1, last >> 1
        else:
            found = node_hash(found, one)
        at, last = at >> 1, last >> 1
    return last == 0 and found == root


def grew(*, first: int, second: int, path: Sequence[bytes], first_root: bytes, second_root: bytes) -> bool:
    """Say whether `path` proves that the second tree begins with the whole first one (2.1.4.2)."""
    if not 0 < first <= second:
        return False
    if first == second:
        return not path and first_root == second_root
    hashes = list(path)
    if first & (first - 1) == 0:
        hashes.insert(0, first_root)
    if not hashes:
        return False
    at, last = first - 1, second - 1
    while at & 1:
        at, last = at >> 1, last >> 1
    former = later = hashes[0]
    for one in hashes[1:]:
        if last == 0:
            return False
        if at & 1 or at == last:
            former, later = node_hash(one, former), node_hash(one, later)
            while at & 1 == 0 and at != 0:
                at, last = at >> 1, last >> 1
        else:
            later = node_hash(later, one)
        at, last = at >> 1, last >> 1
    return last == 0 and (former, later) == (first_root, second_root)


def _split(width: int) -> int:
    """The largest power of two below `width`."""
    return 1 << ((width - 1).bit_length() - 1)
