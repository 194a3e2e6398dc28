"""The schemes, seen from the side of detection: what a token scores under a key, and how likely a total is.

Every scheme turns a context of `width` ids and the id after it into 64 bits that look drawn at random to
whoever lacks the key, and prefers ids by them. So on a text that was written without the key the scores of
*distinct* pairs are independent and their law is known exactly; a pair that occurs twice scores the same
twice, and is counted once. Chance lies in the key: for one text, over keys drawn at random.
"""

from __future__ import annotations

import math
from collections.abc import Mapping
from dataclasses import asdict, dataclass
from typing import Any, ClassVar, Protocol

import numpy as np

from stillhouse.errors import UsageError
from stillhouse.stats.intervals import Floats
from stillhouse.stats.tails import log_binomial_tail, log_gamma_tail, log_weighted_tail
from stillhouse.watermark.hashing import Hashes, Ids, SipKey, seeds, siphash, uniform, values

_OCTETS = np.arange(256)[:, None] >> np.arange(7, -1, -1) & 1  # the bits of every octet, the highest first


class Scheme(Protocol):
    """`bits` and `scores`, and what a sum of scores says."""

    name: ClassVar[str]

    @property
    def width(self) -> int:
        """Ids of context that a mark depends on."""

    def bits(self, key: SipKey, ids: Ids, tokens: Ids) -> Hashes:
        """What each of `tokens` (T - width,) is scored by where it stands after `width` of `ids` (T,). Equal
        bits are one observation."""

    def scores(self, bits: Hashes) -> Floats:
        """Higher where the scheme would have preferred the token."""

    def log_p(self, total: float, count: int) -> float:
        """ln of the chance that so many scores sum to `total` or more without the key."""

    def expected(self) -> float:
        """A score's mean without the key."""


@dataclass(frozen=True, slots=True)
class Kgw:
    """A green share of the ids gets `bias` added to its logits (Kirchenbauer et al. 2023, arXiv:2301.10226).

    Each id is green by a draw of its own, so that the count of green ones is exactly binomial. With
    `self_hash` an id is judged after the one of its `width` predecessors with which it hashes lowest (as
    algorithm 3 there; 2023b, arXiv:2306.04634): an edit elsewhere leaves it alone, and the pair that decided
    is what counts once.
    """

    name: ClassVar[str] = "kgw"
    width: int = 4
    share: float = 0.25
    bias: float = 2.0
    self_hash: bool = False

    def bits(self, key: SipKey, ids: Ids, tokens: Ids) -> Hashes:
        if not self.self_hash:
            return _paired(key, ids, tokens, self.width)
        alone = siphash(key, [ids.astype(np.uint64)])
        places, wanted = len(tokens), tokens.astype(np.uint64)
        lowest = values(alone[:places], wanted)
        for start in range(1, self.width):
            np.minimum(lowest, values(alone[start : start + places], wanted), out=lowest)
        return lowest

    def scores(self, bits: Hashes) -> Floats:
        judged = values(bits, np.zeros(1, dtype=np.uint64)) if self.self_hash else bits
        return (uniform(judged) < self.share).astype(np.float64)

    def log_p(self, total: float, count: int) -> float:
        return float(log_binomial_tail(total, count, self.share))

    def expected(self) -> float:
        return self.share


@dataclass(frozen=True, slots=True)
class _Exponential:
    """Scores are -ln(1 - u), u the keyed number of a pair; their sum is a Gamma variable."""

    width: int

    def bits(self, key: SipKey, ids: Ids, tokens: Ids) -> Hashes:
        return _paired(key, ids, tokens, self.width)

    def scores(self, bits: Hashes) -> Floats:
        return -np.log1p(-uniform(bits))

    def log_p(self, total: float, count: int) -> float:
        return float(log_gamma_tail(total, count))

    def expected(self) -> float:
        return 1.0


