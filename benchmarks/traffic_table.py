"""What a simulated month holds, kind by kind: the tables of docs/simulation.md.

.venv/bin/python benchmarks/traffic_table.py [--month test] [--seed 0] [--count 10000]
"""

from __future__ import annotations

import argparse
import statistics
import time

from rows import DATA, need
from traffic.people import KINDS, people, requests
from traffic.sources import SOURCES
from traffic.wording import Month


def kinds(month: Month, seed: int, count: int) -> list[str]:
    """A row a kind: accounts, requests an account, follow-ups, lengths in the median over requests."""
    lines = ["| kind | accounts | requests: median | mean | follow-ups | characters | tokens out |"]
    lines.append("|---|--:|--:|--:|--:|--:|--:|")
    everyone = people(month, seed, count)
    volumes: dict[str, list[int]] = {"ordinary": [], "hard": [], "distiller": []}
    spent = time.process_time()
    for kind in KINDS:
        asked, later, texts, answers = [], 0, [], []
        for one in (person for person in everyone if person.kind == kind):
            number = 0
            for request in requests(one, month, seed):
                number += 1
                later += bool(request.earlier)
                texts.append(len(request.text))
                answers.append(request.output_tokens)
            asked.append(number)
        if not texts:
            continue
        volumes[KINDS[kind].side] += asked
        lines.append(
            f"| {kind} | {len(asked):,} | {statistics.median(asked):,.0f} | {statistics.fmean(asked):,.0f} | "
            f"{later / len(texts):.0%} | {statistics.median(texts):,.0f} | "
            f"{statistics.median(answers):,.0f} |"
        )
    spent = time.process_time() - spent
    total = sum(map(sum, volumes.values()))
    ordinary = sorted(volumes["ordinary"], reverse=True)
    share = sum(ordinary[: len(ordinary) // 10]) / sum(ordinary)
    many = sum(number > 667 for number in ordinary) / len(ordinary)
    none = sum(number == 0 for number in ordinary) / len(ordinary)
    return [
        *lines,
        f"\n{len(everyone):,} accounts, {total:,} requests, {1e6 * spent / total:.1f} us of CPU each",
        f"ordinary accounts with more than 667 requests {many:.1%}, with none {none:.1%}, "
        f"share of the tenth that asks most {share:.0%}",
    ]


def sources() -> list[str]:
    lines = ["| source | month | what | licence |", "|---|---|---|---|"]
    return lines + [f"| {one.name} | {one.month} | {one.what} | {one.licence} |" for one in SOURCES]


if __name__ == "__main__":
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--month", choices=("calibrate", "test"), default="calibrate")
    parser.add_argument("--seed", type=int, default=0)
    parser.add_argument("--count", type=int, default=10_000)
    given = parser.parse_args()
    need(DATA / "traffic")
    print("\n".join([*sources(), "", *kinds(given.month, given.seed, given.count)]))
