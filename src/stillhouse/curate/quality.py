"""Whether an answer is one: there, whole, in the wanted form and language, and about the question.

The patterns are for English. What they find and miss among real answers of 59 models is measured by
`benchmarks/refusals.py`.
"""

from __future__ import annotations

import json
import re
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import numpy as np

from stillhouse.curate.funnel import KEEP, Filter, Row
from stillhouse.errors import UsageError
from stillhouse.records import Verdict
from stillhouse.refusals import declines, straight
from stillhouse.text import words

# An assistant's talk about itself inside an answer.
_BOILERPLATE = re.compile(
    r"\b(?:as|i(?:'m| am)(?: just| only)?) an? (?:ai|artificial intelligence|large language|language)"
    r"(?:[- ]based)?(?: language)?(?: model| assistant| chatbot| system| program)?"
    r"(?:[,.;:]| (?:and|so|with|that)\b)"
    r"|\bmy (?:knowledge|training) (?:cut-?off|data)\b"
    r"|\bas of my (?:last|latest|most recent|knowledge) (?:update|knowledge|training|cut-?off)"
    r"|\bi (?:do not|don't) have (?:real[- ]time|personal (?:opinions|experiences?|feelings|beliefs))",
    re.IGNORECASE,
)
_MAKERS = (
    r"(?:open ?ai|anthropic|google(?: deepmind| ai)?|deepmind|meta(?: ai)?|microsoft|mistral(?: ai)?"
    r"|alibaba(?: cloud)?|cohere|deepseek|x\.?ai|amazon|baidu|moonshot(?: ai)?|zhipu(?: ai)?|01\.ai|nvidia"
    r"|apple|open assistant|laion)"
)
_MODELS = (
    r"(?:chatgpt|gpt-?[345][\w.-]*|claude|bard|gemini|gemma|llama|mistral|mixtral|qwen|tongyi|vicuna|baichuan|coral"
    r"|deepseek|grok|copilot|ernie|kimi|chatglm|open assistant|alpaca|falcon|zephyr)"
)
# A model that says who made it. "TypeScript was created by Microsoft" is about something else.
_IDENTITY = re.compile(
    rf"\b(?:i(?:'m| am)|my name is|this is|call me) {_MODELS}\b(?! user)"
    rf"|\b(?:i(?:'m| am| was| have been|'ve been)|as an?|made me)\b[^.!?\n]{{0,60}}?"
    rf"\b(?:developed|created|made|trained|built|designed|programmed) by {_MAKERS}\b"
    rf"|\b(?:i am|i'm|as) an? {_MAKERS}(?:'s)? (?:\w+ )?(?:model|assistant|ai|language)\b",
    re.IGNORECASE,
)


_CALLS = re.compile(r'"(?:tool_calls|tool_call_id|function_call)":')  # a name may stay


def without_tools(row: Row) -> Verdict:
    """Training shows a student neither the tools of a prompt nor the calls of an answer yet: a row that has
    them is dropped, for half of it would teach something else; so is one whose earlier turns do."""
    told = any(m["role"] == "tool" or _CALLS.search(m.get("extra") or "") for m in row["messages"])
    return Verdict("drop", "tools") if told or row.get("tools") or row.get("tool_calls") else KEEP


def not_empty(row: Row) -> Verdict:
    """An empty answer is dropped whatever the settings; where the teacher said that it declined, as such."""
    return KEEP if row["answer"].strip() else Verdict("drop", "refusal" if row["refusal"] else "empty")


def not_truncated(row: Row) -> Verdict:
    return Verdict("drop", "truncated") if row["finish_reason"] == "length" else KEEP


def not_refused(row: Row) -> Verdict:
    declined = row["refusal"] or row["finish_reason"] == "content_filter" or declines(row["answer"])
    return Verdict("drop", "refusal") if declined else KEEP


def without_boilerplate(row: Row) -> Verdict:
    """An assistant that speaks of itself as a model, of its training or of its knowledge cut-off."""
    return Verdict("drop", "boilerplate") if _BOILERPLATE.search(straight(row["answer"])) else KEEP


def without_identity(row: Row) -> Verdict:
    """The answer says in the first person which model it is of, or who made it: nothing for a student."""
    return Verdict("drop", "identity") if _IDENTITY.search(straight(row["answer"])) else KEEP


# ---------------------------------------------------------------- loops

_PERIOD = 40  # words of the longest phrase whose repetition in a row is looked for
_TURNS = 5  # times in a row
_LOOP = 24  # words that the repetition takes up at least
_SUSPECT = 0.25  # share of 4-grams that stand there already, without which there is no loop of that length
_SAID = 0.5  # share of 8-grams that stand there already, from which a text says nothing new


def not_repetitive(row: Row) -> Verdict:
    return Verdict("drop", "repetitive") if repetitive(row["answer"]) else KEEP


