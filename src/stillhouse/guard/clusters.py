"""Accounts that act as one: they send the same program's requests, and come, pause and go together.

Two kinds of evidence must meet, both from the accounts' sketches (`likeness`). Accounts are compared only where they share how or what they ask; within such a group two are linked
where their times agree as those of accounts that share nothing hardly ever do. A cluster is a part of the
group in which each account is linked to several others, and it counts only where as many links come about so
rarely among accounts drawn at random from other groups that the month's expected number of false clusters
stays below `ALARMS`. So neither the customers of one application nor those who work at the same hours are a
cluster. Addresses are not looked at.
"""

from __future__ import annotations

import math
from bisect import bisect_left, bisect_right
from collections import Counter, defaultdict
from collections.abc import Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from itertools import combinations
from random import Random
from typing import Literal

from stillhouse.guard.likeness import EMPTY, Sketch

OFTEN = 5  # requests with a setting, from which on it may join accounts
FEWEST = 12  # requests of an account that is compared
COMMON = 8  # accounts that hold the same own words, above which they are a text that goes round
PAIRS = 4_000  # of accounts that share nothing, to say what is rare
LINK = 11.0  # bits of surprise from which on two accounts are linked
QUESTIONS = 5.0  # of these at most by own words: when they ask has to agree as well
DEGREE, LEAST = 5, 8  # links of each account of a cluster; accounts of one
LARGEST = 700  # accounts of a group that are compared with each other; a larger one is split by day
DRAWN = 150  # accounts of a group in which its significance is looked at
ALARMS = 0.5  # false clusters a month, expected at most

Shared = Literal["settings", "wording"]


@dataclass(frozen=True, slots=True)
class Cluster:
    """Accounts that act as one. `linked` is the share of their pairs of which each is surprising by itself;
    `chance` bounds how probable so large a core is in a group of other accounts as large and as busy."""

    accounts: tuple[str, ...]
    shared: Shared
    linked: float
    chance: float


@dataclass(frozen=True, slots=True)
class Found:
    """`clusters`, largest first; how many accounts were compared in how many groups, and how many had asked
    too little or stood in a group too large to be compared."""

    clusters: tuple[Cluster, ...]
    compared: int
    groups: int
    too_few: int
    too_many: int


def clusters(sketches: Mapping[str, Sketch], draw: Random) -> Found:
    """The clusters among a month's accounts."""
    known = _accounts(sketches)
    groups, too_many = _groups(known)
    rarity = _Rarity(known, draw)
    tries = math.ceil(len(groups) / ALARMS)
    found: list[Cluster] = []
    for (shared, _), members in groups:
        core = _core(_links(members, rarity))
        if len(core) < LEAST or _told(core, found):
            continue
        chance = _chance(members, rarity, draw, tries)
        if chance * len(groups) <= ALARMS:
            found.append(_cluster(core, shared, chance, rarity))
    merged = _merged(found)
    return Found(tuple(merged), len(known), len(groups), len(sketches) - len(known), too_many)


def in_words(cluster: Cluster) -> str:
    """What joins the accounts, for the person who decides."""
    how = {
        "settings": "ask with the same model, system message and settings",
        "wording": "send the same words of a program around their texts",
    }
    return (
        f"{len(cluster.accounts)} accounts {how[cluster.shared]}; {cluster.linked:.0%} of their pairs begin, "
        f"end or work at the same times as unrelated accounts do in less than 1 of {2**LINK / LINK:,.0f} "
        f"pairs; by chance at most {cluster.chance:.2g}"
    )


Key = tuple[Shared, int]


@dataclass(frozen=True, slots=True, eq=False)
class _Account:
    """What is compared: a bit for each slot with a request; when it began, ended and turned to another model
    as shares of all accounts that did so before; own words that few others have."""

    name: str
    slots: int
    busy: int
    level: int
    began: float
    ended: float
    turned: float
    own: frozenset[int]
    keys: frozenset[Key]
    program: int


