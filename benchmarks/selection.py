"""The gateway's marks by selection, and its markers: what they carry, what they cost, and whether students
pick them up.

    .venv/bin/python benchmarks/selection.py [--quick] [--json FILE] [--folder FOLDER]

A gateway process asks a served model once, or for the best of 2, 4 or 8 at temperature 1: stories260K goes
on with beginnings of stories (1.3 nats of choice a token; it never ends, so all answers are as long as they
may be), `embedded:desk` answers its own test questions (0.04 nats a token; its answers have a score). Each
account has a key of its own.

`through the gateway` is of the answers that customers got. `chosen among 8 answers` is of the same choice,
by the same function, among answers that the model wrote before: under many keys, for narrower intervals.
Answers of one account are taken in order until they have so many words, then the next ones: each such stretch
is one text. Markers besides are written into real answers of text-davinci-003 to Alpaca's instructions. False
positives are those of decoy keys on texts that bear no mark of theirs.

Students: selection_students.py.
"""

from __future__ import annotations

import json
import math
import statistics
from collections.abc import Callable, Sequence
from dataclasses import dataclass, replace
from itertools import islice
from pathlib import Path

import numpy as np
import selection_students as students
import torch
from radioactivity import over
from rows import DATA, Row, arguments, header, need, part, show, working_folder
from selection_asking import BEST_OF, Asked, Given, asked, provider_key, with_markers
from selection_students import Pool
from watermark_null import rate
from watermark_texts import stories

from stillhouse.guard import markers
from stillhouse.models.embedded import measure, world
from stillhouse.records import Prompt
from stillhouse.stats import wilson
from stillhouse.watermark import Key, account_key, decoy_keys, evidence, word_ids
from stillhouse.watermark.hashing import Ids
from stillhouse.watermark.selection import select

SEED = 67
TELLER, DESK = DATA / "models" / "stories260K", "embedded:desk"
BEGINNING = 6  # words
TELLER_TOKENS, DESK_TOKENS = 120, 100
WORDS = (250, 500, 1000, 2000, 4000, 8000)
ANSWERS = (25, 50, 100, 200, 400)  # in which markers are looked for
CALLED, FALSE = 1e-5, (1e-2, 1e-3)
STRETCH = 1000  # words of an unmarked text


@dataclass(frozen=True, slots=True)
class Scale:
    stories: int
    questions: int
    customers: int
    timed: int
    keys: int
    decoys: int
    alpaca: int


FULL = Scale(180, 150, 6, 25, 10, 1000, 5000)
QUICK = Scale(12, 8, 2, 1, 2, 50, 200)


def main() -> None:
    options = arguments((__doc__ or "").split("\n\n", 1)[0], resumable=True)
    need(TELLER)
    torch.set_num_threads(1)
    scale = QUICK if options.quick else FULL
    with working_folder(options.folder) as given:
        folder = given / ("quick" if options.quick else "whole")
        folder.mkdir(exist_ok=True)
        named = parts(folder, scale, students.QUICK if options.quick else students.FULL).items()
        rows = [row for name, make in named for row in part(folder / f"{name}-rows.json", make)]
    show(header(SEED, ["stillhouse", "numpy", "torch", "transformers"]), rows, options.json)


def parts(folder: Path, scale: Scale, taught: students.Scale) -> dict[str, Callable[[], list[Row]]]:
    return {
        "teller": lambda: teller(folder, scale),
        "desk": lambda: desk(folder, scale),
        "chosen": lambda: chosen(students.pool(folder, taught), scale),
        "markers": lambda: with_habits(folder, students.pool(folder, taught), scale),
        "students": lambda: students.figures(folder, taught),
    }


def beginnings(count: int) -> list[str]:
    return list(islice(dict.fromkeys(" ".join(text.split()[:BEGINNING]) for text in stories()), count))


# ---------------------------------------------------------------- through the gateway


def teller(folder: Path, scale: Scale) -> list[Row]:
    prompts = [[{"role": "user", "content": said}] for said in beginnings(scale.stories)]
    file = folder / "teller.json"
    found = asked(file, str(TELLER), prompts, scale.customers, scale.timed, TELLER_TOKENS)
    made = [*costs("stories260K", found), *marks("stories260K", found, scale)]
    for best in BEST_OF[1:]:
        each = [under(key, of(found, best, at), CALLED) for at, key in enumerate(found.keys)]
        made += powers(f"stories260K through the gateway, best of {best}", each)
    plain = [texts for at in range(len(found.keys)) for texts in stretches(of(found, 1, at), STRETCH)]
    made += false_positives("stories260K unmarked", plain, decoy_keys(provider_key(), scale.decoys))
    others = [texts for at in range(len(found.keys)) for texts in stretches(of(found, 8, at), STRETCH)]
    made += false_positives(
        "stories260K, best of 8 by others", others, decoy_keys(provider_key(), scale.decoys)
    )
    return made