def repetitive(answer: str) -> bool:
    """Whether the answer loops: a phrase of up to 40 words stands there 5 times in a row over 24 words or
    more, or half of its 8-grams were there before."""
    found = words(answer)
    if len(found) < _LOOP:
        return False
    grams = len(found) - 3
    if len(set(zip(found, found[1:], found[2:], found[3:], strict=False))) > (1 - _SUSPECT) * grams:
        return False
    known: dict[str, int] = {}
    codes = np.array([known.setdefault(word, len(known)) for word in found])
    windows = np.lib.stride_tricks.sliding_window_view(codes, 8)
    if len(windows) >= 2 * _LOOP and len(np.unique(windows, axis=0)) < (1 - _SAID) * len(windows):
        return True
    return any(
        _longest(codes[period:] == codes[:-period]) + period >= max(_LOOP, _TURNS * period)
        for period in range(1, min(_PERIOD, len(codes) - 1) + 1)
    )


def _longest(flags: Any) -> int:
    """The longest run of true ones."""
    ends = np.flatnonzero(~np.concatenate(([False], flags, [False])))
    return int(np.diff(ends).max()) - 1


# ---------------------------------------------------------------- form


def of_length(least: int | None, most: int | None) -> Filter:
    """Answers of `least` to `most` words."""

    def fits(row: Row) -> Verdict:
        length = len(words(row["answer"]))
        if least is not None and length < least:
            return Verdict("drop", "too short")
        return Verdict("drop", "too long") if most is not None and length > most else KEEP

    return fits


def matching(pattern: str) -> Filter:
    """Answers in which the regular expression is found."""
    try:
        wanted = re.compile(pattern)
    except re.error as error:
        raise UsageError(
            f"`curate.pattern` is no regular expression: {pattern}",
            str(error),
            "see https://docs.python.org/3/library/re.html",
        ) from None
    return lambda row: KEEP if wanted.search(row["answer"]) else Verdict("drop", "pattern")


_FENCED = re.compile(r"\s*```(?:[A-Za-z]\w*\s)?(.*?)```\s*", re.DOTALL)


def _no_json(name: str) -> Any:
    raise ValueError(f"{name} is not JSON")  # Python reads NaN and Infinity


def of_schema(path: Path) -> Filter:
    """Answers that are JSON, in a code fence or not, and valid under the JSON Schema in the file.

    Raises UsageError where jsonschema-rs is not installed or the file holds no schema.
    """
    try:
        import jsonschema_rs
    except ImportError:
        raise _needs("jsonschema-rs", "curate.json_schema") from None
    try:
        valid = jsonschema_rs.validator_for(json.loads(path.read_bytes()))
    except (OSError, ValueError) as error:
        raise UsageError(
            f"{path} is no JSON Schema", str(error).splitlines()[0], "mend `curate.json_schema`"
        ) from None

    def fits(row: Row) -> Verdict:
        answer = row["answer"].removeprefix("\ufeff")
        fenced = _FENCED.fullmatch(answer)
        try:
            value = json.loads(fenced.group(1) if fenced else answer, parse_constant=_no_json)
        except (ValueError, RecursionError):
            return Verdict("drop", "no JSON")
        return KEEP if valid.is_valid(value) else Verdict("drop", "schema")

    return fits


# ---------------------------------------------------------------- language

_LETTERS = 40  # below that a text is too short to say what language it is in
_READ = 200  # characters looked at: about 1 ms
_CODE = re.compile(r"```.*?(?:```|\Z)|`[^`\n]*`|https?://\S+|\$[^$\n]*\$", re.DOTALL)
_SURE = 0.1  # by how much, relatively, the likeliest language must be ahead to be believed


def in_languages(wanted: Sequence[str]) -> Filter:
    """Answers in one of these languages (ISO 639-1 codes). An answer that is too short to tell, or code, is
    kept.

    Raises UsageError where lingua is not installed or does not know a code.
    """
    try:
        from lingua import IsoCode639_1, LanguageDetectorBuilder
    except ImportError:
        raise _needs("lingua-language-detector", "curate.languages") from None
    known = {name.lower(): getattr(IsoCode639_1, name) for name in dir(IsoCode639_1) if name.isupper()}
    for name in wanted:
        if name.lower() not in known:
            raise UsageError(
                f"no language {name!r}",
                f"`curate.languages` takes ISO 639-1 codes: {', '.join(sorted(known))}",
                'write ["en"] for English',
            )
    builder = LanguageDetectorBuilder.from_all_languages().with_low_accuracy_mode()
    detector = builder.with_minimum_relative_distance(_SURE).build()
    codes = {known[name.lower()] for name in wanted}

    def spoken(row: Row) -> Verdict:
        text = " ".join(_CODE.sub(" ", row["answer"]).split())[:_READ]
        if sum(map(str.isalpha, text)) < _LETTERS:
            return KEEP
        best = detector.detect_language_of(text)
        return KEEP if best is None or best.iso_code_639_1 in codes else Verdict("drop", "language")

    return spoken


def _needs(package: str, setting: str) -> UsageError:
    return UsageError(
        f"{package} is not installed", f"`{setting}` needs it", "pip install 'stillhouse[curate]'"
    )
