"""Where the texts come from. Every source belongs to one month; the other month never sees it.

Sources with a common ancestor stand on one side: the Self-Instruct seeds, Self-Instruct's evaluation prompts
and Alpaca, which grew from the seeds; WizardLM's and UltraFeedback's evolved prompts, and GSM8K, of which
UltraFeedback holds rows. CLINC150 is one source of which each month has half of the domains.
"""

from __future__ import annotations

import gzip
import importlib.util
import json
import re
from collections import defaultdict
from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from functools import cache
from pathlib import Path
from typing import NamedTuple

from rows import DATA

from traffic.wording import Month


class Text(NamedTuple):
    """A real request and what a model or a person answered to it, "" where nothing is known."""

    prompt: str
    answer: str


@dataclass(frozen=True, slots=True)
class Source:
    name: str
    month: Month
    what: str
    licence: str
    file: str  # below shared/data; of a package its name


CLINC = "CC BY 3.0"
SOURCES = (
    Source("alpaca", "calibrate", "machine-made instructions", "CC BY-NC 4.0", "prompts/alpaca_5000.json"),
    Source(
        "self-instruct",
        "calibrate",
        "175 seed tasks that people wrote, 252 evaluation prompts, answers of six models to these",
        "Apache-2.0; CC BY-NC 4.0",
        "prompts/seed_tasks.jsonl, many_models",
    ),
    Source(
        "instructionwild",
        "calibrate",
        "prompts of real users",
        "non-commercial",
        "prompts/instructionwild_user_1.jsonl",
    ),
    Source(
        "tinystories",
        "calibrate",
        "stories by a model",
        "CDLA-Sharing-1.0",
        "text/tinystories_sample_2MB.txt",
    ),
    Source("aiohttp", "calibrate", "Python code", "Apache-2.0", "aiohttp"),
    Source("rich", "calibrate", "Python code", "MIT", "rich"),
    *(
        Source(f"clinc150/{domain}", "calibrate", "short utterances of crowd workers", CLINC, "intents")
        for domain in ("banking", "kitchen_and_dining", "auto_and_commute", "utility", "meta")
    ),
    Source(
        "ultrafeedback",
        "test",
        "prompts of users, evolved ones and tasks of FLAN, with answers of a model",
        "none stated",
        "prompts/ultrafeedback_prompts.json",
    ),
    Source("wizardlm", "test", "evolved prompts", "none stated", "prompts/WizardLM_testset.jsonl"),
    Source(
        "alpacaeval",
        "test",
        "Koala's, OASST's, Vicuna's and helpful-base's prompts, answers of six models to them",
        "CC BY-NC 4.0",
        "many_models",
    ),
    Source("gsm8k", "test", "school mathematics", "MIT", "math"),
    Source("shakespeare", "test", "plays", "public domain", "text/tinyshakespeare.txt"),
    Source("pydantic", "test", "Python code", "MIT", "pydantic"),
    Source("numpy", "test", "Python code", "BSD-3-Clause", "numpy"),
    *(
        Source(f"clinc150/{domain}", "test", "short utterances of crowd workers", CLINC, "intents")
        for domain in ("credit_cards", "travel", "home", "work", "small_talk")
    ),
)
MONTH_OF = {source.name: source.month for source in SOURCES}

ANSWERED_BY: dict[Month, tuple[str, ...]] = {
    "calibrate": (
        "gpt-3.5-turbo-0613",
        "vicuna-13b-v1.3",
        "llama-2-70b-chat-hf",
        "claude-2.1",
        "zephyr-7b-beta",
        "cohere",
    ),
    "test": (
        "gpt4_0613",
        "claude-3-sonnet-20240229",
        "Mixtral-8x7B-Instruct-v0.1",
        "Qwen1.5-72B-Chat",
        "dbrx-instruct",
        "tulu-2-dpo-7b",
    ),
}
RUN = 8  # words: a prompt of the test month that shares so long a run with one of the other month is left out


@dataclass(frozen=True, slots=True)
class Pool:
    """The texts of one source; only some of the fields are filled."""

    prompts: tuple[Text, ...] = ()
    documents: tuple[str, ...] = ()
    intents: tuple[tuple[str, ...], ...] = ()
    judged: tuple[Text, ...] = ()  # prompts with answers of several models
    code: tuple[str, ...] = ()
    topics: tuple[tuple[int, ...], ...] = ()  # numbers of the prompts that share a word


@dataclass(frozen=True, slots=True)
class Shelf:
    """Everything that a month may use, by the name of the source."""

    month: Month
    pools: dict[str, Pool]

    def of(self, names: str) -> list[Pool]:
        return [self.pools[name] for name in names.split("+")]


@cache
def shelf(month: Month) -> Shelf:
    """Raises FileNotFoundError where the data are absent."""
    pools = {source.name: _pool(source) for source in SOURCES if source.month == month}
    return Shelf(month, pools)


def _pool(source: Source) -> Pool:
    if source.name.startswith("clinc150/"):
        return Pool(intents=_intents(source.name.removeprefix("clinc150/")))
    if source.file == source.name:
        return Pool(code=_code(source.name))
    if source.name == "tinystories":
        stories = (DATA / source.file).read_text().split("<|endoftext|>")
        return Pool(documents=tuple(story.strip() for story in stories if len(story) > 200))
    if source.name == "shakespeare":
        return Pool(documents=tuple(_scenes((DATA / source.file).read_text())))
    prompts, judged = PROMPTS[source.name]()
    if source.month == "test":
        told = _runs_of_calibration()
        prompts = [text for text in prompts if not told & _runs(text.prompt)]
    answers = (text.answer for text in (*prompts, *judged))
    return Pool(
        prompts=tuple(prompts),
        judged=tuple(judged or [text for text in prompts if text.answer]),
        documents=tuple(answer for answer in answers if len(answer) > 200),
        topics=_topics([text.prompt for text in prompts]),
    )