def desk(folder: Path, scale: Scale) -> list[Row]:
    questions = [one.prompt for one in islice(world.examples("test", SEED), scale.questions)]
    prompts = [[{"role": one.role, "content": one.content} for one in each.messages] for each in questions]
    found = asked(folder / "desk.json", DESK, prompts, 1, scale.timed, DESK_TOKENS)
    made = [*costs(DESK, found), *scores(found, questions), *marks(DESK, found, scale)]
    plain = [list(of(found, 1, 0))]
    return made + false_positives(f"{DESK} unmarked", plain, decoy_keys(provider_key(), scale.decoys))


def costs(name: str, found: Asked) -> list[Row]:
    """Latency with one request in flight, tokens that the model wrote for one that was given, and length."""
    plain = [one for one in found.given if one.best_of == 1]
    single = [one.seconds for one in found.alone if one.best_of == 1]
    made = [Row(f"{name}, asked once: seconds for an answer, median", statistics.median(single), "s")]
    for best in BEST_OF[1:]:
        given = [one for one in found.given if one.best_of == best]
        alone = [one.seconds for one in found.alone if one.best_of == best]
        ratios = [several / once for several, once in zip(alone, single, strict=True)]
        took = sum(one.tokens for one in given)
        wrote = (took + found.not_given[best]) / took
        what = f"{name}, best of {best}"
        middle = statistics.median(ratios)
        made += [
            Row(f"{what}: time against asked once, median", middle, "x", min(ratios), max(ratios)),
            Row(f"{what}: tokens that the model wrote for one that was given", wrote, "x"),
            drift(f"{what}: longer than asked once", given, plain),
        ]
    return made


def drift(what: str, given: Sequence[Given], plain: Sequence[Given]) -> Row:
    """By how many words, answers to the same prompt compared."""
    words = [len(word_ids(a.text)) - len(word_ids(b.text)) for a, b in zip(given, plain, strict=True)]
    row, usual = mean_of(what, words, "words"), statistics.fmean(len(word_ids(one.text)) for one in plain)
    return replace(row, peer="of", peer_value=usual, ratio=(row.value or 0.0) / usual)


def mean_of(what: str, values: Sequence[float], unit: str) -> Row:
    half = 1.96 * statistics.stdev(values) / math.sqrt(len(values))
    mean = statistics.fmean(values)
    return Row(what, mean, unit, mean - half, mean + half)


def marks(name: str, found: Asked, scale: Scale) -> list[Row]:
    """How many answers were chosen at all, and what all that one account got says of its key."""
    made = []
    for best in BEST_OF[1:]:
        given = [one for one in found.given if one.best_of == best]
        bear, alike = [sum(one.why == why for one in given) for why in ("", "alike")]
        span = wilson(bear, len(given))
        what = f"{name}, best of {best}"
        made += [
            Row(f"{what}: bear a mark", bear / len(given), f"of {len(given)}", span.low, span.high),
            Row("  all answers were alike", alike / len(given), f"of {len(given)}"),
        ]
        said = [evidence(key.scheme, key.sip, of(found, best, at)) for at, key in enumerate(found.keys)]
        ten = sorted(one.log_p / math.log(10) for one in said)
        middle, scored = statistics.median(ten), int(np.median([one.scored for one in said]))
        unit = f"of {len(given) // len(said)} answers, {scored:,} scored"
        made.append(Row("  log10 p of all that an account got", middle, unit, ten[0], ten[-1]))
        made.append(
            strength(
                "  z of an answer",
                [over(provider_key().scheme, one.mean, one.scored) for one in said],
                len(given),
            )
        )
    return made


def strength(what: str, z: Sequence[float], answers: int) -> Row:
    """Standard deviations that one answer is worth, from those that all are together."""
    value = math.fsum(z) / math.sqrt(len(z)) / math.sqrt(answers)
    half = 1.96 / math.sqrt(answers)
    return Row(what, value, "", value - half, value + half)


def of(found: Asked, best: int, account: int) -> list[Ids]:
    given = [one for one in found.given if (one.best_of, one.account) == (best, account)]
    return [word_ids(one.text) for one in sorted(given, key=lambda one: one.prompt)]


def scores(found: Asked, questions: Sequence[Prompt]) -> list[Row]:
    """The share of right answers, and by how much it differs, question by question, from asking once."""
    made, once = [], [False] * len(questions)
    for best in BEST_OF:
        given = [one for one in found.given if one.best_of == best]
        right = [measure.right(questions[one.prompt], one.text) for one in given]
        span = wilson(sum(right), len(right))
        what = f"{DESK}, best of {best}: score"
        made.append(Row(what, sum(right) / len(right), f"of {len(right)}", span.low, span.high))
        if best == 1:
            once = right
        else:
            changed = [float(now) - float(before) for now, before in zip(right, once, strict=True)]
            made.append(mean_of("  more than asked once", changed, ""))
    return made


# ---------------------------------------------------------------- power and false positives


def stretches(texts: Sequence[Ids], words: int) -> list[list[Ids]]:
    """Answers in order, as many for each text as make so many words; what is left at the end is no text."""
    made: list[list[Ids]] = [[]]
    for text in texts:
        made[-1].append(text)
        if sum(map(len, made[-1])) >= words:
            made.append([])
    return made[:-1]


