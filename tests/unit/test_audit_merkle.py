"""The Merkle tree against RFC 9162's own definitions, and roots that Certificate Transparency published."""

import random
from collections.abc import Sequence
from hashlib import sha256

import pytest

from app.audit import merkle
from app.audit.merkle import CompactRange, consistency_spans, fold, inclusion_spans, leaf_hash, span

# merkletree tests of github.com/google/certificate-transparency: leaves and the roots over the first 1 to 8.
ENTRIES = [
    bytes.fromhex(text)
    for text in (
        "",
        "00",
        "10",
        "2021",
        "3031",
        "40414243",
        "5051525354555657",
        "606162636465666768696a6b6c6d6e6f",
    )
]
ROOTS = (
    "6e340b9cffb37a989ca544e6bb780a2c78901d3fb33738768511a30617afa01d",
    "fac54203e7cc696cf0dfcb42c92a1d9dbaf70ad9e621f4bd8d98662f00e3c125",
    "aeb6bcfe274b70a14fb067a5e5578264db0fa9b51af5e0ba159158f329e06e77",
    "d37ee418976dd95753c1c73862b9398fa2a2cf9b4ff0fdfe8b30cd95209614b7",
    "4e3bbb1f7b478dcfe71fb631631519a3bca12c9aefca1612bfce4c13a86264d4",
    "76e67dadbcdf1e10e1b74ddc608abd2f98dfb16fbce75277b5232a127f2087ef",
    "ddb89be403809e325750d3d263cd78929c2942b7942a34b77e122c9594a74c8c",
    "5dc9da79a70659a9ad559cb701ded9a2ab9d823aad2f4960cfe370eff4604328",
)
LARGEST = 40
LEAVES = [leaf_hash(bytes([number])) for number in range(LARGEST)]


def mth(leaves: Sequence[bytes]) -> bytes:
    """RFC 9162, 2.1.1, as it is written, over leaf hashes."""
    if not leaves:
        return sha256(b"").digest()
    if len(leaves) == 1:
        return leaves[0]
    k = split(len(leaves))
    return sha256(b"\x01" + mth(leaves[:k]) + mth(leaves[k:])).digest()


def path(m: int, leaves: Sequence[bytes]) -> list[bytes]:
    """RFC 9162, 2.1.3.1."""
    if len(leaves) == 1:
        return []
    k = split(len(leaves))
    if m < k:
        return [*path(m, leaves[:k]), mth(leaves[k:])]
    return [*path(m - k, leaves[k:]), mth(leaves[:k])]


def subproof(m: int, leaves: Sequence[bytes], *, whole: bool = True) -> list[bytes]:
    """RFC 9162, 2.1.4.1."""
    if m == len(leaves):
        return [] if whole else [mth(leaves)]
    k = split(len(leaves))
    if m <= k:
        return [*subproof(m, leaves[:k], whole=whole), mth(leaves[k:])]
    return [*subproof(m - k, leaves[k:], whole=False), mth(leaves[:k])]


def split(size: int) -> int:
    k = 1
    while k * 2 < size:
        k *= 2
    return k


def grown(leaves: Sequence[bytes]) -> tuple[CompactRange, dict[merkle.Node, bytes]]:
    range_, nodes = CompactRange(), {(0, index): leaf for index, leaf in enumerate(leaves)}
    for leaf in leaves:
        nodes.update(range_.append(leaf))
    return range_, nodes


def test_the_published_roots_come_out() -> None:
    leaves = [leaf_hash(entry) for entry in ENTRIES]
    assert [merkle.root_of(leaves[:size]).hex() for size in range(1, 9)] == list(ROOTS)
    assert merkle.root_of([]).hex() == sha256().hexdigest()


@pytest.mark.parametrize("size", range(1, LARGEST + 1))
def test_roots_and_proofs_are_those_of_the_rfc_and_hold(size: int) -> None:
    leaves = LEAVES[:size]
    range_, nodes = grown(leaves)
    root = mth(leaves)
    assert range_.root() == root
    for index, leaf in enumerate(leaves):
        proof = merkle.proof(inclusion_spans(index, size), nodes.__getitem__)
        assert proof == path(index, leaves)
        assert merkle.includes(leaf=leaf, index=index, size=size, path=proof, root=root)
    for first in range(1, size + 1):
        proof = merkle.proof(consistency_spans(first, size), nodes.__getitem__)
        assert proof == subproof(first, leaves)
        ends = {"first_root": mth(leaves[:first]), "second_root": root}
        assert merkle.grew(first=first, second=size, path=proof, **ends)


