"""grow: further prompts, written by the teacher, each judged against what is there and what is tested."""

from __future__ import annotations

import hashlib
import math
from collections import Counter
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass, field, replace
from itertools import chain
from typing import Any

import pyarrow as pa
import pyarrow.parquet as pq
import rfc8785

from stillhouse.ask import Question, Sampling, Teacher, answers
from stillhouse.collect.prompts import PromptSet
from stillhouse.collect.requests import (
    WANTED,
    Means,
    Request,
    by_family,
    read_list,
    read_means,
    request,
    text_of,
)
from stillhouse.errors import UsageError, storage
from stillhouse.ledger import Ledger
from stillhouse.recipe import Grow, Recipe
from stillhouse.records import Completion, Exchange, Message, Prompt
from stillhouse.refusals import declines, declines_as_prompt
from stillhouse.similar import NearIndex, NgramIndex
from stillhouse.text import is_unicode, normalise, words
from stillhouse.workspace import RunFolder, read_marker, write_json

FLOOR = 0.1  # of the prompts asked for: when fewer are new, growing ends
LEAST = 20  # prompts asked for before that is judged
SHORT, LONG = 3, 200  # words of a prompt, where the source has none shorter or longer
SEED = 400  # words of the longest prompt that is shown to the teacher
OVERLAP = 0.5  # share of a prompt's 8-grams that the test prompts may hold

GROWN = pa.schema(
    [
        ("id", pa.string()),  # null for what was refused
        ("text", pa.string()),
        ("reason", pa.string()),  # why it was refused; empty for a new prompt
        ("of", pa.string()),  # the prompt that it repeats
        ("method", pa.string()),
        ("family", pa.string()),
        ("group", pa.string()),
        ("seeds", pa.list_(pa.string())),
        ("question", pa.int32()),  # the number of the request that brought it
        ("place", pa.int32()),  # its place in the list; null for a reply that is no list
        ("key", pa.string()),
        ("leaf", pa.int64()),
    ]
)

Row = dict[str, Any]
Put = Callable[[Sequence[Question], Teacher, Sampling], None]


@dataclass(frozen=True, slots=True)
class Order:
    """So many new prompts of a family, or of any."""

    family: str | None
    count: int


@dataclass(slots=True)
class Grown:
    """What came of an order. `rows` holds every prompt that was written and every reply that is no list, in
    order, those refused with their reason; `dry` says that too few of the last ones were new."""

    order: Order
    prompts: list[Prompt] = field(default_factory=list)
    rows: list[Row] = field(default_factory=list)
    questions: int = 0
    dry: bool = False

    @property
    def left(self) -> int:
        return 0 if self.dry else self.order.count - len(self.prompts)

    def refused(self) -> Counter[str]:
        return Counter(row["reason"] for row in self.rows if row["reason"])


def check_growth(recipe: Recipe, prompts: PromptSet) -> None:
    """What can be known to fail before anybody is asked. Raises UsageError."""
    if recipe.prompts.grow is None:
        return
    read_means(recipe.prompts.grow)
    if recipe.teacher.imported:
        raise UsageError(
            "prompts cannot be grown from imported answers",
            "the teacher of [prompts.grow] is [teacher], and there is nobody to ask",
            "remove [prompts.grow], or give [teacher] an endpoint or a folder",
        )
    if not any(map(is_seed, prompts.train)):
        raise UsageError(
            "no training prompt can be a seed",
            f"a seed is one question of at most {SEED} words, with or without a system prompt",
            "remove [prompts.grow], or give such prompts",
        )


def is_seed(prompt: Prompt) -> bool:
    """One question, which stands alone and is short enough to be shown."""
    roles = tuple(message.role for message in prompt.messages)
    return roles in (("user",), ("system", "user")) and 0 < len(words(text_of(prompt))) <= SEED


def settings_of(recipe: Recipe) -> Grow:
    """By what prompts are grown; a focus needs no [prompts.grow]."""
    return recipe.prompts.grow or Grow(method="self_instruct", count=1)


def orders(recipe: Recipe, prompts: PromptSet) -> list[Order]:
    """What is to be grown: for [prompts.grow], and what a focus wants and the source does not have."""
    settings = recipe.prompts.grow
    wanted = [] if settings is None else [Order(None, settings.count)]
    if not recipe.teacher.imported:
        wanted += [Order(family, count) for family, count in sorted(prompts.short.items())]
    return wanted


