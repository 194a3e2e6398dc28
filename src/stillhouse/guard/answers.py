"""What an answer loses on its way to the client: log-probabilities beyond the cap, and hidden reasoning.

A filter is decided with the request (`leaks.decide`); a `Cut` applies it to one answer, whole or event by
event. Three conventions of the wire matter: -9999.0 stands for a token that is not among the likeliest, as
OpenAI documents it; a reasoning field is one of `FIELDS` in a message or delta; and where a server has no
parser for reasoning it stands at the start of the text within one of `TAGS`, which may be split over events.
"""

from __future__ import annotations

import math
import re
from collections.abc import Sequence
from dataclasses import dataclass
from functools import cache
from typing import Any, Literal

Object = dict[str, Any]

UNLIKELY = -9999.0
# Only tags that models write of themselves: others were asked for by whoever wrote the prompt.
TAGS = (
    ("<think>", "</think>"),  # DeepSeek, Qwen, GLM, MiniMax
    ("<thought>", "</thought>"),  # Gemini
    ("<seed:think>", "</seed:think>"),  # Seed
    ("[THINK]", "[/THINK]"),  # Mistral
    ("◁think▷", "◁/think▷"),  # Kimi
)
FIELDS = (
    "reasoning_content",  # DeepSeek, SGLang, llama.cpp, older vLLM
    "reasoning",  # vLLM, Ollama, OpenRouter
    "reasoning_details",  # OpenRouter
    "thinking",  # Ollama's own route
    "thinking_blocks",  # LiteLLM
)
_PARTS = ("thinking", "redacted_thinking", "reasoning", "reasoning_text", "summary_text")
# All that model and server said to each other, reasoning too: vLLM's /v1/responses
_MESSAGES = ("input_messages", "output_messages")
# Of these an answer is rid wherever log-probabilities are not simply allowed.
_STATES = ("prompt_logprobs", "completion_probabilities", "hidden_states", "routed_experts", "meta_info")
# Names without which an event has nothing to lose: to look for them costs less than to read JSON.
_OF_LOGPROBS = ("logprob", "token_logprobs", *_STATES)
_EMPTY: Object = {
    "delta": "",
    "text": "",
    "thinking": "",
    "content": [],
    "summary": [],
    "encrypted_content": None,
}


@dataclass(frozen=True, slots=True)
class Filter:
    """`told` is how many alternatives of each token the client gets, `likeliest` among how many a token has
    to be for its own log-probability to be told, `digits` None where nothing is rounded. `texts` is how many
    texts the answer will have, None where that is not known."""

    logprobs: Literal["allow", "cap", "remove"] = "allow"
    told: int = 0
    likeliest: int = 1
    digits: int | None = None
    reasoning: bool = False
    texts: int | None = None


@cache
def _names(logprobs: bool, reasoning: bool) -> tuple[str, ...]:
    return *(_OF_LOGPROBS if logprobs else ()), *((*FIELDS, *_PARTS, *_MESSAGES) if reasoning else ())


@cache
def _pattern(names: tuple[str, ...]) -> re.Pattern[bytes]:
    return re.compile(f'"(?:{"|".join(names)})"'.encode())


