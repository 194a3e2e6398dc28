"""Private matching: who asks learns which of its items the other holds, the other how many there are.

The items are bands of a sketch: pairs of slots with their whole values. The holder gives out a Bloom filter
(Bloom 1970) over F(key, item) for its items, where F is the oblivious pseudo-random function
OPRF(ristretto255, SHA-512) of RFC 9497 in its base mode; who asks has it evaluated on blinded items. Without
the holder's key the filter tells nothing, so that nobody can guess at home: each guess is a question, and the
holder counts them.
"""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from hashlib import sha512, shake_256
from math import ceil, log

from stillhouse.errors import UsageError
from stillhouse.guard.signals.sketch import EMPTY, SLOTS

try:
    import rbcl
except ModuleNotFoundError as missing:
    raise UsageError(
        "rbcl is not installed", "feeds of signals need it", "pip install 'stillhouse[signals]'"
    ) from missing

MOST_ASKED = 1024  # blinded elements in a question: 16 sketches
_CONTEXT = b"OPRFV1-\x00-ristretto255-SHA512"
_BLOCK, _DIGEST, _ELEMENT = 128, 64, 32
_MOST_BYTES = 1 << 20


@dataclass(frozen=True, slots=True)
class Filter:
    """A Bloom filter: `hashes` bits of `bits` for each item."""

    bits: bytes
    hashes: int

    def __contains__(self, output: bytes) -> bool:
        return all(self.bits[at >> 3] >> (at & 7) & 1 for at in _places(output, self.hashes, len(self.bits)))


def bands(sketch: Sequence[int]) -> list[bytes]:
    """The items of a sketch, at most 64: two that share a third of their slots share 7 of them."""
    pairs = ((n, sketch[n], sketch[n + 1]) for n in range(0, SLOTS, 2))
    return [b"%d %d %d" % pair for pair in pairs if EMPTY not in pair[1:]]


def filter_of(outputs: Iterable[bytes], false_share: float = 1e-6) -> Filter:
    """A filter that takes this share of all else for its own."""
    outputs = list(outputs)
    size = ceil(max(len(outputs), 1) * -log(false_share) / log(2) ** 2 / 8)
    hashes = max(1, round(size * 8 / max(len(outputs), 1) * log(2)))
    bits = bytearray(size)
    for output in outputs:
        for at in _places(output, min(hashes, 30), size):
            bits[at >> 3] |= 1 << (at & 7)
    return Filter(bytes(bits), min(hashes, 30))


def read_filter(bits: bytes, hashes: int) -> Filter:
    """Raises UsageError for what `filter_of` does not make. A filter that is mostly full would match all."""
    ones = int.from_bytes(bits).bit_count()
    if not 0 < len(bits) <= _MOST_BYTES or not 1 <= hashes <= 30 or ones > 0.6 * 8 * len(bits):
        raise UsageError("this is no filter of signals", "it is too large, or too full", "ask for it again")
    return Filter(bits, hashes)


def new_key() -> bytes:
    return bytes(rbcl.crypto_core_ristretto255_scalar_random())


def blind(item: bytes, scalar: bytes) -> bytes:
    """What is sent of an item; `scalar` is `new_key()`, once for each, and is kept for `finish`."""
    return bytes(rbcl.crypto_scalarmult_ristretto255(scalar, _point(item)))


def evaluate(key: bytes, asked: Sequence[bytes]) -> list[bytes]:
    """The holder's answer, which tells it nothing of the items. Raises UsageError for what is no question."""
    if not 0 < len(asked) <= MOST_ASKED:
        raise UsageError(
            "no such question", f"it has {len(asked)} elements of at most {MOST_ASKED}", "ask in parts"
        )
    for element in asked:
        if not _is_element(element):
            raise UsageError("no such question", "an element is no point of ristretto255", "ask again")
    return [bytes(rbcl.crypto_scalarmult_ristretto255(key, element)) for element in asked]


def finish(item: bytes, scalar: bytes, answer: bytes) -> bytes:
    """F(key, item), 64 bytes. Raises UsageError for an answer that is none."""
    if not _is_element(answer):
        raise UsageError("no such answer", "it is no point of ristretto255", "ask again")
    inverse = rbcl.crypto_core_ristretto255_scalar_invert(scalar)
    return _output(item, bytes(rbcl.crypto_scalarmult_ristretto255(inverse, answer)))


def output_of(key: bytes, item: bytes) -> bytes:
    """F(key, item) as the holder has it, without asking."""
    return _output(item, bytes(rbcl.crypto_scalarmult_ristretto255(key, _point(item))))


def _point(item: bytes) -> bytes:
    uniform = _expanded(item, b"HashToGroup-" + _CONTEXT)
    return bytes(rbcl.crypto_core_ristretto255_from_hash(uniform))


def _output(item: bytes, element: bytes) -> bytes:
    parts = len(item).to_bytes(2), item, len(element).to_bytes(2), element, b"Finalize"
    return sha512(b"".join(parts)).digest()


def _expanded(message: bytes, domain: bytes) -> bytes:
    """64 uniform bytes: expand_message_xmd of RFC 9380, section 5.3.1, with SHA-512."""
    tail = domain + bytes([len(domain)])
    first = sha512(bytes(_BLOCK) + message + _DIGEST.to_bytes(2) + b"\x00" + tail).digest()
    return sha512(first + b"\x01" + tail).digest()


def _is_element(data: bytes) -> bool:
    zero = bytes(_ELEMENT)
    return len(data) == _ELEMENT and data != zero and bool(rbcl.crypto_core_ristretto255_is_valid_point(data))


def _places(output: bytes, hashes: int, size: int) -> list[int]:
    """Drawn one by one: of double hashing, two items with one step would share most of their places."""
    drawn = shake_256(output).digest(8 * hashes)
    return [int.from_bytes(drawn[8 * n : 8 * n + 8]) % (8 * size) for n in range(hashes)]
