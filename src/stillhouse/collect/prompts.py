"""Prompt sources: the shipped world, files (JSONL, CSV, Parquet) and Hugging Face data sets."""

from __future__ import annotations

import hashlib
import json
import re
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass, field, replace
from itertools import chain, islice
from typing import Any, Literal, cast

import rfc8785

from stillhouse import recipe as recipes
from stillhouse.collect.sources import Broken, read_rows
from stillhouse.collect.spool import PromptFile, Prompts, Split, Spool, extended
from stillhouse.errors import UsageError
from stillhouse.recipe import Recipe
from stillhouse.records import Message, Prompt, Role
from stillhouse.text import conversation, is_unicode

ROLES = ("system", "user", "assistant", "tool")
EXTRA = ("name", "tool_calls", "tool_call_id", "function_call")  # of a message, beside role and text
NAMED = 20  # broken rows that are named one by one; all are counted
TRAIN, TEST = 3000, 1000  # prompts of the shipped world, where the recipe names no number
LOOKED = 100  # rows of the shipped world, which has no end, that a focus looks through for each prompt


@dataclass(frozen=True, slots=True)
class PromptSet:
    """The prompts to collect and the prompts to test on, kept apart.

    `further` are those that a focus takes from the source beyond `train`, and `short` says how many of each
    family it asks for in vain: they can only be grown.
    """

    train: Prompts
    test: Prompts
    broken: tuple[Broken, ...] = ()
    leaked: int = 0  # training prompts left out because the test slice asks the same
    further: tuple[Prompt, ...] = ()
    short: Mapping[str, int] = field(default_factory=dict)

    def scorers(self) -> set[str]:
        """The names of all scorers."""
        more = {prompt.scorer for prompt in self.further if prompt.scorer}
        if isinstance(self.train, PromptFile):
            return self.train.scorers() | more
        return {prompt.scorer for prompt in (*self.train, *self.test) if prompt.scorer} | more

    def whole(self, grown: Sequence[Prompt]) -> PromptSet:
        """With all that is to be learned from in `train`."""
        if not (more := (*self.further, *grown)):
            return self
        train, test = extended(self.train, self.test, more)
        return replace(self, train=train, test=test, further=())


def load_prompts(recipe: Recipe) -> PromptSet:
    """The prompts of a recipe, read to disk.

    Raises UsageError when the source is missing or holds no usable prompt. A broken row is no error: it
    is left out, named (the first few) and counted.
    """
    settings, testing = recipe.prompts, recipe.evaluate
    test_source = testing.source or (settings.source if settings.source.startswith("embedded:") else None)
    spool = Spool()
    split = _always("train") if test_source else _held_out(testing.held_out, recipe.run.seed)
    rows = _prompts(settings, "train", settings.seed)
    count, broken = _read(rows, settings.count or _own_count(settings.source, TRAIN), spool, split)
    if not count:
        raise _no_prompt(settings.source, settings.prompt, broken)
    if test_source is not None:
        other = settings.model_copy(update={"source": test_source})
        mark = "" if test_source.startswith("embedded:") else "test-"
        tested = _prompts(other, testing.split, testing.seed)
        most = testing.count or _own_count(test_source, TEST)
        count, more = _read(tested, most, spool, _always("test"), mark)
        if not count:
            raise _no_prompt(test_source, settings.prompt, more)
        broken += more
    train, test, twice, leaked = spool.close()
    broken += [Broken(place, f"the id {name!r} was used before") for place, name in twice]
    if not len(train):
        raise UsageError(
            f"no training prompt is left of {settings.source}",
            f"all {leaked} are also test prompts, and what is tested is never learned from"
            if leaked
            else "every prompt was kept back for the test",
            "give `evaluate.source` other prompts than `prompts.source`, or leave it out"
            if testing.source
            else "lower `evaluate.held_out`, or give more prompts or groups",
        )
    if settings.focus is None:
        return PromptSet(train, test, tuple(broken), leaked)
    wanted = settings.focus.further
    if settings.source.startswith("embedded:"):
        rows = islice(rows, LOOKED * sum(wanted.values()))
    further, short, more = _further(rows, wanted, split, chain(train, test))
    return PromptSet(train, test, (*broken, *more), leaked, further, short)


