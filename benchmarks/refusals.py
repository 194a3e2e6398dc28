"""Refusals, boilerplate, identity leaks and loops among 47,490 real answers of 59 models.

    .venv/bin/python benchmarks/refusals.py [--quick] [--json FILE]

Precision and recall of `refusals.declines` are estimated from answers that one reader labelled by hand, from
prompt and answer, as giving no answer to what was asked (1: it declines, says that it cannot, lacks
something or only asks back) or giving one, good or bad (0). They were drawn at random from three strata that
stay as they were at the draw: what the patterns of that day hit; what else says something like "cannot" or
"sorry" in its first 300 characters; the rest. Every label counts as many rows as its stratum has for each
label. Before this draw the patterns were written on 320 other labelled answers; after it one phrase
("couldn't help but") was taken out of them, so precision is a little flattered by that.
The labels lie in refusals_labels.json as model, number of the prompt and label: no text.
"""

from __future__ import annotations

import gzip
import json
import time
from collections.abc import Callable
from pathlib import Path

from rows import DATA, Row, arguments, header, need, show

from stillhouse import refusals
from stillhouse.curate import quality
from stillhouse.curate.funnel import Filter
from stillhouse.stats import wilson

LABELS = Path(__file__).with_name("refusals_labels.json")
FILTERS: tuple[tuple[str, Filter], ...] = (
    ("refusals", quality.not_refused),
    ("boilerplate", quality.without_boilerplate),
    ("identity leaks", quality.without_identity),
    ("loops", quality.not_repetitive),
)
IDENTITY_READ = 82  # all that the pattern hit when it was written, every one read by hand and right


def answers(folder: Path) -> dict[str, list[str]]:
    return {
        file.name.removesuffix(".json.gz"): [
            row["output"] for row in json.loads(gzip.decompress(file.read_bytes()))
        ]
        for file in sorted(folder.glob("*.json.gz"))
    }


def estimated(known: dict[str, list[str]], hit: Callable[[str], bool]) -> list[Row]:
    """Precision and recall, each label weighted by its stratum; intervals by Wilson at the effective number
    of labels that they rest on (Kish)."""
    found: dict[tuple[bool, bool], list[float]] = {}
    rest = 0
    for stratum in json.loads(LABELS.read_text())["strata"]:
        labels = stratum["labels"]
        weight = stratum["rows"] / len(labels)
        rest = len(labels)
        for model, number, label in labels:
            found.setdefault((hit(known[model][number]), bool(label)), []).append(weight)
    true = found.get((True, True), [])

    def share(what: str, others: list[float]) -> Row:
        weights = [*true, *others]
        value = sum(true) / sum(weights)
        n = sum(weights) ** 2 / sum(w * w for w in weights)
        interval = wilson(value * n, n)
        return Row(f"{what} ({len(weights)} labels)", value, "", interval.low, interval.high)

    return [
        share("refusals: precision", found.get((True, False), [])),
        share("refusals: recall", found.get((False, True), [])),
        Row(f"  missed among {rest} labels without any such word", 0, ""),
    ]


def main() -> None:
    options = arguments(__doc__ or "")
    known = answers(need(DATA / "many_models"))
    texts = [text for each in known.values() for text in each]
    rows = estimated(known, refusals.declines)
    judged = texts[:: 10 if options.quick else 1]
    for name, judge in FILTERS:
        started = time.process_time()
        hits = sum(
            judge({"answer": text, "refusal": None, "finish_reason": "stop"}).ruling != "keep"
            for text in judged
        )
        seconds = time.process_time() - started
        rows.append(Row(f"{name}: share of {len(judged):,} answers", hits / len(judged), ""))
        rows.append(Row(f"  {name}: CPU", seconds / len(judged) * 1e6, "us/row"))
    right = wilson(IDENTITY_READ, IDENTITY_READ)
    rows.append(
        Row(f"identity leaks: precision ({IDENTITY_READ} read by hand)", 1.0, "", right.low, right.high)
    )
    show(header(0, ["stillhouse"]), rows, options.json)


if __name__ == "__main__":
    main()
