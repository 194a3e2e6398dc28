"""Golden roots from the certificate-transparency reference tests; the rest against RFC 6962 word by word."""

from hashlib import sha256

import pytest
from hypothesis import given
from hypothesis import strategies as st

from stillhouse.ledger import merkle

INPUTS = [
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
ROOTS = [
    "e3b0c44298fc1c149afbf4c8996fb92427ae41e4649b934ca495991b7852b855",
    "6e340b9cffb37a989ca544e6bb780a2c78901d3fb33738768511a30617afa01d",
    "fac54203e7cc696cf0dfcb42c92a1d9dbaf70ad9e621f4bd8d98662f00e3c125",
    "aeb6bcfe274b70a14fb067a5e5578264db0fa9b51af5e0ba159158f329e06e77",
    "d37ee418976dd95753c1c73862b9398fa2a2cf9b4ff0fdfe8b30cd95209614b7",
    "4e3bbb1f7b478dcfe71fb631631519a3bca12c9aefca1612bfce4c13a86264d4",
    "76e67dadbcdf1e10e1b74ddc608abd2f98dfb16fbce75277b5232a127f2087ef",
    "ddb89be403809e325750d3d263cd78929c2942b7942a34b77e122c9594a74c8c",
    "5dc9da79a70659a9ad559cb701ded9a2ab9d823aad2f4960cfe370eff4604328",
]


def naive_root(hashes):
    if not hashes:
        return sha256(b"").digest()
    if len(hashes) == 1:
        return hashes[0]
    k = 1
    while k * 2 < len(hashes):
        k *= 2
    return sha256(b"\x01" + naive_root(hashes[:k]) + naive_root(hashes[k:])).digest()


def naive_path(m, hashes):
    if len(hashes) == 1:
        return []
    k = 1
    while k * 2 < len(hashes):
        k *= 2
    if m < k:
        return [*naive_path(m, hashes[:k]), naive_root(hashes[k:])]
    return [*naive_path(m - k, hashes[k:]), naive_root(hashes[:k])]


def naive_subproof(m, hashes, whole):
    if m == len(hashes):
        return [] if whole else [naive_root(hashes)]
    k = 1
    while k * 2 < len(hashes):
        k *= 2
    if m <= k:
        return [*naive_subproof(m, hashes[:k], whole), naive_root(hashes[k:])]
    return [*naive_subproof(m - k, hashes[k:], False), naive_root(hashes[:k])]


def hashes_of(size):
    return [merkle.leaf_hash(str(i).encode()) for i in range(size)]


def nodes_of(hashes):
    return lambda level, index: merkle.root_of(hashes[index << level : (index + 1) << level])


@pytest.mark.parametrize("size", range(9))
def test_roots_are_those_of_the_reference_vectors(size):
    hashes = [merkle.leaf_hash(data) for data in INPUTS[:size]]
    frontier = []
    for index, digest in enumerate(hashes):
        merkle.push(frontier, index, digest)
    assert merkle.root_of(hashes).hex() == ROOTS[size]
    assert merkle.fold(frontier).hex() == ROOTS[size]
    assert merkle.range_root(nodes_of(hashes), 0, size).hex() == ROOTS[size]


def test_reference_proofs():
    """PATH and PROOF values published with the same vectors."""
    nodes = nodes_of([merkle.leaf_hash(data) for data in INPUTS])
    assert [step.hex() for step in merkle.inclusion_proof(nodes, 5, 8)] == [
        "bc1a0643b12e4d2d7c77918f44e0f4f79a838b6cf9ec5b5c283e1f4d88599e6b",
        "ca854ea128ed050b41b35ffc1b87b8eb2bde461e9e3b5596ece6b9d5975a0ae0",
        "d37ee418976dd95753c1c73862b9398fa2a2cf9b4ff0fdfe8b30cd95209614b7",
    ]
    assert [step.hex() for step in merkle.consistency_proof(nodes, 6, 8)] == [
        "0ebc5d3437fbe2db158b9f126a1d118e308181031d0a949f8dededebc558ef6a",
        "ca854ea128ed050b41b35ffc1b87b8eb2bde461e9e3b5596ece6b9d5975a0ae0",
        "d37ee418976dd95753c1c73862b9398fa2a2cf9b4ff0fdfe8b30cd95209614b7",
    ]


@given(st.integers(0, 70))
def test_every_way_to_a_root_agrees_with_the_recursive_definition(size):
    hashes, frontier = hashes_of(size), []
    for index, digest in enumerate(hashes):
        merkle.push(frontier, index, digest)
    assert merkle.root_of(hashes) == merkle.fold(frontier) == naive_root(hashes)


@given(st.data())
def test_inclusion_proofs_are_the_rfc_paths_and_hold_for_their_leaf_only(data):
    size = data.draw(st.integers(1, 70))
    index = data.draw(st.integers(0, size - 1))
    hashes = hashes_of(size)
    proof = merkle.inclusion_proof(nodes_of(hashes), index, size)
    assert proof == naive_path(index, hashes)
    root = naive_root(hashes)
    assert merkle.verify_inclusion(proof, index, size, hashes[index], root)
    assert not merkle.verify_inclusion(proof, index, size, merkle.leaf_hash(b"other"), root)
    assert not merkle.verify_inclusion([*proof, root], index, size, hashes[index], root)
    other = data.draw(st.integers(0, size - 1))
    if other != index:
        assert not merkle.verify_inclusion(proof, other, size, hashes[index], root)


@given(st.data())
def test_consistency_proofs_are_the_rfc_ones_and_show_a_changed_history(data):
    second = data.draw(st.integers(1, 70))
    first = data.draw(st.integers(1, second))
    hashes = hashes_of(second)
    proof = merkle.consistency_proof(nodes_of(hashes), first, second)
    old, new = naive_root(hashes[:first]), naive_root(hashes)
    assert proof == naive_subproof(first, hashes, True)
    assert merkle.verify_consistency(proof, first, second, old, new)
    assert not merkle.verify_consistency(proof, first, second, merkle.leaf_hash(b"x"), new)
    assert not merkle.verify_consistency([*proof, new], first, second, old, new)
    edited = [merkle.leaf_hash(b"edited"), *hashes[1:]]
    rewritten = merkle.consistency_proof(nodes_of(edited), first, second)
    assert not merkle.verify_consistency(rewritten, first, second, old, naive_root(edited))


def test_a_proof_for_a_leaf_outside_the_tree_is_refused():
    with pytest.raises(ValueError, match="not in a tree"):
        merkle.inclusion_proof(nodes_of(hashes_of(3)), 3, 3)
    assert not merkle.verify_inclusion([], 3, 3, b"", b"")