@pytest.mark.parametrize("size", range(LARGEST))
def test_a_tree_goes_on_from_its_whole_subtrees(size: int) -> None:
    _range, nodes = grown(LEAVES[:size])
    range_ = CompactRange(size, [nodes[node] for node in span(0, size)])
    for index, leaf in enumerate(LEAVES[size:], start=size):
        nodes[0, index] = leaf
        nodes.update(range_.append(leaf))
    assert range_.root() == mth(LEAVES)
    assert nodes == grown(LEAVES)[1]


def test_a_tree_of_another_number_of_subtrees_is_refused() -> None:
    with pytest.raises(ValueError, match="whole subtrees"):
        CompactRange(5, [LEAVES[0]])


@pytest.mark.parametrize(("index", "size"), [(0, 0), (1, 1), (-1, 4), (4, 4)])
def test_no_proof_is_asked_for_a_leaf_that_is_not_there(index: int, size: int) -> None:
    with pytest.raises(ValueError, match="has no leaf"):
        inclusion_spans(index, size)
    assert not merkle.includes(leaf=LEAVES[0], index=index, size=size, path=[], root=LEAVES[0])


@pytest.mark.parametrize(("first", "second"), [(0, 4), (5, 4), (-1, 4)])
def test_no_tree_grows_backwards_or_from_nothing(first: int, second: int) -> None:
    with pytest.raises(ValueError, match="grows to"):
        consistency_spans(first, second)
    ends = {"first_root": LEAVES[0], "second_root": LEAVES[0]}
    assert not merkle.grew(first=first, second=second, path=[], **ends)


def spoilt(proof: list[bytes], chance: random.Random) -> list[list[bytes]]:
    """The proof with one thing wrong: a bit, a hash too many, one too few, two changed places."""
    found = [[*proof, LEAVES[0]], [LEAVES[0], *proof]]
    for at, one in enumerate(proof):
        bit = 1 << chance.randrange(256)
        wrong = (int.from_bytes(one) ^ bit).to_bytes(32)
        found += [[*proof[:at], wrong, *proof[at + 1 :]], [*proof[:at], *proof[at + 1 :]]]
    if len(proof) > 1:
        found.append([proof[1], proof[0], *proof[2:]])
    return found


def test_a_proof_with_anything_wrong_in_it_is_refused() -> None:
    chance = random.Random(9162)
    _range, nodes = grown(LEAVES)
    for size in (1, 2, 3, 5, 8, 13, 32, 40):
        leaves, root = LEAVES[:size], mth(LEAVES[:size])
        for index, leaf in enumerate(leaves):
            proof = merkle.proof(inclusion_spans(index, size), nodes.__getitem__)
            at = {"index": index, "size": size}
            for wrong in spoilt(proof, chance):
                assert not merkle.includes(leaf=leaf, path=wrong, root=root, **at)
            assert not merkle.includes(leaf=leaf, path=proof, root=sha256(root).digest(), **at)
            for other in range(size):
                if other != index:
                    terms = {"index": other, "size": size, "path": proof, "root": root}
                    assert not merkle.includes(leaf=leaf, **terms)
        for first in range(1, size + 1):
            proof = merkle.proof(consistency_spans(first, size), nodes.__getitem__)
            ends = {"first_root": mth(leaves[:first]), "second_root": root}
            for wrong in spoilt(proof, chance):
                assert not merkle.grew(first=first, second=size, path=wrong, **ends)
            for end in ends:
                other = ends | {end: sha256(root).digest()}
                assert not merkle.grew(first=first, second=size, path=proof, **other)


def test_a_subtree_folds_as_the_rfc_hashes_it() -> None:
    _range, nodes = grown(LEAVES)
    for start, end in ((0, 40), (32, 40), (32, 39), (16, 23)):
        assert fold([nodes[node] for node in span(start, end)]) == mth(LEAVES[start:end])
