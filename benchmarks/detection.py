"""The detector on a simulated month apart from those it was fitted and calibrated on, beside other rules.

    .venv/bin/python benchmarks/detection.py [--quick] [--json FILE] [--folder FOLDER] [--portions N]

Two months of `benchmarks/traffic`, which share no source of texts and no arrival trace. The weights were
fitted on the first month under another seed (`detection_fit.py`); on it the thresholds are set, once, from
the highest score that each ordinary account reached; the second month is looked at with these. A flag is a
notice and may meet one account in a hundred a month; a kill stops the account and may meet one in ten
thousand. The rules beside it get the same treatment, thresholds from the same accounts at the same rate, and
some a threshold set by hand as well. All accounts are simulated: see docs/simulation.md. The months are
worked through in 40 portions, each with its share of every kind; `--portions` ends after so many.
"""

from __future__ import annotations

import math
import statistics
from collections import defaultdict
from collections.abc import Iterable, Iterator, Mapping, Sequence

from detection_rules import BY_HAND, RULES, first_above, highest
from detection_watch import PORTIONS, SEED, Look, Watched, best_time, watched
from rows import DATA, Row, arguments, header, need, show, working_folder
from traffic.people import KINDS

from stillhouse.guard.calibrating import Threshold, accounts_needed, threshold
from stillhouse.guard.evidence import SIZE
from stillhouse.stats import Interval, binomial_upper, clustered_error, clustered_share, group_codes, wilson

SIZES: dict[str, int] = {"ordinary": 10_000, "hard": 500, "distiller": 500}  # accounts of a month
QUICK = 0.03  # of these
# Beside the two months: the rate at which everybody asks, the seed, and of each side the part that is tried.
OTHERS: dict[str, tuple[float, int, dict[str, float]]] = {
    "rate x 0.1": (0.1, SEED, {"ordinary": 0.25, "distiller": 1.0}),
    "rate x 10": (10.0, SEED, {"ordinary": 0.04, "distiller": 0.4}),
    "another month": (1.0, SEED + 2, {"ordinary": 0.2, "distiller": 1.0}),
}
FLAG, KILL, DECLARED = 0.01, 1e-4, 0.005  # alarms to an account-month, on average over calibrations
MOST_FALSE_KILLS, MOST_DECLARED_KILLS = 1e-3, 0.01
SOON = {"distiller:pure": 200, "distiller:mix25": 300, "distiller:mix10": 500}

DONE = {"flag": "flagged", "kill": "killed"}


def main() -> None:
    options = arguments((__doc__ or "").split("\n", 1)[0], resumable=True, portions=PORTIONS)
    need(DATA)
    part = QUICK if options.quick else 1.0
    with working_folder(options.folder) as folder:
        first, second, *others = watched(all_looks(part), folder, options.portions).values()
    flag, kill, declared = lines(first)
    rows = [
        Row("portions of the months", options.portions, f"of {PORTIONS}"),
        Row("flag: threshold", finite(flag.score), "score"),
        Row("kill: threshold", finite(kill.score), "score"),
        Row(
            "kill: alarms to an account-month, at most",
            kill.alarm,
            "",
            target=f"{KILL:g}",
            holds=kill.alarm <= KILL,
        ),
        Row("kill, declared use: threshold", finite(declared.score), "score"),
        Row("calibration accounts, ordinary", flag.accounts, ""),
        Row("calibration accounts that a kill's threshold needs", accounts_needed(KILL), ""),
        Row("calibration accounts with a declared use", declared.accounts, ""),
        *left_out(first),
        *ordinary(second, flag, kill),
        *hard(second, flag, kill, declared),
        *distillers(second, flag, kill),
        *beside(first, second, flag),
        *cost(),
    ]
    for name, accounts in zip(OTHERS, others, strict=True):
        rows += survives(name, accounts, flag, kill)
    rows.append(
        Row("accounts that write another language than English", 0, "(no real text: nothing is known)")
    )
    show(header(SEED, ["stillhouse", "numpy", "scipy"]), rows, options.json)


def all_looks(part: float) -> dict[str, Look]:
    """The two months, and at what else the detector is to hold."""
    looks = {
        "calibrate": Look("calibrate", SEED, numbers({"ordinary": part, "hard": part}), rules=True),
        "test": Look("test", SEED, numbers(dict.fromkeys(SIZES, part)), rules=True),
    }
    for name, (rate, seed, parts) in OTHERS.items():
        some = numbers({side: part * share for side, share in parts.items()})
        asked = {kind: n for kind, n in some.items() if kind in SOON or KINDS[kind].side == "ordinary"}
        looks[name.replace(" ", "-")] = Look("test", seed, asked, rate)
    return looks


def numbers(parts: Mapping[str, float]) -> dict[str, int]:
    """How many accounts of each kind: a part of `SIZES`, and within a side as the simulation has them."""
    whole = {side: sum(kind.share for kind in KINDS.values() if kind.side == side) for side in parts}
    return {
        name: max(1, round(parts[kind.side] * SIZES[kind.side] * kind.share / whole[kind.side]))
        for name, kind in KINDS.items()
        if kind.side in parts
    }


