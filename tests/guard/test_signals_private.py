"""Private matching: the function is RFC 9497's, and who asks learns of nothing but what both hold."""

from hashlib import sha512

import pytest
import rbcl
from hypothesis import given, settings
from hypothesis import strategies as st
from signal_houses import text

from stillhouse.errors import UsageError
from stillhouse.guard.signals import private, sketch_of

# RFC 9497, appendix A.1.1: OPRF(ristretto255, SHA-512), base mode
KEY = "5ebcea5ee37023ccb9fc2d2019f9d7737be85591ae8652ffa9ef0f4d37063b0e"
BLIND = "64d37aed22a27f5191de1c1d69fadb899d8862b58eb4220029e036ec4c1f6706"
VECTORS = [
    (
        "00",
        "609a0ae68c15a3cf6903766461307e5c8bb2f95e7e6550e1ffa2dc99e412803c",
        "7ec6578ae5120958eb2db1745758ff379e77cb64fe77b0b2d8cc917ea0869c7e",
        "527759c3d9366f277d8c6020418d96bb393ba2afb20ff90df23fb7708264e2f3"
        "ab9135e3bd69955851de4b1f9fe8a0973396719b7912ba9ee8aa7d0b5e24bcf6",
    ),
    (
        "5a" * 17,
        "da27ef466870f5f15296299850aa088629945a17d1f5b7f5ff043f76b3c06418",
        "b4cbf5a4f1eeda5a63ce7b77c7d23f461db3fcab0dd28e4e17cecb5c90d02c25",
        "f4a74c9c592497375e796aa837e907b1a045d34306a749db9f34221f7e750cb4"
        "f2a6413a6bf6fa5e19ba6348eb673934a722a7ede2e7621306d18951e7cf2c73",
    ),
]


@pytest.mark.parametrize(("item", "blinded", "answer", "output"), VECTORS)
def test_the_vectors_of_the_rfc(item, blinded, answer, output):
    item, scalar, key = bytes.fromhex(item), bytes.fromhex(BLIND), bytes.fromhex(KEY)
    assert private.blind(item, scalar).hex() == blinded
    assert private.evaluate(key, [bytes.fromhex(blinded)])[0].hex() == answer
    assert private.finish(item, scalar, bytes.fromhex(answer)).hex() == output
    assert private.output_of(key, item).hex() == output


def test_who_asks_learns_what_both_hold_and_no_more():
    key = private.new_key()
    held = sketch_of([text(1)])
    known = private.filter_of({private.output_of(key, band) for band in private.bands(held)})
    for sketch, least, most in (
        (held, 40, 64),
        (sketch_of([text(1), text(2, 200)]), 8, 40),
        (sketch_of([text(3)]), 0, 0),
    ):
        items = private.bands(sketch)
        scalars = [private.new_key() for _ in items]
        asked = [private.blind(*each) for each in zip(items, scalars, strict=True)]
        answers = private.evaluate(key, asked)
        outputs = [private.finish(*each) for each in zip(items, scalars, answers, strict=True)]
        assert least <= sum(output in known for output in outputs) <= most
        assert not any(sha512(item).digest() in known for item in items)  # no key, no use
    # The same item is never asked in the same words
    assert private.blind(b"x", private.new_key()) != private.blind(b"x", private.new_key())


def test_a_filter_takes_few_others_for_its_own():
    made = private.filter_of((n.to_bytes(64) for n in ()), 1e-3)
    assert rbcl.crypto_core_ristretto255_random() not in made
    key = private.new_key()
    outputs = [private.output_of(key, b"%d" % n) for n in range(600)]
    made = private.filter_of(outputs[:300], 1e-2)
    assert all(output in made for output in outputs[:300])
    assert sum(output in made for output in outputs[300:]) <= 12
    assert private.read_filter(made.bits, made.hashes) == made


@given(st.lists(st.binary(max_size=40), max_size=5))
@settings(max_examples=50, deadline=None)
def test_what_is_no_point_is_never_evaluated(asked):
    if asked and all(
        len(each) == 32 and rbcl.crypto_core_ristretto255_is_valid_point(each) for each in asked
    ):
        return
    with pytest.raises(UsageError, match="no such question"):
        private.evaluate(private.new_key(), asked)


def test_zero_too_many_and_a_full_filter_are_refused():
    with pytest.raises(UsageError):
        private.evaluate(private.new_key(), [bytes(32)])
    with pytest.raises(UsageError):
        private.evaluate(private.new_key(), [bytes.fromhex(VECTORS[0][1])] * (private.MOST_ASKED + 1))
    with pytest.raises(UsageError):
        private.read_filter(b"\xff" * 100, 10)
    with pytest.raises(UsageError):
        private.finish(b"x", private.new_key(), bytes(32))
