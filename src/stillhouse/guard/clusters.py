"""Accounts that act as one: they send the same program's requests, and come, pause and go together.

Two kinds of evidence must meet, both from the accounts' sketches (`likeness`). Accounts are compared only
where they share how they ask: settings with the system message, or words that their programs send each time.
Within such a group two are linked where their times are more alike than those of either and nearly all
accounts that share nothing with it. A cluster is a part of the group in which each account has several links
(a k-core: Seidman 1983). It counts only where no group of as many equally busy accounts drawn from elsewhere
has as large a one, in so many tries that fewer than `ALARMS` false clusters are expected in a month. So
neither the customers of one application nor those who work at the same hours are a cluster, and a public test
set that many ask is none. Addresses are not looked at.

It rests on this: honest accounts that ask in the same way do not also keep the same times. Where a vendor's
application works at its customers' hours of its own choice, they do act as one, and are found.
"""

from __future__ import annotations

import math
from bisect import bisect_left
from collections import Counter, defaultdict
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from datetime import UTC, datetime
from itertools import accumulate, combinations
from random import Random
from typing import Literal

from stillhouse.guard.likeness import EMPTY, SLOT, Sketch, month_of

OFTEN = 5  # requests with a setting, from which on it may join accounts
FEWEST = 12  # requests of an account that is compared
WIDE = 6 * 3600 // SLOT  # slots that are looked at as one
TURN = 5 * 86_400.0  # seconds between an account that turned to another model and one that did not
OTHERS = 400  # accounts that share nothing with an account, to say what is alike
NEAREST = 16  # of them that may be as near as one that is linked; fewer in large groups
DEGREE, LEAST = 5, 8  # links of each account of a cluster; accounts of one
ASKED, HOLDERS = 3, 8  # own runs of words that join two accounts, if no more accounts than that hold them
ABOUT = 0.03  # share of accounts, on either side, that count as equally busy
LARGEST = 700  # accounts of a group that are compared with each other; a larger one is split by its begin
DRAWN = 150  # accounts of a group in which its significance is looked at
ALARMS = 0.5  # false clusters a month, expected at most
LOOKS, LOOK_DAYS = 5, 7  # searches a month: after each seven days of it, and when it is over

Shared = Literal["settings", "wording"]
Key = tuple[Shared, int]
WORDS: Mapping[Shared, str] = {
    "settings": "ask with the same model, system message and settings",
    "wording": "send the same words of a program around their texts",
}


@dataclass(frozen=True, slots=True)
class Cluster:
    """Accounts that act as one, of which `joined` share questions and times with the others, but not how they
    ask. `linked` is the share of the others' pairs that are linked; `chance` bounds how probable so
    large a cluster is among as many accounts of other groups."""

    accounts: tuple[str, ...]
    shared: Shared
    joined: int
    linked: float
    chance: float


@dataclass(frozen=True, slots=True)
class Found:
    """`clusters`, largest first; how many accounts were compared and in how many groups, how many had asked
    too little, how many groups were too large to be compared at once and were split, and how many were not
    looked at, since there was no time left."""

    clusters: tuple[Cluster, ...]
    compared: int
    groups: int
    too_few: int
    split: int
    left: int