def under(key: Key, texts: Sequence[Ids], level: float) -> dict[int, list[bool]]:
    """For every number of words: is each of the stretches called?"""
    return {
        words: [evidence(key.scheme, key.sip, some).p <= level for some in stretches(texts, words)]
        for words in WORDS
    }


def powers(what: str, found: Sequence[dict[int, list[bool]]]) -> list[Row]:
    made = []
    for words in WORDS:
        calls = [call for each in found for call in each[words]]
        if len(calls) >= 4:
            span = wilson(sum(calls), len(calls))
            unit = f"of {len(calls)} texts"
            text = f"{what}: {words:,} words, p <= {CALLED:g}"
            made.append(Row(text, sum(calls) / len(calls), unit, span.low, span.high))
    return made


def false_positives(what: str, texts: Sequence[Sequence[Ids]], keys: Sequence[Key]) -> list[Row]:
    p = [[evidence(key.scheme, key.sip, some).p for some in texts] for key in keys]
    if not texts:
        return []
    called = [np.array(p) <= level for level in FALSE]
    name = f"false positives, {what}"
    if len(texts) > 1:
        return [rate(f"{name}, at {level:g}", each, level) for each, level in zip(called, FALSE, strict=True)]
    spans = [wilson(int(each.sum()), each.size) for each in called]
    unit = f"of {len(keys):,} keys"
    return [
        Row(f"{name}, at {level:g}", float(each.mean()), unit, span.low, span.high)
        for each, span, level in zip(called, spans, FALSE, strict=True)
    ]


def chosen(pool: Pool, scale: Scale) -> list[Row]:
    """Selection among the pool's answers to each prompt, under many keys."""
    made = []
    said = [[word_ids(text) for text in texts] for texts in pool.texts]
    for best in BEST_OF[1:]:
        calls, z = [], []
        for at in range(scale.keys):
            key = account_key(provider_key(), f"account {at}")
            picked = [select(key, texts[:best]) for texts in pool.texts]
            got = [ids[one] for ids, one in zip(said, picked, strict=True)]
            calls.append(under(key, got, CALLED))
            whole = evidence(key.scheme, key.sip, got)
            z.append(over(key.scheme, whole.mean, whole.scored))
        made += powers(f"stories260K, chosen among {best} answers", calls)
        made.append(strength("  z of an answer", z, len(said) * len(z)))
    return made


# ---------------------------------------------------------------- markers


def with_habits(folder: Path, pool: Pool, scale: Scale) -> list[Row]:
    prompts = [[{"role": "user", "content": said}] for said in beginnings(scale.stories)]
    key, given = with_markers(folder / "markers.json", str(TELLER), prompts, TELLER_TOKENS)
    bear = sum(one.why == "" for one in given)
    span = wilson(bear, len(given))
    heard = markers.heard(key, markers.seen([one.text for one in given]))
    what = "markers through the gateway, stories260K: answers that bear one"
    made = [
        Row(what, bear / len(given), f"of {len(given)}", span.low, span.high),
        Row("  log10 p of all of them", heard.log_p / math.log(10), f"of {heard.scored} different places"),
    ]
    rows = json.loads((DATA / "prompts" / "alpaca_5000.json").read_text())
    alpaca = [row["output"] for row in rows if row["output"]][: scale.alpaca]
    keys = [account_key(provider_key(), f"account {at}") for at in range(scale.keys)]
    for name, texts in (("stories260K", [each[0] for each in pool.texts]), ("text-davinci-003", alpaca)):
        made += habits(name, texts, keys, decoy_keys(provider_key(), scale.decoys))
    return made


def habits(name: str, texts: Sequence[str], keys: Sequence[Key], decoys: Sequence[Key]) -> list[Row]:
    """Power against the number of answers, in groups that do not overlap, and what decoys find without."""
    bear = sum(markers.marked(keys[0], text)[1] > 0 for text in texts)
    span = wilson(bear, len(texts))
    what = f"markers, {name}"
    made = [
        Row(f"{what}: answers that bear one", bear / len(texts), f"of {len(texts):,}", span.low, span.high)
    ]
    for count in (each for each in ANSWERS if each <= len(texts)):
        calls: list[bool] = []
        places: list[int] = []
        for at, key in enumerate(keys):
            begin = at % (len(texts) // count) * count
            written = [markers.marked(key, text)[0] for text in texts[begin : begin + count]]
            heard = markers.heard(key, markers.seen(written))
            calls.append(heard.p <= CALLED)
            places.append(heard.scored)
        share, unit = wilson(sum(calls), len(calls)), f"of {len(calls)} keys"
        text = f"{what}: {count} answers, p <= {CALLED:g}"
        made.append(Row(text, sum(calls) / len(calls), unit, share.low, share.high))
        made.append(Row("  different places, median", statistics.median(places), ""))
    groups = [markers.seen(texts[at : at + 100]) for at in range(0, len(texts) - 99, 100)]
    if len(groups) < 2:
        return made
    p = np.array([[markers.heard(key, group).p for group in groups] for key in decoys])
    for level in FALSE:
        made.append(rate(f"false positives, {what}, 100 answers, at {level:g}", p <= level, level))
    return made


if __name__ == "__main__":
    main()