def _further(
    rows: Iterator[tuple[str, Prompt | Broken]],
    wanted: Mapping[str, int],
    split: Callable[[Prompt], Split],
    used: Iterable[Prompt],
) -> tuple[tuple[Prompt, ...], dict[str, int], list[Broken]]:
    """Of the rows that are left of a source those of the wanted families that are no test prompts and ask
    nothing that is asked already; how many are wanting; and what was none."""
    ids, asked = set(), set()
    for earlier in used:
        ids.add(earlier.id)
        asked.add(question_of(earlier))
    left, broken = dict(wanted), list[Broken]()
    taken: list[Prompt] = []
    for _, row in rows:
        if isinstance(row, Broken):
            broken.append(row)
            continue
        prompt, question = row, question_of(row)
        if not left.get(prompt.family) or split(prompt) == "test" or prompt.id in ids or question in asked:
            continue
        ids.add(prompt.id)
        asked.add(question)
        taken.append(prompt)
        left[prompt.family] -= 1
        if not any(left.values()):
            break
    return tuple(taken), {family: count for family, count in left.items() if count}, broken


def question_of(prompt: Prompt) -> int:
    """A 64-bit hash of what is asked."""
    text = conversation((m.role, f"{m.content}{m.extra}") for m in prompt.messages) + prompt.tools
    return int.from_bytes(hashlib.blake2b(text.encode(), digest_size=8).digest())


def _no_prompt(source: str, column: str, broken: list[Broken]) -> UsageError:
    first = f"; the first: {broken[0].place}: {broken[0].reason}" if broken else ""
    return UsageError(
        f"no usable prompt in {source}",
        f"{len(broken)} broken rows{first}" if broken else "the source is empty",
        f"each row needs `{column}`: a text, or a list of messages with role and content",
    )


def _always(split: Split) -> Callable[[Prompt], Split]:
    return lambda _: split


def _held_out(share: float, seed: int) -> Callable[[Prompt], Split]:
    """Split by group (a prompt without one is its own), by a seeded hash: a longer file keeps its split."""

    def split(prompt: Prompt) -> Split:
        digest = hashlib.sha256(f"{seed}:{prompt.group or prompt.id}".encode()).digest()
        return "test" if int.from_bytes(digest[:8]) < share * 2**64 else "train"

    return split


def _read(
    rows: Iterator[tuple[str, Prompt | Broken]],
    most: int | None,
    spool: Spool,
    split: Callable[[Prompt], Split],
    mark: str = "",
) -> tuple[int, list[Broken]]:
    """Put at most `most` prompts of a source into the spool; how many there were, and what was none. `mark`
    goes before each id."""
    broken: list[Broken] = []
    count = 0
    for place, prompt in rows:
        if isinstance(prompt, Broken):
            broken.append(prompt)
            continue
        spool.add(replace(prompt, id=mark + prompt.id), split(prompt), place, question_of(prompt))
        count += 1
        if count == most:
            break
    return count, broken


def _own_count(source: str, count: int) -> int | None:
    """How many are taken where the recipe names no number: all of a file, so many of the endless world."""
    return count if source.startswith("embedded:") else None


def _prompts(
    settings: recipes.Prompts, split: Literal["train", "dev", "test"], seed: int
) -> Iterator[tuple[str, Prompt | Broken]]:
    """(place, prompt) for each row of the source; split and seed are for the shipped world, without end."""
    if settings.source.startswith("embedded:"):
        if settings.source != "embedded:desk":
            raise UsageError(
                f"no prompts named {settings.source}", "stillhouse ships one world", "use `embedded:desk`"
            )
        from stillhouse.models.embedded import world as desk

        for example in desk.examples(split, seed):
            yield settings.source, example.prompt
        return
    for number, (place, row) in enumerate(read_rows(settings.source)):
        yield place, row if isinstance(row, Broken) else parse_prompt(row, settings, place, number)