def due(at: float) -> tuple[int, int]:
    """The search whose time it is (Unix seconds): of which month, counted from January 1970 (UTC), and which
    of its `LOOKS`. In a month's first days it is the last one of the month before."""
    month, look = month_of(int(at) // 86_400), (datetime.fromtimestamp(at, UTC).day - 1) // LOOK_DAYS
    return (month, look) if look else (month - 1, LOOKS)


def clusters(
    sketches: Mapping[str, Sketch], draw: Random, looks: int = 1, late: Callable[[], bool] = lambda: False
) -> Found:
    """The clusters among a month's accounts. Of several `looks` at the month each may give its part of the
    false ones. Where it is `late`, the groups that are left, the largest ones, are not looked at."""
    known = _accounts(sketches)
    groups, split = _groups(known)
    times = _Times(known, draw)
    tries = math.ceil(len(groups) * looks / ALARMS)
    found: list[Cluster] = []
    left = len(groups)
    for (shared, _), members in groups:
        if late():
            break
        left -= 1
        core, linked = _core(members, times)
        if len(core) < LEAST or _told(core, found):
            continue
        chance = _chance(members, times, draw, tries, late)
        if chance is None:
            left += 1
            break
        if chance * len(groups) * looks <= ALARMS:
            more = _joined(core, known, times)
            names = tuple(account.name for account in (*core, *more))
            found.append(Cluster(names, shared, len(more), linked, chance))
    too_few = len(sketches) - len(known)
    return Found(tuple(_merged(found)), len(known), len(groups), too_few, split, left)


def in_words(cluster: Cluster) -> str:
    """What joins the accounts, for the person who decides."""
    joined = f", {cluster.joined} of them by their questions," if cluster.joined else ""
    return (
        f"{len(cluster.accounts)} accounts{joined} {WORDS[cluster.shared]}; {cluster.linked:.0%} of pairs "
        f"begin, pause and end more alike than either and {1 - NEAREST / OTHERS:.0%} of unrelated accounts; "
        f"so many would by chance with a probability of at most {cluster.chance:.2g}"
    )


@dataclass(frozen=True, slots=True, eq=False)
class _Account:
    """What is compared: a bit for each `WIDE` slots with a request, the root of how many these are; first and
    last request and the turn to another model in Unix seconds; own words that few others have."""

    name: str
    busy: int
    root: float
    first: float
    last: float
    turned: float
    own: frozenset[int]
    keys: frozenset[Key]
    program: int


def _accounts(sketches: Mapping[str, Sketch]) -> list[_Account]:
    some = {name: sketch for name, sketch in sketches.items() if sketch.requests >= FEWEST}
    held = Counter(mark for sketch in some.values() for mark in set(sketch.asked))
    made = []
    for name, sketch in some.items():
        busy, settings = _wide(int.from_bytes(sketch.slots, "little")), sketch.settings
        keys: list[Key] = [("settings", mark) for mark, times in settings.items() if times >= OFTEN]
        keys += [("wording", mark) for mark in sketch.wording if mark != EMPTY]
        own = frozenset(mark for mark in sketch.asked if 1 < held[mark] <= HOLDERS and mark != EMPTY)
        program = max(settings, key=settings.__getitem__)
        _, first, last, turned, _ = sketch.numbers
        root = math.sqrt(busy.bit_count())
        made.append(_Account(name, busy, root, first, last, turned, own, frozenset(keys), program))
    return made


def _wide(slots: int) -> int:
    """A bit for each `WIDE` of them in which one is set."""
    mask, wide, place = (1 << WIDE) - 1, 0, 0
    while slots:
        if slots & mask:
            wide |= 1 << place
        slots >>= WIDE
        place += 1
    return wide


def _groups(known: Iterable[_Account]) -> tuple[list[tuple[Key, list[_Account]]], int]:
    """Accounts that share a key, the smallest groups first, each set of accounts once; and how many groups
    were split."""
    by_key: dict[Key, list[_Account]] = defaultdict(list)
    for account in known:
        for key in account.keys:
            by_key[key].append(account)
    groups = {
        tuple(map(id, part)): (key, part)
        for key, members in sorted(by_key.items(), reverse=True)
        for part in _parts(members)
        if len(part) >= LEAST
    }
    split = sum(len(members) > LARGEST for members in by_key.values())
    return sorted(groups.values(), key=lambda group: (len(group[1]), group[0])), split


def _parts(members: list[_Account]) -> Iterator[list[_Account]]:
    """A group; of one that is too large those that began one after the other, each twice."""
    if len(members) <= LARGEST:
        yield members
        return
    members = sorted(members, key=lambda account: account.first)
    for start in range(0, len(members), LARGEST // 2):
        yield members[start : start + LARGEST]


@dataclass(frozen=True, slots=True)
class _View:
    """How alike other accounts' times are to one account's: `together` and `apart` ascend, `totals` descends
    and has as many bits as the nearest of them come to."""

    together: list[float]
    apart: list[float]
    totals: list[float]


class _Times:
    """Whose times are alike. What that means is said by accounts that share nothing with a given one, drawn
    program by program, so that many accounts with one program count once and do not make their own time a
    usual one."""

    def __init__(self, known: Sequence[_Account], draw: Random) -> None:
        self.draw = draw
        self.ranked = sorted(known, key=lambda account: account.root)
        self.roots = [account.root for account in self.ranked]
        sizes = Counter(account.program for account in known)
        self.until = list(accumulate(1.0 / sizes[account.program] for account in self.ranked))
        self.others = [self.drawn(0.0, self.until[-1]) for _ in range(OTHERS)] if known else []
        self.bits = [-math.log2((rank + 1) / (OTHERS + 1)) for rank in range(OTHERS + 1)]
        self.views: dict[str, _View] = {}

    def drawn(self, low: float, high: float) -> _Account:
        place = bisect_left(self.until, self.draw.uniform(low, high))
        return self.ranked[min(place, len(self.ranked) - 1)]

    def like(self, account: _Account) -> _Account:
        """Another account, about as busy."""
        whole = self.until[-1]
        at = self.until[bisect_left(self.roots, account.root)]
        low = min(max(0.0, at - ABOUT * whole), whole * (1 - 2 * ABOUT))
        return self.drawn(low, low + 2 * ABOUT * whole)

    def linked(self, one: _Account, two: _Account, nearest: int) -> bool:
        """Whether either is nearer to the other than all but so many of those that share nothing with it."""
        together = (one.busy & two.busy).bit_count() / (one.root * two.root)
        apart = abs(one.first - two.first) + abs(one.last - two.last)
        if one.turned and two.turned:
            apart += abs(one.turned - two.turned)
        elif one.turned or two.turned:
            apart += TURN
        return self._near(one, together, apart, nearest) and self._near(two, together, apart, nearest)

    def _near(self, account: _Account, together: float, apart: float, nearest: int) -> bool:
        view = self.views.get(account.name) or self._view(account)
        rank = len(view.together) - bisect_left(view.together, together)
        bits = self.bits[rank] + self.bits[bisect_left(view.apart, apart)]
        return len(view.totals) > nearest and bits > view.totals[nearest]

    def _view(self, account: _Account) -> _View:
        busy, root, first, last, turned = (
            account.busy,
            account.root,
            account.first,
            account.last,
            account.turned,
        )
        some = [
            other for other in self.others if other.keys.isdisjoint(account.keys) and other is not account
        ]
        with_it = [(busy & other.busy).bit_count() / (root * other.root) for other in some]
        from_it = [
            abs(first - other.first)
            + abs(last - other.last)
            + (
                (abs(turned - other.turned) if other.turned else TURN)
                if turned
                else TURN
                if other.turned
                else 0.0
            )
            for other in some
        ]
        together, apart, bits, count = sorted(with_it), sorted(from_it), self.bits, len(some)
        totals = [
            bits[count - bisect_left(together, one)] + bits[bisect_left(apart, two)]
            for one, two in zip(with_it, from_it, strict=True)
        ]
        view = _View(together, apart, sorted(totals, reverse=True)[: NEAREST + 1])
        self.views[account.name] = view
        return view


def _core(members: Sequence[_Account], times: _Times) -> tuple[list[_Account], float]:
    """The accounts that are left when those with fewer than `DEGREE` links to others that are left have been
    taken away, one after the other; and the share of their pairs that are linked.

    In a group of unrelated accounts each has about one link or fewer, whatever the group's size.
    """
    nearest = max(1, min(NEAREST, OTHERS // max(1, len(members))))
    links: dict[int, set[int]] = defaultdict(set)
    for (place, one), (other, two) in combinations(enumerate(members), 2):
        if times.linked(one, two, nearest):
            links[place].add(other)
            links[other].add(place)
    weak = [place for place, others in links.items() if len(others) < DEGREE]
    while weak:
        place = weak.pop()
        for other in links.pop(place, ()):
            links[other].discard(place)
            if len(links[other]) == DEGREE - 1:
                weak.append(other)
    pairs = len(links) * (len(links) - 1)
    return [members[place] for place in sorted(links)], sum(map(len, links.values())) / max(1, pairs)


def _chance(
    members: Sequence[_Account], times: _Times, draw: Random, tries: int, late: Callable[[], bool]
) -> float | None:
    """How probable a core is as large as this group's, were its accounts others': by so many groups drawn at
    random. It ends with the first that has one, as that is too probable already. None where it
    grew `late`."""
    some = draw.sample(members, DRAWN) if len(members) > DRAWN else members
    size = len(_core(some, times)[0])
    if size < LEAST:
        return 1.0
    for tried in range(1, tries + 1):
        if late():
            return None
        if len(_core([times.like(account) for account in some], times)[0]) >= size:
            return 2.0 / (tried + 1)
    return 1.0 / (tries + 1)


def _joined(core: Sequence[_Account], known: Iterable[_Account], times: _Times) -> list[_Account]:
    """Accounts that ask in another way, but what one of these asks, and at the times of half of them."""
    inside = {account.name for account in core}
    own = {mark for account in core for mark in account.own}
    return [
        account
        for account in known
        if account.name not in inside
        and len(own & account.own) >= ASKED
        and any(len(account.own & other.own) >= ASKED for other in core)
        and 2 * sum(times.linked(account, other, NEAREST) for other in core) >= len(core)
    ]


def _told(core: Sequence[_Account], found: Iterable[Cluster]) -> bool:
    """Whether most of these accounts stand in one cluster already."""
    names = {account.name for account in core}
    return any(len(names.intersection(cluster.accounts)) >= 0.8 * len(names) for cluster in found)


def _merged(found: Iterable[Cluster]) -> list[Cluster]:
    """Clusters of which one has half of the other's accounts are one, described by the larger."""
    left: list[Cluster] = []
    for cluster in sorted(found, key=lambda each: (-len(each.accounts), each.accounts)):
        names = set(cluster.accounts)
        for place, other in enumerate(left):
            if 2 * len(names.intersection(other.accounts)) >= len(names):
                accounts = tuple(dict.fromkeys((*cluster.accounts, *other.accounts)))
                left[place] = Cluster(
                    tuple(accounts),
                    other.shared,
                    other.joined,
                    other.linked,
                    max(other.chance, cluster.chance),
                )
                break
        else:
            left.append(cluster)
    return left