def grow(
    recipe: Recipe, prompts: PromptSet, teacher: Teacher, ledger: Ledger, put: Put | None = None
) -> list[Grown]:
    """Ask for prompts until each order is filled or too few of them are new, and judge every one.

    `put` has questions asked and answered in the ledger; without it nothing is asked, and what the ledger
    holds says how far growing has come. Seeds are training prompts, never test prompts. All follows from
    the recipe, the prompts and the answers: the same call later asks nothing again and gives the same.
    Raises what `read_means` and `put` raise.
    """
    wanted = orders(recipe, prompts)
    if not wanted:
        return []
    settings = settings_of(recipe)
    means, judge = read_means(settings), Judge(prompts)
    sampling = Sampling(settings.temperature, 1.0, settings.max_tokens)
    asked = replace(teacher, system="")  # it says how to answer such prompts, not how to write them
    base = by_family(filter(is_seed, prompts.train))
    more = by_family(filter(is_seed, prompts.further))

    def reply(questions: Sequence[Question]) -> list[Exchange | None]:
        if put is not None:
            put(questions, asked, sampling)
        return [exchange for _, exchange in answers(questions, asked, sampling, ledger)]

    done = []
    for order in wanted:
        families: Mapping[str, Sequence[Prompt]] = base
        if order.family is not None:
            own = [*base.get(order.family, ()), *more.get(order.family, ())]
            families = {order.family: own} if own else {}
        seed = f"{recipe.run.seed}/{order.family or ''}"
        done.append(_fill(order, families, means, seed, judge, reply, asking=put is not None))
    return done


def _fill(
    order: Order,
    families: Mapping[str, Sequence[Prompt]],
    means: Means,
    seed: str,
    judge: Judge,
    reply: Callable[[Sequence[Question]], list[Exchange | None]],
    asking: bool,
) -> Grown:
    """Round by round: as many requests as would fill the rest if all that they bring were new."""
    grown = Grown(order, dry=not families)
    asked, before = 0, 0
    while grown.left:
        first, each = grown.questions, WANTED[means.method]
        numbers = range(first, first + math.ceil(grown.left / each))
        requests = [request(number, families, means, seed) for number in numbers]
        replies = reply([_question(one, seed) for one in requests])
        for one, exchange in zip(requests, replies, strict=True):
            if exchange is not None:
                _take(grown, one, exchange, means, judge)
        if not asking and None in replies:
            break
        grown.questions += len(requests)
        asked += each * len(requests)
        if asked >= LEAST:
            grown.dry = grown.left > 0 and len(grown.prompts) - before < FLOOR * asked
            asked, before = 0, len(grown.prompts)
    return grown


def _question(one: Request, seed: str) -> Question:
    """The number makes two requests of the same text two questions, and is the seed by which they differ."""
    return Question(f"grow/{seed}/{one.number}", (Message("user", one.text),), one.number)


def _take(grown: Grown, one: Request, exchange: Exchange, means: Means, judge: Judge) -> None:
    """Add the prompts of one reply, and a row for all that it holds."""
    first = one.seeds[0]
    common: Row = {
        "method": means.method,
        "family": first.family,
        "group": first.group or first.id,
        "seeds": [seed.id for seed in one.seeds],
        "question": one.number,
        "key": exchange.key,
        "leaf": exchange.leaf,
    }
    listed = read_reply(exchange.completion)
    if isinstance(listed, str):
        bad = {"text": _storable(exchange.completion.text), "reason": listed, "of": None, "place": None}
        grown.rows.append({"id": None, **bad, **common})
        return
    told = Told(one)
    for place, item in enumerate(listed):
        text, name = item.strip(), None
        reason, of = judge.judge(text, told) if grown.left else ("not needed", None)
        if not reason:
            name = name_of(text)
            messages = (*first.messages[:-1], Message("user", text))
            grown.prompts.append(Prompt(name, messages, first.family, common["group"], tools=first.tools))
        row = {"id": name, "text": _storable(text), "reason": reason, "of": of, "place": place}
        grown.rows.append({**row, **common})


def name_of(text: str) -> str:
    """The id of a grown prompt: the same wherever and whenever it is grown."""
    return f"grown-{hashlib.sha256(text.encode()).hexdigest()[:16]}"


def read_reply(completion: Completion) -> list[str] | str:
    """The prompts that a reply lists, or why there are none."""
    if completion.refusal or completion.finish_reason == "content_filter":
        return "refusal"
    if completion.finish_reason == "length":
        return "cut off"
    listed = read_list(completion.text)
    if listed is None:
        return "refusal" if declines(completion.text) else "not a list"
    return listed


