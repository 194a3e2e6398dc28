"""Test questions hidden among rows to learn from: which kinds of copies curate's leak check finds.

    .venv/bin/python benchmarks/leaks.py [--quick] [--json FILE]

Questions of GSM8K's test set are planted among 20,000 prompts made of stretches of real answers: as they
stand, lightly edited, and put in other words by rules. The rules change what a re-worded copy changes: other
names, other numbers, common words for one another, the order of the sentences, and all of these at once;
they write worse English than a person and share more with the original, so what they show is an upper bound
for real paraphrases, which mostly pass. Curate holds each prompt against the whole test set. A row counts as
found at the recipe's default threshold, and at the 0.2 that a careful user would set; clean prompts, and
GSM8K's own training questions, which are of the same kind and no copies, show what the thresholds cost.
"""

from __future__ import annotations

import json
import random
import re
import time
from collections.abc import Callable

from dedup import share, stretches
from rows import DATA, Row, arguments, header, need, show

from stillhouse.curate.leaks import Exam, outside
from stillhouse.recipe import Curate
from stillhouse.similar import Coverage, NgramIndex
from stillhouse.text import conversation, words

SEED = 13
CAREFUL = 0.2
NAMES = "Aroha Bela Chidi Darya Emre Farah Goran Hana Ivo Jun Kamal Lena Mirek Noor".split()
SAME = [
    pair.split("/")
    for pair in "buys/purchases sells/trades gets/receives makes/earns needs/requires has/owns many/lots-of "
    "total/overall each/every how-much/what-amount money/cash then/afterwards left/remaining "
    "also/additionally day/date week/seven-days friends/pals house/home children/kids takes/uses "
    "bought/purchased sold/traded gave/handed went/travelled more/extra away/off".split()
]
OTHER = {a.replace("-", " "): b.replace("-", " ") for a, b in SAME} | {
    b.replace("-", " "): a.replace("-", " ") for a, b in SAME
}
_SAME = re.compile(r"\b(?:" + "|".join(sorted(OTHER, key=len, reverse=True)) + r")\b", re.IGNORECASE)
_NAME = re.compile(
    r"(?<=[a-z,] )[A-Z][a-z]+|^[A-Z][a-z]+(?= (?:has|is|was|bought|sold|had|gets|makes|wants)\b)"
)
_NUMBER = re.compile(r"\d+")

Change = Callable[[str, random.Random], str]


def verbatim(text: str, rng: random.Random) -> str:
    return text


def dressed(text: str, rng: random.Random) -> str:
    """Another case, other marks, a line before and after."""
    return "Please solve this step by step.\n\n" + text.upper().replace(",", " ;") + "\n\nGive a number."


def edited(text: str, rng: random.Random) -> str:
    """One word in twelve replaced."""
    found = text.split()
    for place in range(rng.randrange(12), len(found), 12):
        found[place] = rng.choice(("green", "very", "about", "window", "seven"))
    return " ".join(found)


def renamed(text: str, rng: random.Random) -> str:
    names = {name: rng.choice(NAMES) for name in sorted(set(_NAME.findall(text)))}
    return re.sub(r"\b[A-Z][a-z]+\b", lambda m: names.get(m.group(), m.group()), text)


def renumbered(text: str, rng: random.Random) -> str:
    return _NUMBER.sub(lambda m: str(int(m.group()) + rng.randint(1, 9)), text)


def replaced(text: str, rng: random.Random) -> str:
    return _SAME.sub(lambda m: OTHER[m.group().lower()], text)


def reordered(text: str, rng: random.Random) -> str:
    *given, asked = re.split(r"(?<=[.?!]) +", text.strip())
    rng.shuffle(given)
    return " ".join([asked, *given])


def all_at_once(text: str, rng: random.Random) -> str:
    for change in (renamed, renumbered, replaced, reordered):
        text = change(text, rng)
    return text


def thinned(text: str, rng: random.Random) -> str:
    """All at once, and every fifth word replaced: no 8 words in a row are left."""
    found = all_at_once(text, rng).split()
    for place in range(rng.randrange(5), len(found), 5):
        found[place] = rng.choice(("indeed", "such", "certain", "given", "here"))
    return " ".join(found)


KINDS: tuple[tuple[str, Change], ...] = (
    ("as it stands", verbatim),
    ("other case and marks, in an instruction", dressed),
    ("one word in twelve replaced", edited),
    ("other names", renamed),
    ("other numbers", renumbered),
    ("other words for common ones", replaced),
    ("sentences in another order", reordered),
    ("names, numbers, words and order", all_at_once),
    ("all these, and one word in five", thinned),
)


def questions(name: str) -> list[str]:
    lines = need(DATA / "math" / name).read_text().splitlines()
    return [json.loads(line)["question"] for line in lines]


def main() -> None:
    options = arguments(__doc__ or "")
    rng = random.Random(SEED)
    test, train = questions("gsm8k_test.jsonl"), questions("gsm8k_train.jsonl")
    clean = stretches(rng)[: 4_000 if options.quick else 20_000]
    index = NgramIndex(test, 0.01)
    per = 60 if options.quick else 146
    planted = [(kind, change(text, rng)) for kind, change in KINDS for text in rng.sample(test, per)]
    whole = [("clean", text) for text in clean] + [("train", text) for text in train] + planted
    order = rng.sample(range(len(whole)), len(whole))
    given = [{"messages": [{"role": "user", "content": whole[place][1]}]} for place in order]
    threshold = Curate().leaks
    found: dict[float, dict[int, bool]] = {}
    seconds = 0.0
    for least in (threshold, CAREFUL):
        exam = Exam("test", index, Coverage(index), frozenset(conversation([("", text)]) for text in test))
        judge = outside(exam, least)
        started = time.perf_counter()
        verdicts = [v for at in range(0, len(given), 4096) for v in judge(given[at : at + 4096])]
        seconds = time.perf_counter() - started
        found[least] = {
            place: verdict.ruling == "drop" for place, verdict in zip(order, verdicts, strict=True)
        }

    def caught(kind: str, least: float) -> tuple[int, int]:
        places = [place for place, (name, _) in enumerate(whole) if name == kind]
        return sum(found[least][place] for place in places), len(places)

    rows = [Row(f"prompts held against {len(test):,} test questions", len(given) / seconds, "rows/s")]
    for kind, _ in KINDS:
        target = (
            {"target": "1.0", "holds": caught(kind, threshold)[0] == per} if kind == "as it stands" else {}
        )
        rows.append(share(f"{kind}: found at {threshold:g}", *caught(kind, threshold), **target))
        rows.append(share(f"  {kind}: at {CAREFUL:g}", *caught(kind, CAREFUL)))
    for kind, name in (("clean", "prompts on other subjects"), ("train", "GSM8K's training questions")):
        rows.append(share(f"{name}: taken for leaks at {threshold:g}", *caught(kind, threshold)))
        rows.append(share(f"  {name}: at {CAREFUL:g}", *caught(kind, CAREFUL)))
    coverage = Coverage(index)
    coverage.add([text for kind, text in whole if kind == "train"])
    held, total = coverage.words()
    rows.append(Row("words of the test in 8-grams of GSM8K's training questions", held / total, ""))
    short = sum(len(words(text)) < 8 for text in test)
    rows.append(Row("test questions with fewer than 8 words, found only whole", short, ""))
    show(header(SEED, ["stillhouse", "numpy"]), rows, options.json)


if __name__ == "__main__":
    main()
