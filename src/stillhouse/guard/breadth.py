"""How much a request may consist of: what is beyond that is refused before anything walks it."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

from stillhouse.guard.asked import Denied

MOST_FIELDS = 256  # of a request
MOST_MESSAGES = 8_192  # messages, items of an input or prompts
MOST_PARTS = 32_768  # fields of all messages, and what these hold
MOST_TOOLS = 1_024


def check(body: Mapping[str, Any]) -> None:
    """The ids of tokens are no parts. Raises Denied."""
    if len(body) > MOST_FIELDS:
        raise _too_many("fields", MOST_FIELDS)
    tools = body.get("tools")
    if isinstance(tools, list) and len(tools) > MOST_TOOLS:
        raise _too_many("tools", MOST_TOOLS, "tools")
    for name in ("messages", "input", "prompt"):
        given = body.get(name)
        if isinstance(given, list) and not set(map(type, given)) <= {int}:
            _check_messages(name, given)


def _check_messages(name: str, messages: list[Any]) -> None:
    if len(messages) > MOST_MESSAGES:
        raise _too_many(name, MOST_MESSAGES, name)
    parts = 0
    for message in messages:
        if not isinstance(message, dict):
            continue
        parts += len(message)
        if parts <= MOST_PARTS:
            parts += sum(len(each) for each in message.values() if isinstance(each, list | dict))
        if parts > MOST_PARTS:
            raise _too_many(f"parts of {name}", MOST_PARTS, name)


def _too_many(what: str, most: int, param: str | None = None) -> Denied:
    return Denied(400, "too_many_parts", f"a request has at most {most:,} {what}", param)
