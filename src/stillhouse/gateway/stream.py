"""A streamed answer on its way through: passed on as it arrives, and read for what it took."""

from __future__ import annotations

import re
from collections.abc import Mapping
from functools import cache
from typing import Any, NamedTuple

import orjson

from stillhouse.guard.answers import Cut

MOST = 2**53 - 1  # tokens; beyond it numbers cannot be recorded
LONGEST = 8 << 20  # bytes of one event; a longer one is not read
AHEAD = 4096  # bytes in which text is looked for, so that each is looked at a few times at most
_DONE = b"[DONE]"
_BOM = b"\xef\xbb\xbf"  # a stream may begin with it
_BOUNDARY = re.compile(rb"\r?\n\r?\n|\r\r")


def usage_of(answer: Mapping[str, Any]) -> tuple[int, int] | None:
    """Tokens in and out as an answer, an event or a response's event tells them; None where it does not."""
    usage = answer.get("usage")
    if usage is None and isinstance(answer.get("response"), dict):
        usage = answer["response"].get("usage")
    if not isinstance(usage, dict):
        return None
    taken = usage.get("prompt_tokens", usage.get("input_tokens"))
    given = usage.get("completion_tokens", usage.get("output_tokens", 0))
    if type(taken) is not int or type(given) is not int:
        return None
    return (taken, given) if 0 <= taken <= MOST and 0 <= given <= MOST else None


class Unwritable(Exception):
    """An answer of a server that cannot be read, or not be written again, without what it must not tell."""


class Passing:
    """Server-sent events of one answer.

    Bytes leave as they came. With `strip` the event that only tells usage, which the client did not ask for,
    is left out; `cut` takes out of each event what it must not tell. Both need whole events, so the beginning
    of one waits for its end; without them nothing waits. Most events tell nothing but text, and are known by
    the names that they lack, without reading their JSON.

    With `cut`, `feed` and `end` raise Unwritable for an event that cannot be read; without it that passes.
    """

    def __init__(self, strip: bool, cut: Cut | None = None) -> None:
        self.usage: tuple[int, int] | None = None
        self.partly = False  # it came along with a piece of text: of so far, and perhaps of one choice alone
        self.times = 0  # that usage came without one: llama.cpp tells each choice's so
        self.sums = (0, 0)  # of these
        self.events = 0
        self.whole = False
        self.failed = False  # an error was told in the middle
        self._strip = strip
        self._cut = cut
        self._told = _telling(cut.names if cut is not None else ())
        self._rest = b""
        self._blind = False  # in the middle of an event that was too long to be read

    def feed(self, chunk: bytes) -> bytes:
        """What to pass on now that `chunk` has arrived."""
        passed = self._read(chunk)
        return passed if self._strip or self._cut is not None else chunk

    def end(self) -> bytes:
        """What is still held when no more comes."""
        rest, self._rest = self._rest, b""
        if rest:
            rest = self._event(rest)
        return rest if self._strip or self._cut is not None else b""

    def _read(self, chunk: bytes) -> bytes:
        data = self._rest + chunk
        passed: list[bytes] = []
        at = 0 if self._rest or self._blind else self._pass_plain(data, 0, passed)
        seen = max(at, len(self._rest) - 3)
        while (border := _BOUNDARY.search(data, seen)) is not None:
            event = data[at : border.end()]
            passed.append(event if self._blind else self._event(event))
            self._blind = False
            at = border.end()
            if border[0] == b"\n\n":
                at = self._pass_plain(data, at, passed)
            seen = at
        rest = data[at:]
        if self._blind or len(rest) > LONGEST:
            if self._cut is not None:
                raise Unwritable("an event is too long to be read")
            passed.append(rest)
            self._blind, rest = True, b""
        self._rest = rest
        return b"".join(passed)

    def _pass_plain(self, data: bytes, at: int, passed: list[bytes]) -> int:
        """Pass on the events from `at` on that tell nothing but text, up to the first that does or that has
        not ended; where it begins."""
        if self._cut is not None and not self._cut.begun:
            return at
        while at < len(data):
            end = min(len(data), at + AHEAD)
            done = data.find(_DONE, at, end)
            end = end if done < 0 else done
            told = self._told.search(data, at, end)
            last = data.rfind(b"\n\n", at, end if told is None else told.start())
            if last < 0:
                break
            passed.append(data[at : last + 2])
            self.events += data.count(b"data:", at, last)
            at = last + 2
        return at

    def _event(self, event: bytes) -> bytes:
        lines = event.removeprefix(_BOM).splitlines()
        data = b"\n".join(line[5:].strip() for line in lines if line.startswith(b"data:"))
        if not data:
            return event
        if data == _DONE:
            self.whole = True
            return event
        self.events += 1
        cut = self._cut
        if (cut is None or cut.begun) and self._told.search(data) is None:
            return event
        try:
            told = orjson.loads(data)
        except orjson.JSONDecodeError:
            told = None
        if not isinstance(told, dict):
            if cut is not None:
                raise Unwritable("an event is no JSON object")
            return event
        usage = usage_of(told)
        if usage is not None:
            self.usage, self.partly = usage, bool(told.get("choices"))
            if not self.partly:
                self.times += 1
                self.sums = self.sums[0] + usage[0], self.sums[1] + usage[1]
        kind = told.get("type")
        self.whole = self.whole or kind in ("response.completed", "response.incomplete")
        self.failed = self.failed or told.get("error") is not None or kind in ("error", "response.failed")
        if self._strip and usage is not None and told.get("choices") == []:
            return b""
        if cut is not None and cut.apply(told):
            named = [line for line in lines if not line.startswith(b"data:") and line]
            return b"\n".join([*named, b"data: " + written(told)]) + b"\n\n"
        return event


