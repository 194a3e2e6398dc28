"""The OpenAI shapes as a server sees them: requests checked, answers written. No torch, no network.

A field that nobody here knows is ignored, as OpenAI-compatible servers do; a known one that would change the
answer and is not supported is refused by name.
"""

from __future__ import annotations

import codecs
import math
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from typing import Any, Literal, TypeVar, get_args

from stillhouse.records import Message, Role

MAX_CHOICES = 128
MAX_TOP_LOGPROBS = 20
_MAX_STOPS = 16
_ROLES = frozenset(get_args(Role))
_T = TypeVar("_T")

# Fields that change what an answer is, with the values that ask for nothing.
_UNSUPPORTED: Mapping[str, tuple[object, ...]] = {
    "tools": ([],),
    "tool_choice": ("none", "auto"),
    "functions": ([],),
    "function_call": ("none", "auto"),
    "response_format": ({"type": "text"},),
    "logit_bias": ({},),
    "frequency_penalty": (0,),
    "presence_penalty": (0,),
    "audio": (),
    "suffix": ("",),
    "prediction": (),
}


class WireError(Exception):
    """A request that cannot be answered, as status and OpenAI error body."""

    def __init__(self, status: int, message: str, param: str | None = None, code: str | None = None) -> None:
        super().__init__(message)
        self.status = status
        self.param = param
        self.code = code

    def body(self) -> dict[str, Any]:
        kind = "server_error" if self.status >= 500 else "invalid_request_error"
        return {"error": {"message": str(self), "type": kind, "param": self.param, "code": self.code}}


@dataclass(frozen=True, slots=True)
class Settings:
    """What chat and plain completions share. `max_tokens` None: as far as the context goes."""

    model: str
    max_tokens: int | None
    temperature: float
    top_p: float
    n: int
    stop: tuple[str, ...]
    seed: int | None
    logprobs: int | None
    stream: bool
    include_usage: bool


@dataclass(frozen=True, slots=True)
class ChatRequest:
    settings: Settings
    messages: tuple[Message, ...]


@dataclass(frozen=True, slots=True)
class CompletionRequest:
    """Each prompt is a text or token ids; with `echo` it is part of the answer. `prompt_logprobs` is how many
    likeliest tokens are told beside each one of the prompt, as vLLM does it, -1 all; None tells nothing."""

    settings: Settings
    prompts: tuple[str | tuple[int, ...], ...]
    echo: bool
    prompt_logprobs: int | None = None


def chat_request(body: object) -> ChatRequest:
    """Check the body of a chat completion request. Raises WireError 400."""
    fields = _fields(body)
    logprobs = None
    if _field(fields, "logprobs", _boolean, False):
        logprobs = _field(fields, "top_logprobs", _whole(0, MAX_TOP_LOGPROBS), 0)
    elif _field(fields, "top_logprobs", _whole(0, MAX_TOP_LOGPROBS), 0):
        raise WireError(400, "top_logprobs needs logprobs to be true", "top_logprobs")
    limit = _field(fields, "max_completion_tokens", _whole(1), None)
    limit = limit if limit is not None else _field(fields, "max_tokens", _whole(1), None)
    return ChatRequest(_settings(fields, limit, logprobs), _messages(fields.get("messages")))


def completion_request(body: object, most: int = MAX_TOP_LOGPROBS) -> CompletionRequest:
    """Check the body of a plain completion request, with `prompt_logprobs` up to `most`; -1 sets no bound.
    Raises WireError 400."""
    fields = _fields(body)
    echo = _field(fields, "echo", _boolean, False)
    bounds = (-1, None) if most == -1 else (0, most)
    told = _field(fields, "prompt_logprobs", _whole(*bounds), None)
    limit = _field(fields, "max_tokens", _whole(1 if not echo and told is None else 0), 16)
    logprobs = _field(fields, "logprobs", _whole(0, MAX_TOP_LOGPROBS), None)
    settings = _settings(fields, limit, logprobs)
    if (best_of := _field(fields, "best_of", _whole(1), None)) is not None and best_of != settings.n:
        raise WireError(400, "best_of other than n is not supported", "best_of", "unsupported_parameter")
    if echo and settings.stream:
        raise WireError(400, "echo is not supported together with stream", "echo", "unsupported_parameter")
    if told is not None and settings.stream:
        said = "prompt_logprobs is not supported together with stream"
        raise WireError(400, said, "prompt_logprobs", "unsupported_parameter")
    return CompletionRequest(settings, _prompts(fields.get("prompt")), bool(echo), told)