class Cut:
    """A filter at work on one answer. `changed` has a code for each kind of thing that it did. Once all texts
    have `begun`, only what has one of `names` in it can have something to lose."""

    __slots__ = ("_filter", "_heads", "begun", "changed", "names")

    def __init__(self, filter: Filter) -> None:
        self._filter = filter
        self.begun = not filter.reasoning  # whether no text will begin with reasoning any more
        self._heads: dict[str, _Head] = {}
        self.names = _names(filter.logprobs != "allow", filter.reasoning)
        self.changed: set[str] = set()

    def concerns(self, raw: bytes) -> bool:
        """Whether `apply` might change the answer, or the event of a stream, whose JSON this is; if not, it
        may be passed on unread. Every event does until it is known how each text begins."""
        return not self.begun or _pattern(self.names).search(raw) is not None

    def apply(self, answer: Object) -> bool:
        """Take out of a whole answer, or of one event of a stream, what has to go, in place; whether anything
        had to. What is no answer of a known form is left as it is."""
        changed = self._states(answer)
        choices = answer.get("choices")
        if not isinstance(choices, list):
            return self._response(answer) or changed
        for choice in choices:
            if isinstance(choice, dict):
                changed = self._choice(choice) or changed
        return changed

    def _choice(self, choice: Object) -> bool:
        """Of chat completions and completions: whole ones have their `message`, or a reason why they end."""
        changed = self._states(choice)
        if self._filter.reasoning:
            key, ends = str(choice.get("index")), choice.get("finish_reason") is not None
            hidden = False
            if isinstance(message := choice.get("message"), dict):
                hidden = self._message(message, key, ends=True)
            if isinstance(delta := choice.get("delta"), dict):
                hidden = self._message(delta, key, ends) or hidden
            if isinstance(choice.get("text"), str):
                hidden = self._inline(choice, "text", key, ends) or hidden
            if hidden:
                # Both tell the same tokens in other words
                choice.pop("token_ids", None)
                if choice.get("logprobs"):
                    choice["logprobs"] = None
                    self.changed.add("logprobs:removed")
            changed = hidden or changed
        return self._logprobs(choice) or changed

    def _message(self, said: Object, key: str, ends: bool) -> bool:
        """Strip a message or delta."""
        hidden = self._fields(said)
        if isinstance(inner := said.get("provider_specific_fields"), dict):
            hidden = self._fields(inner) or hidden
        content = said.get("content")
        if isinstance(content, list):
            kept = [part for part in content if not (isinstance(part, dict) and part.get("type") in _PARTS)]
            if len(kept) < len(content):
                said["content"] = kept
                self.changed.add("reasoning:stripped")
                hidden = True
            for place, part in enumerate(kept):
                if isinstance(part, dict) and isinstance(part.get("text"), str):
                    hidden = self._inline(part, "text", f"{key} {place}", ends) or hidden
        elif isinstance(content, str) or (ends and key in self._heads):
            hidden = self._inline(said, "content", key, ends) or hidden
        return hidden

    def _fields(self, said: Object) -> bool:
        found = [name for name in FIELDS if said.get(name)]
        for name in found:
            del said[name]
        if found:
            self.changed.add("reasoning:stripped")
        return bool(found)

    def _inline(self, holder: Object, name: str, key: str, ends: bool) -> bool:
        """Take a leading tag with all that is in it out of `holder[name]`, the next piece of the text `key`.
        Nothing is held back of a piece with which the text `ends`."""
        head = self._heads.get(key)
        if head is None:
            head = self._heads[key] = _Head()
        if head.state == "through":
            return False
        text = holder.get(name) or ""
        shown, hid = head.feed(text, ends)
        heads = self._heads.values()
        self.begun = len(heads) == self._filter.texts and all(each.state == "through" for each in heads)
        if hid:
            self.changed.add("reasoning:stripped")
        if shown == text:
            return hid
        holder[name] = shown
        return True

    def _response(self, answer: Object) -> bool:
        """Of /v1/responses: a whole one, or an event by its `type`."""
        kind, strips = answer.get("type"), self._filter.reasoning
        if strips and isinstance(kind, str) and kind.startswith("response.reasoning"):
            return self._blank(answer)
        changed = self._logprobs(answer)
        if strips and kind == "response.output_text.delta":
            key = f"{answer.get('item_id')} {answer.get('content_index')}"
            changed = self._inline(answer, "delta", key, ends=False) or changed
        if strips and kind == "response.output_text.done":
            changed = self._whole(answer) or changed
        items, parts = [answer.get("item")], [answer.get("part")]
        for holder in (answer, answer.get("response")):
            if not isinstance(holder, dict):
                continue
            changed = (strips and self._messages(holder)) or changed
            if isinstance(output := holder.get("output"), list):
                items += output
        for item in items:
            if not isinstance(item, dict):
                continue
            if item.get("type") == "reasoning":
                changed = (strips and self._blank(item)) or changed
            elif isinstance(content := item.get("content"), list):
                parts += content
        for part in parts:
            if isinstance(part, dict) and part.get("type") == "output_text":
                changed = self._logprobs(part) or changed
                changed = (strips and self._whole(part)) or changed
            elif strips and isinstance(part, dict) and part.get("type") in _PARTS:
                changed = self._blank(part) or changed
        return changed

    def _messages(self, holder: Object) -> bool:
        found = [name for name in _MESSAGES if holder.get(name)]
        for name in found:
            del holder[name]
        if found:
            self.changed.add("reasoning:stripped")
        return bool(found)

    def _whole(self, part: Object) -> bool:
        """As `_inline`, of a text that is all there, and may have been there in pieces before."""
        text = part.get("text")
        if not isinstance(text, str):
            return False
        shown, hid = _Head().feed(text, True)
        if hid:
            part["text"] = shown
            self.changed.add("reasoning:stripped")
        return hid

    def _blank(self, item: Object) -> bool:
        """Empty a reasoning item or event, which keeps its place: others refer to it."""
        found = [name for name in _EMPTY if item.get(name)]
        for name in found:
            item[name] = [] if isinstance(_EMPTY[name], list) else _EMPTY[name]
        if isinstance(part := item.get("part"), dict) and self._blank(part):
            found.append("part")
        if found:
            self.changed.add("reasoning:stripped")
        return bool(found)

    def _states(self, holder: Object) -> bool:
        if self._filter.logprobs == "allow":
            return False
        found = [name for name in _STATES if holder.get(name) is not None]
        for name in found:
            del holder[name]
        if isinstance(more := holder.get("sglext"), dict) and more.pop("routed_experts", None) is not None:
            found.append("routed_experts")
        if found:
            self.changed.add("logprobs:removed")
        return bool(found)

    def _logprobs(self, holder: Object) -> bool:
        """Round, cut and mask log-probabilities, in the form of any of the routes."""
        said = holder.get("logprobs")
        if not said or self._filter.logprobs == "allow":
            return False
        if self._filter.logprobs == "remove" or not isinstance(said, dict | list):
            holder["logprobs"] = [] if isinstance(said, list) else None
            self.changed.add("logprobs:removed")
            return True
        if isinstance(said, list):
            self._tokens(said)
            return True
        for name in ("content", "refusal"):
            if isinstance(tokens := said.get(name), list):
                self._tokens(tokens)
        if isinstance(said.get("token_logprobs"), list):
            self._columns(said)
        return True

    def _tokens(self, tokens: Sequence[Any]) -> None:
        """One object for each token, with its alternatives in it."""
        for token in tokens:
            if not isinstance(token, dict):
                continue
            top = token.get("top_logprobs")
            rivals = [each for each in top if isinstance(each, dict)] if isinstance(top, list) else []
            rivals.sort(key=lambda rival: -_number(rival.get("logprob")))
            others = [_number(rival.get("logprob")) for rival in rivals]
            # vLLM has the written token among them, so only one more tells that there are others above it
            enough = len(others) > self._filter.likeliest
            token["logprob"] = self._own(token.get("logprob"), others, enough)
            rivals = rivals[: self._filter.told]
            for rival in rivals:
                rival["logprob"] = self._rounded(rival.get("logprob"))
            if "top_logprobs" in token:
                token["top_logprobs"] = rivals

    def _columns(self, said: Object) -> None:
        """A list over all tokens, and an object of alternatives for each, the written one besides."""
        own, tops = said["token_logprobs"], said.get("top_logprobs")
        tops = tops if isinstance(tops, list) else []
        for place, logprob in enumerate(own):
            top = tops[place] if place < len(tops) and isinstance(tops[place], dict) else {}
            others = [_number(each) for each in top.values()]
            own[place] = self._own(logprob, others, len(others) >= self._filter.likeliest)
            if top:
                best = sorted(top.items(), key=lambda each: -_number(each[1]))[: self._filter.told]
                tops[place] = {token: self._rounded(each) for token, each in best}

    def _own(self, logprob: object, others: Sequence[float], enough: bool) -> float | None:
        """What is told of the written token itself. Nothing where it is not known to be among the likeliest:
        else sampling at a high temperature would bring every token's to light."""
        if logprob is None:
            return None
        own = _number(logprob)
        among = sum(other > own for other in others) < self._filter.likeliest
        if not enough:
            # No more than so many tokens can be likelier than this
            among = own > -math.log(self._filter.likeliest + 1)
        if among:
            return self._rounded(logprob)
        self.changed.add("logprobs:masked")
        return UNLIKELY

    def _rounded(self, logprob: object) -> float | None:
        if logprob is None:
            return None
        number = _number(logprob)
        if self._filter.digits is None or number <= UNLIKELY:
            return max(number, UNLIKELY)
        self.changed.add("logprobs:rounded")
        return round(number, self._filter.digits) + 0.0  # never -0.0