def _accounts(sketches: Mapping[str, Sketch]) -> list[_Account]:
    some = {name: sketch for name, sketch in sketches.items() if sketch.requests >= FEWEST}
    held = Counter(mark for sketch in some.values() for mark in set(sketch.asked))
    programs = {name: sketch.settings[sketch.counts.index(max(sketch.counts))] for name, sketch in some.items()}
    sizes = Counter(programs.values())
    weights = [1.0 / sizes[programs[name]] for name in some]
    began, ended, turned = (
        _shares([getattr(sketch, moment) for sketch in some.values()], weights)
        for moment in ("first", "last", "turned")
    )
    made = []
    for place, (name, sketch) in enumerate(some.items()):
        slots = int.from_bytes(sketch.slots, "little")
        busy = slots.bit_count()
        marks = zip(sketch.settings, sketch.counts, strict=True)
        made.append(
            _Account(
                name,
                slots,
                busy,
                busy.bit_length(),
                began[place],
                ended[place],
                turned[place] if sketch.turned else -1.0,
                frozenset(mark for mark in sketch.asked if 1 < held[mark] <= COMMON and mark != EMPTY),
                frozenset(
                    [
                        *(("settings", mark) for mark, count in marks if count >= OFTEN),
                        *(("wording", mark) for mark in sketch.wording if mark != EMPTY),
                    ]
                ),
                programs[name],
            )
        )
    return made


def _shares(values: Sequence[float], weights: Sequence[float]) -> list[float]:
    """Of each value the share of all weight that lies below it. Accounts with one program weigh together as
    one, lest many that act as one make their own time a usual one."""
    below, whole = [0.0] * len(values), sum(weights)
    so_far = 0.0
    for place in sorted(range(len(values)), key=values.__getitem__):
        below[place] = so_far / whole
        so_far += weights[place]
    return below


def _groups(known: Iterable[_Account]) -> tuple[list[tuple[Key, list[_Account]]], int]:
    """Accounts that share a setting or words of a program, the smallest groups first, each set of accounts
    once; and how many accounts stood in groups that were too large even of one day."""
    by_key: dict[Key, list[_Account]] = defaultdict(list)
    for account in known:
        for key in account.keys:
            by_key[key].append(account)
    groups: dict[tuple[int, ...], tuple[Key, list[_Account]]] = {}
    too_many = 0
    for key, members in sorted(by_key.items()):
        for part in _parts(members):
            if len(part) > LARGEST:
                too_many += len(part)
            elif len(part) >= LEAST:
                groups.setdefault(tuple(map(id, part)), (key, part))
    return sorted(groups.values(), key=lambda group: (len(group[1]), group[0])), too_many


