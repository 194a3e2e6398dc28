"""Which answers are marked by selection, and which of several is the one to give. Pure."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

from stillhouse.guard import ladder
from stillhouse.guard.asked import Asked, Route
from stillhouse.guard.config import Detection, Guard, Watermark
from stillhouse.guard.ladder import Rung
from stillhouse.watermark import Key, evidence, word_ids
from stillhouse.watermark.selection import select

# What of a request asks for more than one text, or for a text whose words are not free.
_NOT_TEXT = ("tools", "functions", "response_format", "logprobs", "audio", "modalities", "prediction")
NAMES: Mapping[str, str] = {
    "route": "only answers to chats are marked",
    "choices": "more than one answer was asked for",
    **{name: f"the request has `{name}`" for name in _NOT_TEXT},
    "greedy": "at temperature 0 all answers are one",
    "student": "the student of a cascade answered",
    "one_answer": "the server gave one answer that can be chosen",
    "alike": "all answers are the same",
    "short": "it has fewer words than a mark needs",
    "no_site": "it has no place for a marker",
}


def is_chosen(watermark: Watermark, rung: Rung, detection: Detection) -> bool:
    """Whether answers to an account are chosen from several that stands on `rung`, as it is in force."""
    return watermark.best_of > 1 and (watermark.accounts == "all" or _is_on_mark(rung, detection))


def has_markers(watermark: Watermark, rung: Rung, detection: Detection) -> bool:
    return watermark.markers and _is_on_mark(rung, detection)


def _is_on_mark(rung: Rung, detection: Detection) -> bool:
    return detection.mark and ladder.takes(rung, "mark")


def disclosed(config: Guard) -> dict[str, str]:
    """Whose answers may be marked how, as the provider's terms say it to machines: those of `none`,
    `accounts_under_review` or `all_accounts`."""
    marked = [model.watermark for model in config.models if model.watermark is not None]
    review = "accounts_under_review" if config.detection.mark else "none"
    selects = [each for each in marked if each.best_of > 1]
    chosen_for = "none" if not selects else review
    if any(each.accounts == "all" for each in selects):
        chosen_for = "all_accounts"
    return {"selection": chosen_for, "markers": review if any(each.markers for each in marked) else "none"}


def unfit(route: Route, body: Mapping[str, Any], asked: Asked) -> str:
    """Why the answers to a request cannot be chosen from, a name in `NAMES`; "" where they can."""
    if route != "chat/completions":
        return "route"
    if asked.choices != 1:
        return "choices"
    more = next((name for name in _NOT_TEXT if body.get(name)), "")
    # No temperature is the server's own, which for most is not 0
    return more or ("greedy" if body.get("temperature") in (0, 0.0) else "")


def another(body: Mapping[str, Any], number: int) -> dict[str, Any]:
    """The request once more, for a whole answer; a seed counts up, or all answers would be one."""
    found = {name: value for name, value in body.items() if name != "stream_options"} | {"stream": False}
    if type(seed := body.get("seed")) is int:
        found["seed"] = seed + number
    return found


def text_of(told: Mapping[str, Any]) -> str | None:
    """The text of a chat completion; None where it is not one text and nothing besides."""
    choices = told.get("choices")
    choice = choices[0] if isinstance(choices, list) and len(choices) == 1 else None
    message = choice.get("message") if isinstance(choice, dict) else None
    if not isinstance(message, dict) or message.get("tool_calls"):
        return None
    text = message.get("content")
    return text if isinstance(text, str) else None


def chosen(key: Key, texts: Sequence[str | None]) -> tuple[int, str]:
    """Which of the answers to give, and why it is not marked: a name in `NAMES`, "" where it is.

    Where nothing can be chosen the first is given. An answer that is no text is never chosen before one that
    is.

    Raises ValueError without answers.
    """
    if not texts:
        raise ValueError("there is no answer to choose from")
    places = [at for at, text in enumerate(texts) if text is not None]
    if len(places) < 2:
        return (places or [0])[0], "one_answer"
    found = [texts[at] or "" for at in places]
    if len(set(found)) == 1:
        return places[0], "alike"
    best = select(key, found)
    scored = evidence(key.scheme, key.sip, [word_ids(found[best])]).scored
    return places[best], "" if scored else "short"
