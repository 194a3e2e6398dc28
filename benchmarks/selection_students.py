"""Do students of answers that the gateway marked bear the mark? As benchmarks/radioactivity.py teaches them.

The teacher's answers to each opening are chosen from 4 or 8, all or a quarter of them, or written with an
account's markers; the student is asked for stories of its own, and these are tested with the key, and with
keys that marked nothing. With selection there is no test with the log (`stillhouse.watermark.radioactivity`
refuses it). With markers there is: at which places an answer has one does not depend on the key, so that
those of the log can be looked at alone. Beside each z stands that of a student that follows the mixture it
was taught.
"""

from __future__ import annotations

import json
import math
import statistics
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import radioactivity as radio
from radioactivity import Answer, Scene, false_calls, openings, prepared, served, taught, uniform, written
from rows import Row
from selection_asking import provider_key

from stillhouse.guard import markers
from stillhouse.guard.markers import Seen
from stillhouse.models.local import LocalModel, ids_text, text_ids
from stillhouse.stats.tails import log_binomial_tail
from stillhouse.watermark import Evidence, Key, account_key, decoy_keys, evidence, word_ids
from stillhouse.watermark.radioactivity import answers
from stillhouse.watermark.selection import select

SEED, MOST = 71, 8


@dataclass(frozen=True, slots=True)
class Lesson:
    """For a `share` of the openings the student is taught the best of so many, or an answer with markers."""

    best_of: int = 1
    markers: bool = False
    share: float = 0.0

    @property
    def name(self) -> str:
        if not self.share:
            return "unmarked"
        return f"{self.share:g} " + ("with markers" if self.markers else f"best of {self.best_of}")


UNMARKED = Lesson()
SELECTED = (Lesson(8, False, 1.0), Lesson(4, False, 1.0))
MARKED = (Lesson(1, True, 1.0),)


@dataclass(frozen=True, slots=True)
class Scale:
    seeds: int
    taught: radio.Scale
    decoys: int


FULL = Scale(3, radio.FULL, 1000)
QUICK = Scale(1, radio.QUICK, 50)


@dataclass(frozen=True, slots=True)
class Pool:
    """`MOST` answers of the teacher to each opening, as ids and as text."""

    scene: Scene
    answers: list[list[Answer]]
    texts: list[list[str]]


def pool(folder: Path, scale: Scale) -> Pool:
    place = folder / "students"
    place.mkdir(exist_ok=True)
    scene = prepared(place, scale.taught)
    asked = [before for before, _ in scene.plain]
    more = [served(place / f"pool {at}.json", scene.teacher, asked, None, SEED + at) for at in range(1, MOST)]
    each = [list(every) for every in zip(scene.plain, *more, strict=True)]
    texts = [[ids_text(scene.teacher, after) for _, after in every] for every in each]
    return Pool(scene, each, texts)


def figures(folder: Path, scale: Scale) -> list[Row]:
    found = pool(folder, scale)

    def taught_so(lesson: Lesson) -> list[dict[str, Any]]:
        return [student(found, scale, lesson, seed) for seed in range(scale.seeds)]

    none = taught_so(UNMARKED)
    made = cell("student of unmarked answers, selection", none, UNMARKED)
    for lesson in SELECTED:
        what = f"student of {lesson.share:.0%} best of {lesson.best_of}"
        made += cell(what, taught_so(lesson), lesson)
    chances = [each["chances"] for each in none]
    made += false_calls("false calls of students by selection", chances)
    made.append(uniform("unmarked students' p by selection", chances))
    made += habits("student of unmarked answers", none)
    for lesson in MARKED:
        made += habits(f"student of {lesson.share:.0%} with markers", taught_so(lesson))
    return made


def student(found: Pool, scale: Scale, lesson: Lesson, seed: int) -> dict[str, Any]:
    """What is heard of the student of this seed, in its own stories: with the key of the seed's account."""
    file = found.scene.folder / f"{lesson.name}, seed {seed}.json"
    if file.exists():
        said: dict[str, Any] = json.loads(file.read_text())
        return said
    key, scene = account_key(provider_key(), f"student {seed}"), found.scene
    rows = taught_rows(len(scene.plain), lesson, seed)
    told, gain = answers_of(found, lesson, key, rows)
    one = taught(scene, f"student {lesson.name} {seed}", told, radio.SEED + seed)
    own = written(one, openings(scene.unseen, scene.scale.written), None, SEED + 1000 + seed)
    texts = [ids_text(one, after) for _, after in own]
    before, words = [word_ids(ids_text(one, ids)) for ids, _ in own], [word_ids(text) for text in texts]

    def selection(each: Key) -> Evidence:
        return answers(each.scheme, each.sip, words, before)

    seen = markers.seen(texts)
    heard, habit = selection(key), markers.heard(key, seen)
    known = markers.heard(key, at_places(seen, found, rows or range(len(scene.plain))))
    decoys = [] if lesson.share else decoy_keys(key, scale.decoys)
    said = {
        "selection": {"scored": heard.scored, "mean": heard.mean, "log_p": heard.log_p, "gain": gain},
        "markers": {"scored": habit.scored, "mean": habit.mean, "log_p": habit.log_p},
        "markers and log": {"scored": known.scored, "mean": known.mean, "log_p": known.log_p},
        "chances": [selection(decoy).log_p for decoy in decoys],
    }
    radio.write(file, said)
    return said