class _Head:
    """How a text begins, read piece by piece."""

    __slots__ = ("_end", "_held", "state")

    def __init__(self) -> None:
        self.state: Literal["waiting", "within", "after", "through"] = "waiting"
        self._held = ""
        self._end = ""

    def feed(self, piece: str, ends: bool) -> tuple[str, bool]:
        """What may be shown now, and whether any of the piece was reasoning. Text is held back while it may
        be the start of a tag."""
        text, self._held = self._held + piece, ""
        hid = False
        if self.state == "waiting":
            whole = ends and text == piece
            bare = text.lstrip()
            tag = next((tag for tag in TAGS if bare.startswith(tag[0])), None)
            if tag is None:
                if not ends and any(begin.startswith(bare) for begin, _ in TAGS):
                    self._held = text
                    return "", False
                self.state = "through"
                shown = _after_lone_end(text) if whole else text
                return shown, shown != text
            self.state, self._end, text = "within", tag[1], bare[len(tag[0]) :]
            hid = True
        if self.state == "within":
            hid = True
            inside, end, text = text.partition(self._end)
            if not end:
                self._held = inside[1 - len(self._end) :]
                return "", hid
            self.state = "after"
        # White space between the reasoning and the text is a part of neither
        shown = text.lstrip()
        if shown:
            self.state = "through"
        return shown, hid


def _after_lone_end(text: str) -> str:
    """The text after a closing tag whose opening one stood in the model's template; else all of it."""
    for begin, end in TAGS:
        before, found, after = text.partition(end)
        if found and begin not in before:
            return after.lstrip()
    return text


def _number(value: object) -> float:
    """-9999 for what is no number."""
    return float(value) if isinstance(value, int | float) and not math.isnan(value) else UNLIKELY