def _fields(body: object) -> dict[str, Any]:
    if not isinstance(body, dict):
        raise WireError(400, "the request body is not a JSON object")
    for name, harmless in _UNSUPPORTED.items():
        if (value := body.get(name)) is not None and value not in harmless:
            raise WireError(400, f"{name} is not supported by this server", name, "unsupported_parameter")
    return body


def _settings(fields: Mapping[str, Any], limit: int | None, logprobs: int | None) -> Settings:
    options = fields.get("stream_options") or {}
    if not isinstance(options, dict):
        raise WireError(400, "stream_options is not an object", "stream_options")
    model = fields.get("model")
    if not isinstance(model, str) or not model:
        raise WireError(400, "you must provide a model", "model", "missing_required_parameter")
    return Settings(
        model=model,
        max_tokens=limit,
        temperature=_field(fields, "temperature", _number(0, 2), 1.0),
        top_p=_field(fields, "top_p", _number(0, 1), 1.0),
        n=_field(fields, "n", _whole(1, MAX_CHOICES), 1),
        stop=_field(fields, "stop", _stops, ()),
        seed=_field(fields, "seed", _whole(-(2**63), 2**63), None),
        logprobs=logprobs,
        stream=_field(fields, "stream", _boolean, False),
        include_usage=_field(options, "include_usage", _boolean, False),
    )


def _field(fields: Mapping[str, Any], name: str, check: Callable[[Any], _T], default: Any) -> Any:
    """The checked value of a field; null and absent are the default."""
    value = fields.get(name)
    if value is None:
        return default
    try:
        return check(value)
    except ValueError as error:
        raise WireError(400, f"{name} {error}", name, "invalid_value") from None


def _boolean(value: Any) -> bool:
    if not isinstance(value, bool):
        raise ValueError("must be true or false")
    return value


def _whole(low: int, high: int | None = None) -> Callable[[Any], int]:
    def check(value: Any) -> int:
        whole = isinstance(value, int) and not isinstance(value, bool)
        if not whole or value < low or (high is not None and value > high):
            raise ValueError(
                f"must be a whole number from {low}" + (f" to {high}" if high is not None else "")
            )
        return int(value)

    return check


def _number(low: float, high: float) -> Callable[[Any], float]:
    def check(value: Any) -> float:
        number = isinstance(value, int | float) and not isinstance(value, bool) and math.isfinite(value)
        if not number or not low <= value <= high:
            raise ValueError(f"must be a number from {low} to {high}")
        return float(value)

    return check


def _stops(value: Any) -> tuple[str, ...]:
    stops = [value] if isinstance(value, str) else value
    if not isinstance(stops, list) or len(stops) > _MAX_STOPS or not all(isinstance(s, str) for s in stops):
        raise ValueError(f"must be a string or a list of at most {_MAX_STOPS} strings")
    return tuple(s for s in stops if s)


def _messages(value: Any) -> tuple[Message, ...]:
    if not isinstance(value, list) or not value:
        raise WireError(400, "messages must be a list with at least one message", "messages")
    return tuple(_message(message, f"messages[{at}]") for at, message in enumerate(value))


def _message(value: Any, param: str) -> Message:
    if not isinstance(value, dict):
        raise WireError(400, f"{param} is not an object", param)
    role: Any = "system" if value.get("role") == "developer" else value.get("role")
    if role not in _ROLES:
        known = ", ".join(sorted(_ROLES))
        raise WireError(400, f"{param}.role must be one of {known}", f"{param}.role", "invalid_value")
    if value.get("tool_calls"):
        raise WireError(400, "tool calls are not supported", f"{param}.tool_calls", "unsupported_parameter")
    content = value.get("content")
    if content is None and role == "assistant":
        content = ""
    if isinstance(content, list):
        parts = [p["text"] for p in content if isinstance(p, dict) and isinstance(p.get("text"), str)]
        if len(parts) != len(content):
            raise WireError(400, f"{param}.content may hold text parts only", f"{param}.content")
        content = "".join(parts)
    if not isinstance(content, str):
        raise WireError(400, f"{param}.content must be text", f"{param}.content", "invalid_value")
    return Message(role, content)