class Told:
    """What the teacher was shown with a request."""

    def __init__(self, one: Request) -> None:
        self._text = normalise(one.echo)
        self._instruction = NgramIndex([one.echo])
        self._examples = NgramIndex([text_of(seed) for seed in one.seeds])

    def is_repeated_by(self, text: str) -> bool:
        return normalise(text) in self._text or held_by(self._instruction, text) is not None

    def own_parts(self, text: str) -> list[str]:
        """The text without the stretches of 8 words or more that are also in an example.

        What a family's prompts have in common, such as the way in which an answer is wanted, says nothing
        about where a prompt comes from.
        """
        parts, at = [], 0
        for span in next(self._examples.overlaps([text])).spans:
            if span.start > at:
                parts.append(text[at : span.start])
            at = max(at, span.end)
        return [*parts, text[at:]]


class Judge:
    """Whether a text is a new prompt, by all prompts that are there and those that it has accepted.

    Each turn of a user counts by itself, so that what repeats a part of a conversation is found too. Memory:
    that of `NearIndex` for every training and test prompt, and of `NgramIndex` for the test prompts.
    """

    def __init__(self, prompts: PromptSet) -> None:
        self._short, self._long = SHORT, LONG
        self._names: list[str] = []  # of the reference texts, those of the test prompts first
        tested = list(self._turns(prompts.test))
        self._tested = len(tested)
        self._tests = NgramIndex(tested)
        learnt = self._measured(self._turns(chain(prompts.train, prompts.further)))
        self._near = NearIndex(reference=chain(tested, learnt))
        self._given: list[str] = []  # names of the texts that were compared, kept or not

    def judge(self, text: str, told: Told) -> tuple[str, str | None]:
        """Why the text is no new prompt, with the prompt that it repeats; ("", None) for one that is new, and
        with which the following ones are then compared."""
        if not is_unicode(text):
            return "not Unicode", None
        if not text:
            return "empty", None
        size = len(words(text))
        if size < self._short or size > self._long:
            return "too short" if size < self._short else "too long", None
        if declines_as_prompt(text):
            return "refusal", None
        if told.is_repeated_by(text):
            return "repeats the instruction", None
        for part in told.own_parts(text):
            if (held := held_by(self._tests, part)) is not None:
                return "overlaps a test prompt", self._names[held]
        repeat = self._near.add(text)
        self._given.append(name_of(text))
        if repeat is None:
            return "", None
        if not repeat.reference:
            return "repeats a grown prompt", self._given[repeat.of]
        kind = "test" if repeat.of < self._tested else "training"
        return f"repeats a {kind} prompt", self._names[repeat.of]

    def _turns(self, prompts: Iterable[Prompt]) -> Iterator[str]:
        for prompt in prompts:
            for message in prompt.messages:
                if message.role == "user":
                    self._names.append(prompt.id)
                    yield message.content

    def _measured(self, texts: Iterable[str]) -> Iterator[str]:
        for text in texts:
            size = len(words(text))
            self._short, self._long = min(self._short, size), max(self._long, size)
            yield text


def held_by(index: NgramIndex, text: str) -> int | None:
    """The text of the index that holds 13 words in a row of this one, or with others half of its 8-grams."""
    found = next(index.overlaps([text]))
    return found.spans[0].reference if found.copied or (found.ratio or 0.0) >= OVERLAP else None


def keep_record(run: RunFolder, recipe: Recipe, grown: Sequence[Grown], ledger: Ledger) -> dict[str, Any]:
    """Write `grown.parquet` and log it: one `transform` leaf, and one `row` leaf for each new prompt, which
    names the exchange that brought it. Returns the counts and the leaf; what is there already stays."""
    rows = [row for one in grown for row in one.rows]
    digest = hashlib.sha256(b"".join(rfc8785.dumps(row) for row in rows)).hexdigest()
    before = read_marker(run, "grow")
    if before is not None and before["digest"] == digest and run.grown.exists():
        return before
    with storage("write", run.grown):
        pq.write_table(pa.Table.from_pylist(rows, schema=GROWN), run.grown)
    counts = {
        "wanted": sum(one.order.count for one in grown),
        "grown": sum(len(one.prompts) for one in grown),
        "refused": dict(sum((one.refused() for one in grown), Counter[str]())),
        "questions": sum(one.questions for one in grown),
        "dry": any(one.dry for one in grown),
    }
    settings = settings_of(recipe).model_dump(include={"method", "temperature"})
    transform = ledger.append(
        "transform",
        {"run": run.root.name, "stage": "grow", "settings": settings, "digest": digest, **counts},
    )
    new = [row for row in rows if not row["reason"]]
    ledger.append_many(
        [
            (
                "row",
                {"run": run.root.name, "transform": transform, "exchanges": [row["leaf"]]},
                {"row": rfc8785.dumps(row)},
            )
            for row in new
        ]
    )
    record = {**counts, "digest": digest, "transform": transform}
    write_json(run.marker("grow"), record)
    return record


def _storable(text: str) -> str:
    return text if is_unicode(text) else text.encode(errors="replace").decode()