def lines(accounts: Sequence[Watched]) -> tuple[Threshold, Threshold, Threshold]:
    """Of a flag, of a kill, and of a kill where a use is declared, which is calibrated on such accounts."""
    reached = [each.highest for each in accounts if each.side == "ordinary"]
    told = [each.highest for each in accounts if each.side == "hard" and each.declared]
    return limit(reached, FLAG), limit(reached, KILL), limit(told, DECLARED)


def limit(reached: Sequence[float], alarm: float) -> Threshold:
    """Where there are fewer accounts than the alarm needs, it is as rare as they can make it."""
    return threshold(reached, max(alarm, 1.0 / (len(reached) + 1)))


def left_out(accounts: Sequence[Watched]) -> list[Row]:
    """On the calibration month: thresholds from all sources but one, alarms on the accounts of that one."""
    some = [each for each in accounts if each.side == "ordinary"]
    rows = []
    for name, alarm in (("flag", FLAG), ("kill", KILL)):
        shares, alarms, total = {}, 0, 0
        for source in sorted({each.source for each in some}):
            bound = limit([each.highest for each in some if each.source != source], alarm).score
            theirs = [each for each in some if each.source == source]
            hits = sum(each.highest > bound for each in theirs)
            shares[source], alarms, total = hits / len(theirs), alarms + hits, total + len(theirs)
        worst = max(shares, key=lambda source: shares[source])
        rows += [
            share(f"false {name}s, one source left out, all sources", alarms, total),
            Row(f"false {name}s, one source left out, the worst ({worst})", shares[worst], "of accounts"),
        ]
    return rows


def ordinary(accounts: Sequence[Watched], flag: Threshold, kill: Threshold) -> list[Row]:
    """Upper bounds over all accounts are one-sided and exact; intervals by cluster and group are not."""
    some = [each for each in accounts if each.side == "ordinary"]
    rows = [Row("ordinary accounts of the test month", len(some), "")]
    for name, line in (("flag", flag.score), ("kill", kill.score)):
        hits = [each.highest > line for each in some]
        low = wilson(sum(hits), len(hits)).low
        high = binomial_upper(sum(hits), len(hits))
        kills = name == "kill"
        rows.append(
            Row(
                f"false {name}s",
                sum(hits) / len(hits),
                "of account-months",
                low,
                high,
                target=f"upper 95 % bound <= {MOST_FALSE_KILLS:g}" if kills else None,
                holds=high <= MOST_FALSE_KILLS if kills else None,
            )
        )
        rows += [
            Row(f"false {name}s, {what} as a cluster", span.value, "of account-months", span.low, span.high)
            for what, span in clustered(some, hits)
        ]
        for what, of in (("source", by_source), ("kind", by_kind)):
            members: dict[str, list[bool]] = defaultdict(list)
            for each, hit in zip(some, hits, strict=True):
                members[of(each)].append(hit)
            rows += [
                share(f"false {name}s, {what} {group}", sum(theirs), len(theirs))
                for group, theirs in sorted(members.items())
                if any(theirs) or not kills
            ]
    return rows


def clustered(accounts: Sequence[Watched], hits: Sequence[bool]) -> Iterator[tuple[str, Interval]]:
    """Intervals where accounts of one source, of one trace, or of either are alike.

    The last by the variance in two ways, that of sources and that of traces less that of both together
    (Cameron, Gelbach and Miller 2011), and never less than either.
    """
    values = [float(hit) for hit in hits]
    ids = [each.id for each in accounts]
    codes = [
        group_codes(groups, ids)
        for groups in (
            [each.source for each in accounts],
            [each.trace for each in accounts],
            [each.trace and f"{each.source} {each.trace}" for each in accounts],
        )
    ]
    yield "accounts of one source", clustered_share(values, codes[0])
    yield "accounts of one trace", clustered_share(values, codes[1])
    if any(hits):
        one, two, both = (clustered_error(values, code) or 0.0 for code in codes)
        variance = max(one**2 + two**2 - both**2, one**2, two**2)
        mean = statistics.fmean(values)
        effective = min(len(values), mean * (1 - mean) / variance)
        yield "accounts of one source or one trace", wilson(mean * effective, effective)


def hard(accounts: Sequence[Watched], flag: Threshold, kill: Threshold, declared: Threshold) -> list[Row]:
    rows, killed, total = [], 0, 0
    for kind, some in kinds(accounts, "hard"):
        flags = sum(each.highest > flag.score for each in some)
        kills = sum(each.highest > kill.score for each in some)
        told = sum(each.highest > max(kill.score, declared.score) for each in some if each.declared)
        killed, total = killed + told, total + sum(bool(each.declared) for each in some)
        rows += [
            share(f"{kind}, no use declared: flagged", flags, len(some)),
            share(f"{kind}, no use declared: killed", kills, len(some)),
            share(f"{kind}, use declared: killed", told, sum(bool(each.declared) for each in some)),
        ]
    rate = killed / total if total else None
    return [
        *rows,
        Row(
            "all with a declared use: killed",
            rate,
            f"of {total}",
            wilson(killed, total).low,
            binomial_upper(killed, total),
            target=f"<= {MOST_DECLARED_KILLS:g}",
            holds=rate is not None and rate <= MOST_DECLARED_KILLS,
        ),
    ]