def parse_prompt(row: Any, settings: recipes.Prompts, place: str, number: int) -> Prompt | Broken:
    """The row as a prompt, or why it is none. 0 and false are values; null and the empty text are absence."""
    if not isinstance(row, dict):
        return Broken(place, f"a row must be an object, this is a {type(row).__name__}")
    value = row.get(settings.prompt, row.get("messages"))
    if settings.template is not None:
        try:
            value = fill(settings.template, row)
        except KeyError as error:
            return Broken(place, f"the template needs a column {error}")
        except (TypeError, ValueError, RecursionError) as error:
            return Broken(place, f"a column of the template cannot be written as a text: {error}")
    if isinstance(value, str) and value.strip():
        messages: tuple[Message, ...] = (Message("user", value),)
    elif isinstance(value, list) and value:
        parsed = [_message(part) for part in value]
        if any(part is None for part in parsed):
            return Broken(place, "a message needs a known role and a text as content, or tool calls")
        messages = tuple(part for part in parsed if part is not None)
        if messages[-1].role == "assistant":
            return Broken(place, "the last message is the assistant's: there is nothing to answer")
    elif value is None:
        columns = ", ".join(map(str, row))[:200].encode(errors="replace").decode()
        return Broken(place, f"no column `{settings.prompt}` (columns: {columns})")
    elif isinstance(value, str | list):
        return Broken(place, "the prompt is empty")
    else:
        return Broken(place, f"a prompt is a text or a list of messages, this is a {type(value).__name__}")
    scorer = _present(row.get("scorer"))
    if scorer is not None and not isinstance(scorer, str):
        return Broken(place, f"a scorer is given by its name, this is a {type(scorer).__name__}")
    try:
        reference = _as_text(row.get(settings.reference))
        family, group, name = (_as_text(row.get(key)) for key in (settings.family, settings.group, "id"))
        tools = _tools(row.get("tools"))
    except (TypeError, ValueError, RecursionError) as error:
        return Broken(place, f"a column cannot be written as a text: {error}")
    text = "\x1e".join(m.content for m in messages)
    if not all(map(is_unicode, (text, reference or "", family or "", group or "", name or "", scorer or ""))):
        return Broken(place, "it holds bytes that are not UTF-8, or half a character (a lone surrogate)")
    return Prompt(
        id=name or f"{number:07d}-{hashlib.sha256(text.encode()).hexdigest()[:8]}",
        messages=messages,
        family=family or "default",
        group=group or "",
        reference=reference,
        scorer=scorer or settings.scorer,
        tools=tools,
    )


def _present(value: Any) -> Any:
    return None if value == "" else value


def _as_text(value: Any) -> str | None:
    """A column's value as text: JSON for what JSON has, else (dates, decimals) as `str` writes it."""
    value = _present(value)
    if value is None or isinstance(value, str):
        return value
    if isinstance(value, bytes):
        return value.decode()
    if isinstance(value, bool | int | float | list | dict):
        return json.dumps(value, ensure_ascii=False, default=str)
    return str(value)


def fill(template: str, row: Mapping[str, Any]) -> str:
    """`template` with each `{column}` replaced by that column's text; `{{` and `}}` are braces. Nothing in
    a row is ever taken for a template. Raises KeyError for a column that the row lacks."""

    def value(match: re.Match[str]) -> str:
        if match[0] in ("{{", "}}"):
            return match[0][0]
        text = _as_text(row[match[1]])
        if text is None:
            raise KeyError(match[1])
        return text

    return re.sub(r"\{\{|\}\}|\{([^{}]+)\}", value, template)


def _tools(value: Any) -> str:
    """The tools that a prompt offers, as JSON; a column of a file may hold them as a list or as its text."""
    tools = json.loads(value) if isinstance(value, str) and value else value
    if tools in (None, "", []):
        return ""
    if not isinstance(tools, list) or not all(isinstance(tool, dict) for tool in tools):
        raise ValueError("`tools` is no list of objects")
    return rfc8785.dumps(tools).decode()


def _message(part: Any) -> Message | None:
    """A message with its tool calls, their ids and names. Other columns that data sets hang on their
    messages (dates, places, hashes of addresses) are nobody's business and stay here."""
    if not isinstance(part, dict) or part.get("role") not in ROLES:
        return None
    extra = {name: part[name] for name in EXTRA if part.get(name)}
    content = part.get("content")
    if content is None and extra.get("tool_calls"):
        content = ""
    if not isinstance(content, str):
        return None
    try:
        return Message(cast(Role, part["role"]), content, rfc8785.dumps(extra).decode() if extra else "")
    except (rfc8785.CanonicalizationError, UnicodeEncodeError):
        return None


def name_broken(broken: tuple[Broken, ...]) -> list[str]:
    """One line for each of the first broken rows, and one that counts the rest."""
    lines = [f"{b.place}: {b.reason}" for b in islice(broken, NAMED)]
    if len(broken) > NAMED:
        lines.append(f"and {len(broken) - NAMED} more")
    return lines