def written(told: object) -> bytes:
    """Raises Unwritable for what is nested more deeply than JSON is written."""
    try:
        return orjson.dumps(told)
    except orjson.JSONEncodeError as error:
        raise Unwritable(str(error)) from error


def as_stream(told: Mapping[str, Any], usage_wanted: bool) -> bytes:
    """A whole chat completion as the events of a stream. Raises Unwritable."""
    shared = {name: told[name] for name in ("id", "created", "model", "system_fingerprint") if name in told}
    shared["object"] = "chat.completion.chunk"
    events = []
    for choice in told["choices"]:
        more = {"delta": choice["message"], "finish_reason": None}
        if choice.get("logprobs") is not None:
            more["logprobs"] = choice["logprobs"]
        end = {"delta": {}, "finish_reason": choice.get("finish_reason")}
        events += [{**shared, "choices": [{"index": choice.get("index", 0), **each}]} for each in (more, end)]
    if usage_wanted:
        events.append({**shared, "choices": [], "usage": told.get("usage")})
    return b"".join(b"data: " + written(event) + b"\n\n" for event in events) + b"data: [DONE]\n\n"


class Said(NamedTuple):
    """The text of an answer, and why it ended."""

    text: str
    finish_reason: str


def said_in(data: bytes) -> Said | None:
    """What a chat's answer says, whole or as the events of a stream; None where it is not in words or cannot
    be read."""
    try:
        if not data.startswith(b"data:"):
            choice = orjson.loads(data)["choices"][0]
            text = choice["message"]["content"]
            return Said(text, str(choice.get("finish_reason"))) if isinstance(text, str) else None
        events = [line[5:].strip() for line in data.splitlines() if line.startswith(b"data:")]
        told = [orjson.loads(event) for event in events if event != _DONE]
        choices = [choice for each in told for choice in each["choices"]]
        ends = [choice["finish_reason"] for choice in choices if choice.get("finish_reason")]
        text = "".join(choice["delta"].get("content") or "" for choice in choices)
        return Said(text, str(ends[-1] if ends else None))
    except (ValueError, LookupError, TypeError, AttributeError):
        return None


@cache
def _telling(names: tuple[str, ...]) -> re.Pattern[bytes]:
    """What an event has in it that tells more than text, or that has one of these names in it; some servers
    tell in each event that it tells no usage."""
    more = "".join(f'|{name}"' for name in names)
    return re.compile(rf'"(?:usage"(?!\s*:\s*null)|error"|response\.{more})'.encode())