def _prompts(value: Any) -> tuple[str | tuple[int, ...], ...]:
    if isinstance(value, str):
        return (value,)
    if isinstance(value, list) and value:
        if all(_is_id(v) for v in value):
            return (tuple(value),)
        if all(isinstance(v, str) for v in value):
            return tuple(value)
        if all(isinstance(v, list) and v and all(_is_id(i) for i in v) for v in value):
            return tuple(tuple(v) for v in value)
    raise WireError(400, "prompt must be a text, a list of texts, token ids or a list of them", "prompt")


def _is_id(value: Any) -> bool:
    return isinstance(value, int) and not isinstance(value, bool) and value >= 0


# ---------------------------------------------------------------- answers


@dataclass(frozen=True, slots=True)
class Envelope:
    """What every part of one answer repeats."""

    id: str
    created: int
    model: str
    fingerprint: str | None

    def wrap(
        self, kind: Literal["chat", "text"], choices: list[dict[str, Any]], part: bool
    ) -> dict[str, Any]:
        name = "text_completion" if kind == "text" else "chat.completion.chunk" if part else "chat.completion"
        return {
            "id": self.id,
            "object": name,
            "created": self.created,
            "model": self.model,
            "system_fingerprint": self.fingerprint,
            "choices": choices,
        }


def usage(prompt_tokens: int, completion_tokens: int) -> dict[str, int]:
    return {
        "prompt_tokens": prompt_tokens,
        "completion_tokens": completion_tokens,
        "total_tokens": prompt_tokens + completion_tokens,
    }


@dataclass(frozen=True, slots=True)
class TokenScore:
    """A token as the wire shows it: its bytes, log-probability (None for the first of a text) and rivals.
    `special` tokens have a name and no text."""

    name: str
    raw: bytes
    logprob: float | None
    top: tuple[tuple[str, bytes, float], ...] = ()
    special: bool = False


def chat_logprobs(tokens: Sequence[TokenScore]) -> dict[str, Any]:
    """`choices[].logprobs` of chat completions."""
    content = [
        _entry(t.name, t.raw, t.logprob or 0.0) | {"top_logprobs": [_entry(*rival) for rival in t.top]}
        for t in tokens
    ]
    return {"content": content, "refusal": None}


def _entry(name: str, raw: bytes, logprob: float) -> dict[str, Any]:
    return {"token": name, "logprob": logprob, "bytes": list(raw)}


class Offsets:
    """Where the tokens of one text begin, counted in characters, as they come: `next` of each in turn.

    Bytes that are no character yet have the offset of the character that they begin. `unwritten` is how
    many characters of the first tokens the text leaves out: SentencePiece puts a space before every text
    and its decoder takes it away again.
    """

    def __init__(self, unwritten: int = 0) -> None:
        self._decoder = codecs.getincrementaldecoder("utf-8")("replace")
        self._seen = -unwritten

    def next(self, token: TokenScore) -> int:
        at = self._seen
        if not token.special:
            self._seen += len(self._decoder.decode(token.raw))
        return max(0, at)


def unwritten(tokens: Sequence[TokenScore], text: str) -> int:
    """How many characters the tokens of `text` have before it; 0 when they are not its tokens."""
    spelt = b"".join(token.raw for token in tokens if not token.special).decode("utf-8", "replace")
    return len(spelt) - len(text) if spelt.endswith(text) else 0


def text_logprobs(tokens: Sequence[TokenScore], offsets: Offsets) -> dict[str, Any]:
    """`choices[].logprobs` of plain completions: parallel lists, with null for a token that has no value.

    `offsets` is the text's own, kept from part to part of a stream.
    """
    return {
        "tokens": [t.name for t in tokens],
        "token_logprobs": [t.logprob for t in tokens],
        "top_logprobs": [
            None if t.logprob is None else {name: value for name, _, value in reversed(t.top)} for t in tokens
        ],
        "text_offset": [offsets.next(token) for token in tokens],
    }