@dataclass(frozen=True, slots=True)
class Gumbel(_Exponential):
    """The id is the one with the largest u^(1/p), u its keyed number and p its probability (Aaronson 2022):
    a draw from the model's own distribution, over keys."""

    name: ClassVar[str] = "gumbel"
    width: int = 4


@dataclass(frozen=True, slots=True)
class Selection(_Exponential):
    """Of several answers the one whose own words score highest is given (as WaterMax, arXiv:2403.04808, and
    Bahri and Wieting, arXiv:2410.02099): needs no logits. Ids stand for words."""

    name: ClassVar[str] = "selection"
    width: int = 3


@dataclass(frozen=True, slots=True)
class Tournament:
    """Ids win by keyed bits through `depth` rounds, as in SynthID-Text (Dathathri et al. 2024, Nature
    634:818): the model's own distribution, over keys. An id's bits are weighted 10 for the first round down
    to 1 for the last, since later ones have less to choose from."""

    name: ClassVar[str] = "tournament"
    width: int = 4
    depth: int = 30

    def bits(self, key: SipKey, ids: Ids, tokens: Ids) -> Hashes:
        return _paired(key, ids, tokens, self.width)

    def scores(self, bits: Hashes) -> Floats:
        total = np.zeros(len(bits))
        every = self.weights()
        for start in range(0, self.depth, 8):  # eight bits at a time, by what their 256 values add up to
            weights = every[start : start + 8]
            octets = (bits >> np.uint64(56 - start)) & np.uint64(255)
            total += (_OCTETS[:, : len(weights)] @ weights)[octets.astype(np.intp)]
        return total

    def log_p(self, total: float, count: int) -> float:
        return log_weighted_tail(round(total), self.weights(), count)

    def expected(self) -> float:
        return sum(self.weights()) / 2

    def weights(self) -> list[int]:
        return [round(weight) for weight in np.linspace(10, 1, self.depth)]


SCHEMES: dict[str, type[Kgw] | type[Gumbel] | type[Tournament] | type[Selection]] = {
    scheme.name: scheme for scheme in (Kgw, Gumbel, Tournament, Selection)
}


def marks_greedy(scheme: Scheme) -> bool:
    """Whether an answer at temperature 0 bears the mark: only where logits are raised. The others choose
    among what may be sampled, and then that is one id."""
    return isinstance(scheme, Kgw)


def described(scheme: Scheme) -> dict[str, Any]:
    """Name and settings, as JSON holds them."""
    return {"name": scheme.name, **asdict(scheme)}  # type: ignore[call-overload]


def read_scheme(row: Mapping[str, Any]) -> Scheme:
    """The scheme that `described` wrote. Raises UsageError for one that is not known here."""
    name = row.get("name")
    settings = {key: value for key, value in row.items() if key != "name"}
    try:
        made = SCHEMES[str(name)](**settings)
    except (KeyError, TypeError) as error:
        raise UsageError(
            f"no watermark scheme {name!r} with {', '.join(settings) or 'no settings'}",
            str(error),
            f"schemes: {', '.join(SCHEMES)}",
        ) from error
    return _checked(made)


def _checked(scheme: Kgw | Gumbel | Tournament | Selection) -> Scheme:
    wrong = "" if scheme.width >= 1 else "the width is at least 1"
    if isinstance(scheme, Kgw) and not (0 < scheme.share < 1 and math.isfinite(scheme.bias)):
        wrong = "the share of green ids lies between 0 and 1, and the bias is a number"
    if isinstance(scheme, Tournament) and not 1 <= scheme.depth <= 64:
        wrong = "a tournament has 1 to 64 rounds"
    if wrong:
        raise UsageError(f"the watermark's settings make no sense: {scheme}", wrong, "correct the key's file")
    return scheme


def _paired(key: SipKey, ids: Ids, tokens: Ids, width: int) -> Hashes:
    return values(seeds(key, ids, width), tokens.astype(np.uint64))