def distillers(accounts: Sequence[Watched], flag: Threshold, kill: Threshold) -> list[Row]:
    rows = []
    for kind, some in kinds(accounts, "distiller"):
        soon = SOON.get(kind)
        for name, line in (("flag", flag.score), ("kill", kill.score)):
            when = [each.passed(line) for each in some]
            rows.append(
                share(f"{kind}: {name}ged" if name == "flag" else f"{kind}: killed", found(when), len(some))
            )
            middle = median(when)
            wanted = soon if name == "flag" else None
            rows.append(
                Row(
                    f"{kind}: exchanges until the {name}, median",
                    finite(middle),
                    "exchanges" if middle < math.inf else "(fewer than half are found)",
                    target=f"<= {wanted}" if wanted else None,
                    holds=middle <= wanted if wanted else None,
                )
            )
    return rows


def beside(first: Sequence[Watched], second: Sequence[Watched], flag: Threshold) -> list[Row]:
    """The rules, at the rate of alarms that a flag has and by their own thresholds."""
    some = [each for each in first if each.side == "ordinary" and each.rules]
    rows = []
    for rule in RULES:
        line = threshold([highest(each.rules[rule]) for each in some], FLAG).score
        rows += compared(f"{rule}, as many flags", second, flag.score, rule, line)
        if rule in BY_HAND:
            rows += compared(f"{rule}, by hand", second, flag.score, rule, BY_HAND[rule])
    return rows


def compared(name: str, accounts: Sequence[Watched], flag: float, rule: str, line: float) -> list[Row]:
    """The detector's figure, and beside it the rule's."""
    rows = []
    some = [each for each in accounts if each.side == "ordinary" and each.rules]
    theirs = sum(highest(each.rules[rule]) > line for each in some) / len(some)
    rows.append(against("false flags", sum(each.highest > flag for each in some) / len(some), name, theirs))
    for kind, most in SOON.items():
        some = [each for each in accounts if each.kind == kind]
        ours = sum((each.passed(flag) or math.inf) <= most for each in some) / len(some)
        theirs = sum((first_above(each.rules[rule], line) or math.inf) <= most for each in some) / len(some)
        rows.append(against(f"{kind}: flagged within {most}", ours, name, theirs))
    return rows


def against(what: str, ours: float, name: str, theirs: float) -> Row:
    return Row(
        what, ours, "of accounts", peer=name, peer_value=theirs, ratio=ours / theirs if theirs else None
    )


def cost() -> list[Row]:
    """CPU time of the process."""
    best = best_time() * 1e6
    return [
        Row("CPU per request, the fastest of 7 runs", best, "us", target="<= 150 us", holds=best <= 150),
        Row("packed state of an account", SIZE, "bytes", target="<= 4096", holds=SIZE <= 4096),
    ]


def survives(name: str, accounts: Sequence[Watched], flag: Threshold, kill: Threshold) -> list[Row]:
    """The same thresholds where everybody asks more or less, or in another month."""
    some = [each for each in accounts if each.side == "ordinary"]
    rows = [
        share(f"{name}: false flags", sum(each.highest > flag.score for each in some), len(some)),
        share(f"{name}: false kills", sum(each.highest > kill.score for each in some), len(some)),
    ]
    for kind in SOON:
        when = [each.passed(flag.score) for each in accounts if each.kind == kind]
        rows.append(share(f"{name}: {kind} flagged", found(when), len(when)))
        rows.append(
            Row(
                f"{name}: {kind}, exchanges until the flag, median",
                finite(median(when)),
                "exchanges",
            )
        )
    return rows


def share(what: str, hits: int, total: int) -> Row:
    span = wilson(hits, total)
    return Row(what, span.value, f"of {total}", span.low, span.high)


def median(when: Iterable[int | None]) -> float:
    """Infinite where fewer than half were found."""
    return statistics.median([math.inf if n is None else n for n in when] or [math.inf])


def found(when: Iterable[int | None]) -> int:
    return sum(n is not None for n in when)


def finite(value: float) -> float | None:
    return value if math.isfinite(value) else None


def kinds(accounts: Sequence[Watched], side: str) -> list[tuple[str, list[Watched]]]:
    groups: dict[str, list[Watched]] = defaultdict(list)
    for each in accounts:
        if each.side == side:
            groups[each.kind].append(each)
    return sorted(groups.items())


def by_source(account: Watched) -> str:
    return account.source


def by_kind(account: Watched) -> str:
    return account.kind


if __name__ == "__main__":
    main()