def _parts(members: list[_Account]) -> Iterator[list[_Account]]:
    """A group, or of one that is too large those that began at about the same time, twice overlapping."""
    if len(members) <= LARGEST:
        yield members
        return
    members = sorted(members, key=lambda account: account.began)
    for start in range(0, len(members), LARGEST // 2):
        yield members[start : start + LARGEST]


class _Rarity:
    """How rarely accounts that share neither program nor settings agree in their times as two given ones do.
    Pairs are drawn program by program, so that an operator with many accounts counts once."""

    def __init__(self, known: Iterable[_Account], draw: Random) -> None:
        programs: dict[int, dict[int, list[_Account]]] = defaultdict(lambda: defaultdict(list))
        for account in known:
            programs[account.level][account.program].append(account)
        self.levels = {level: list(groups.values()) for level, groups in programs.items()}
        self.draw = draw
        self.tables: dict[tuple[int, int], tuple[list[float], list[float], list[int]]] = {}
        self.bits = [-math.log2((rank + 1) / (PAIRS + 1)) for rank in range(PAIRS + 1)]

    def other(self, level: int) -> _Account:
        """An account as busy as that, of a program drawn first."""
        return self.draw.choice(self.draw.choice(self.levels[level]))

    def of(self, one: _Account, two: _Account) -> float:
        """Bits: twice as rare is one more."""
        low, high = sorted((one.level, two.level))
        together, apart, shared = self.tables.get((low, high)) or self._table(low, high)
        bits = self.bits
        found = bits[PAIRS - bisect_left(together, _together(one, two))] + bits[bisect_right(apart, _apart(one, two))]
        if one.own and two.own:
            same = len(one.own & two.own)
            if same:
                found += min(QUESTIONS, bits[PAIRS - bisect_left(shared, same)])
        return found

    def _table(self, low: int, high: int) -> tuple[list[float], list[float], list[int]]:
        pairs = []
        for _ in range(PAIRS):
            one = two = self.other(low)
            for _ in range(20):
                two = self.other(high)
                if one.keys.isdisjoint(two.keys):
                    break
            pairs.append((one, two))
        table = (
            sorted(_together(one, two) for one, two in pairs),
            sorted(_apart(one, two) for one, two in pairs),
            sorted(len(one.own & two.own) for one, two in pairs),
        )
        self.tables[low, high] = table
        return table


def _together(one: _Account, two: _Account) -> float:
    """The cosine of the slots in which each was at work."""
    return (one.slots & two.slots).bit_count() / math.sqrt(one.busy * two.busy)


def _apart(one: _Account, two: _Account) -> float:
    """The share of accounts that began, ended or turned between the two, whichever is more."""
    apart = max(abs(one.began - two.began), abs(one.ended - two.ended))
    if one.turned >= 0.0 and two.turned >= 0.0:
        return max(apart, abs(one.turned - two.turned))
    return apart


Links = dict[int, set[int]]


def _links(members: Sequence[_Account], rarity: _Rarity) -> tuple[Sequence[_Account], Links]:
    links: Links = defaultdict(set)
    for (place, one), (other, two) in combinations(enumerate(members), 2):
        if rarity.of(one, two) >= LINK:
            links[place].add(other)
            links[other].add(place)
    return members, links


def _core(found: tuple[Sequence[_Account], Links]) -> list[_Account]:
    """The accounts that are left when those with fewer than `DEGREE` links to others that are left have been
    taken away, one after the other (the k-core: Seidman 1983)."""
    members, links = found
    left = {place: set(others) for place, others in links.items()}
    weak = [place for place, others in left.items() if len(others) < DEGREE]
    while weak:
        for other in left.pop(weak.pop(), ()):
            if other in left:
                others = left[other]
                others.intersection_update(left)
                if len(others) < DEGREE:
                    weak.append(other)
    return [members[place] for place in sorted(left)]


def _chance(members: Sequence[_Account], rarity: _Rarity, draw: Random, tries: int) -> float:
    """How probable a core is as large as this group's, were its accounts like others that are as busy: in
    so many groups of accounts drawn at random. Ends with the first that has one, as that is too probable."""
    some = draw.sample(members, DRAWN) if len(members) > DRAWN else members
    size = len(_core(_links(some, rarity)))
    if size < LEAST:
        return 1.0
    for tried in range(1, tries + 1):
        others = [rarity.other(account.level) for account in some]
        if len(_core(_links(others, rarity))) >= size:
            return 2.0 / (tried + 1)
    return 1.0 / (tries + 1)


def _told(core: Sequence[_Account], found: Iterable[Cluster]) -> bool:
    """Whether most of these accounts stand in one cluster already."""
    names = {account.name for account in core}
    return any(len(names.intersection(cluster.accounts)) >= 0.8 * len(names) for cluster in found)


def _cluster(core: Sequence[_Account], shared: Shared, chance: float, rarity: _Rarity) -> Cluster:
    pairs = list(combinations(core, 2))
    linked = sum(rarity.of(one, two) >= LINK for one, two in pairs) / len(pairs)
    return Cluster(tuple(account.name for account in core), shared, linked, chance)


def _merged(found: Iterable[Cluster]) -> list[Cluster]:
    """Clusters of which one has half of the other's accounts are one."""
    left: list[Cluster] = []
    for cluster in sorted(found, key=lambda each: (-len(each.accounts), each.accounts)):
        names = set(cluster.accounts)
        for place, other in enumerate(left):
            if 2 * len(names.intersection(other.accounts)) >= len(names):
                accounts = (*other.accounts, *(name for name in cluster.accounts if name not in other.accounts))
                left[place] = Cluster(
                    accounts, other.shared, min(other.linked, cluster.linked), max(other.chance, cluster.chance)
                )
                break
        else:
            left.append(cluster)
    return left