def _alpaca() -> tuple[list[Text], list[Text]]:
    rows = json.loads((DATA / "prompts/alpaca_5000.json").read_text())
    return [Text(_joined(row["instruction"], row["input"]), row["output"]) for row in rows], []


def _self_instruct() -> tuple[list[Text], list[Text]]:
    seeds = [json.loads(line) for line in _lines("prompts/seed_tasks.jsonl")]
    first = [
        Text(_joined(row["instruction"], row["instances"][0]["input"]), row["instances"][0]["output"])
        for row in seeds
    ]
    judged = _judged("calibrate", {"selfinstruct"})
    return first + _one_each(judged), judged


def _alpacaeval() -> tuple[list[Text], list[Text]]:
    judged = _judged("test", {"koala", "oasst", "vicuna", "helpful_base"})
    return _one_each(judged), judged


def _instructionwild() -> tuple[list[Text], list[Text]]:
    rows = [json.loads(line) for line in _lines("prompts/instructionwild_user_1.jsonl")]
    return [Text(row["instruction"], "") for row in rows], []


def _ultrafeedback() -> tuple[list[Text], list[Text]]:
    rows = json.loads((DATA / "prompts/ultrafeedback_prompts.json").read_text())
    return [Text(row["prompt"].strip().strip('"'), row["generated_text"]) for row in rows], []


def _wizardlm() -> tuple[list[Text], list[Text]]:
    return [
        Text(json.loads(line)["Instruction"], "") for line in _lines("prompts/WizardLM_testset.jsonl")
    ], []


def _gsm8k() -> tuple[list[Text], list[Text]]:
    rows = [json.loads(line) for part in ("test", "train") for line in _lines(f"math/gsm8k_{part}.jsonl")]
    return [Text(row["question"], re.sub(r"<<.*?>>", "", row["answer"])) for row in rows], []


PROMPTS = {
    "alpaca": _alpaca,
    "self-instruct": _self_instruct,
    "instructionwild": _instructionwild,
    "ultrafeedback": _ultrafeedback,
    "wizardlm": _wizardlm,
    "alpacaeval": _alpacaeval,
    "gsm8k": _gsm8k,
}


def _joined(instruction: str, given: str) -> str:
    return f"{instruction}\n\n{given}" if given else instruction


def _lines(name: str) -> list[str]:
    return (DATA / name).read_text().splitlines()


def _judged(month: Month, sets: set[str]) -> list[Text]:
    """Prompts of some of AlpacaEval's sets with the answers of the month's models, model after model."""
    found = []
    for model in ANSWERED_BY[month]:
        with gzip.open(DATA / "many_models" / f"{model}.json.gz") as file:
            rows = json.load(file)
        found += [Text(row["instruction"], row["output"]) for row in rows if row["dataset"] in sets]
    return found


def _one_each(judged: list[Text]) -> list[Text]:
    return list({text.prompt: text for text in judged}.values())


def _intents(domain: str) -> tuple[tuple[str, ...], ...]:
    every = _clinc()
    return tuple(every[intent] for intent in json.loads((DATA / "intents/domains.json").read_text())[domain])


@cache
def _clinc() -> dict[str, tuple[str, ...]]:
    found = defaultdict(list)
    parts = json.loads((DATA / "intents/data_full.json").read_text())
    for part in ("train", "val", "test"):
        for text, intent in parts[part]:
            found[intent].append(text)
    return {intent: tuple(texts) for intent, texts in found.items()}


def _scenes(text: str, length: int = 900) -> Iterable[str]:
    """Speeches that follow each other, together at least `length` characters."""
    scene = ""
    for speech in text.split("\n\n"):
        scene += speech + "\n\n"
        if len(scene) >= length:
            yield scene.strip()
            scene = ""


def _code(package: str) -> tuple[str, ...]:
    """Functions and classes, cut where one begins."""
    spec = importlib.util.find_spec(package)
    if spec is None or spec.origin is None:
        raise FileNotFoundError(f"the package {package} is not installed")
    folder = Path(spec.origin).parent
    found = []
    for path in sorted(folder.rglob("*.py")):
        if "tests" not in path.parts:
            pieces = re.split(r"\n(?=def |class |async def |    def |    async def )", path.read_text())
            found += [piece.rstrip() for piece in pieces if 200 < len(piece) < 2_500]
    return tuple(found)


@cache
def _runs_of_calibration() -> frozenset[str]:
    names = [source.name for source in SOURCES if source.month == "calibrate" and source.name in PROMPTS]
    return frozenset(run for name in names for text in PROMPTS[name]()[0] for run in _runs(text.prompt))


def _runs(text: str) -> set[str]:
    """Every run of `RUN` words; of a shorter text the whole."""
    words = re.findall(r"\w+", text.lower())
    return {" ".join(words[place : place + RUN]) for place in range(max(1, len(words) - RUN + 1))}


def _topics(texts: Sequence[str]) -> tuple[tuple[int, ...], ...]:
    """For each word that neither few nor many of the texts hold: which of them hold it."""
    held: dict[str, list[int]] = defaultdict(list)
    for number, text in enumerate(texts):
        for word in dict.fromkeys(re.findall(r"[a-z]{4,}", text.lower())):
            held[word].append(number)
    few, many = max(4, len(texts) // 250), len(texts) // 20
    return tuple(tuple(numbers) for _, numbers in sorted(held.items()) if few <= len(numbers) <= many)