def taught_rows(count: int, lesson: Lesson, seed: int) -> list[int]:
    """Openings whose answers are marked."""
    order: list[int] = np.random.default_rng([SEED, seed]).permutation(count).tolist()
    return order[: round(lesson.share * count)]


def answers_of(found: Pool, lesson: Lesson, key: Key, rows: Sequence[int]) -> tuple[list[Answer], float]:
    """What the student is taught, and by how much a word of what was marked scores above chance."""
    told = list(found.scene.plain)
    for at in rows:
        picked = select(key, found.texts[at][: lesson.best_of]) if lesson.best_of > 1 else 0
        told[at] = found.answers[at][picked]
        if lesson.markers:
            told[at] = marked(found, at, key)
    words = [word_ids(ids_text(found.scene.teacher, told[at][1])) for at in rows]
    return told, (evidence(key.scheme, key.sip, words).mean or 1.0) - 1.0


def at_places(seen: Seen, found: Pool, rows: Sequence[int]) -> Seen:
    """What was seen at the places that answers to these openings have as well: of an unmarked student all
    openings', as if they had been served to it."""
    served = markers.seen([found.texts[at][0] for at in rows]).variants
    return Seen(seen.sites, {place: variant for place, variant in seen.variants.items() if place in served})


def marked(found: Pool, at: int, key: Key) -> Answer:
    """The answer with its markers; the ids that it had where there is no place for one."""
    before, after = found.answers[at][0]
    text, sites = markers.marked(key, found.texts[at][0])
    return (before, encoded(found.scene.teacher, text)) if sites else (before, after)


def encoded(teacher: LocalModel, text: str) -> list[int]:
    """Without the token that begins a text: an answer goes on from its prompt."""
    return text_ids(teacher, text)[1:]


# ---------------------------------------------------------------- rows


def cell(what: str, found: Sequence[dict[str, Any]], lesson: Lesson) -> list[Row]:
    heard = [each["selection"] for each in found]
    ten = sorted(each["log_p"] / math.log(10) for each in heard)
    scored = int(np.median([each["scored"] for each in heard]))
    z = [(each["mean"] - 1) * math.sqrt(each["scored"]) for each in heard]
    made = Row(f"{what}: log10 p", statistics.median(ten), f"of {scored:,} scored", ten[0], ten[-1])
    middle = statistics.fmean(z)
    if not lesson.share:
        return [made, Row("  z, mean", middle, "", min(z), max(z))]
    ideal = statistics.fmean(lesson.share * each["gain"] * math.sqrt(each["scored"]) for each in heard)
    return [made, Row("  z, mean", middle, "", min(z), max(z), "theory", ideal, middle / ideal)]


def habits(what: str, found: Sequence[dict[str, Any]]) -> list[Row]:
    made = []
    for test in ("markers", "markers and log"):
        heard = [each[test] for each in found]
        ten = sorted(each["log_p"] / math.log(10) for each in heard)
        fit = [each["mean"] for each in heard if each["scored"]]
        name = f"{what}, {test}: places as the key prefers"
        unit = f"of {int(np.median([each['scored'] for each in heard]))}"
        row = Row(name, None, unit)
        if fit:
            mean = statistics.fmean(fit)
            row = Row(name, mean, unit, min(fit), max(fit), "by chance", 0.5, mean / 0.5)
        scored = sum(each["scored"] for each in heard)
        fits = round(sum(each["scored"] * each["mean"] for each in heard if each["scored"]))
        together = float(log_binomial_tail(fits, scored, 0.5)) / math.log(10) if scored else 0.0
        made += [
            row,
            Row("  log10 p", statistics.median(ten), "", ten[0], ten[-1]),
            Row("  log10 p of all seeds together", together, f"{fits} of {scored}"),
        ]
    return made
